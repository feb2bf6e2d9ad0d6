"""Algorithms improve on their clone on the toy, all with the same budget; the whole matrix by `pytest -m matrix`."""

from __future__ import annotations

import pytest

from reinflow.algorithms import OFFLINE, ONLINE, able_families
from tests.training.toy_matrix import offline_returns, returns

STARTS_FROM_NOISE = [name for name in able_families(ONLINE["dsrl"]) if name not in ("gaussian", "gmm", "mip")]
MATRIX = [
    (algorithm, family)
    for algorithm, entry in ONLINE.items()
    for family in (STARTS_FROM_NOISE if algorithm == "dsrl" else able_families(entry))
]

SELECTING = ["rwr", "awr", "idql"]
"""offline algorithms that prefer some of what was done; those that climb Q leave the toy's doors in so few updates"""
OFFLINE_MATRIX = [
    (algorithm, family)
    for algorithm in SELECTING
    for family in (STARTS_FROM_NOISE if algorithm == "idql" else able_families(OFFLINE[algorithm]))
]


def test_an_algorithm_with_a_replay_buffer_improves_on_its_clone(tmp_path):
    before, after = returns(tmp_path, "idql", "shortcut", total_timesteps=8_000)
    # standing still brings 24 * .5 * (1 - 1.6 / 3) = 5.6; the clone about 10
    assert after > before + 1


@pytest.mark.matrix
@pytest.mark.parametrize(("algorithm", "family"), MATRIX)
def test_every_algorithm_improves_on_every_family_that_it_takes(tmp_path, algorithm, family):
    before, after = returns(tmp_path, algorithm, family)
    assert after > before


@pytest.mark.matrix
@pytest.mark.parametrize(("algorithm", "family"), OFFLINE_MATRIX)
def test_offline_algorithms_that_select_improve_on_a_clone_of_mixed_demonstrations(algorithm, family):
    before, after = offline_returns(algorithm, family)
    assert after > before
