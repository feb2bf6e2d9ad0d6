"""Noise bounds over a run, as the guide defines them."""

from __future__ import annotations

import math

import pytest

from reinflow.algos.schedules import NoiseConfig
from reinflow.errors import UserError


def bounds(kind: str, env_steps: int) -> tuple[float, float]:
    config = NoiseConfig(min_noise_std=0.1, max_noise_std=0.5, noise_decay_type=kind, noise_decay_steps=1000)
    return config.bounds(env_steps)


@pytest.mark.parametrize("env_steps", [0, 500, 5000])
def test_constant_keeps_the_ceiling(env_steps):
    assert bounds("constant", env_steps) == (0.1, 0.5)


@pytest.mark.parametrize(("env_steps", "ceiling"), [(0, 0.5), (250, 0.4), (500, 0.3), (1000, 0.1), (5000, 0.1)])
def test_linear_falls_to_the_floor_and_stays_there(env_steps, ceiling):
    # .5 * (1 - p) + .1 * p;  p = .25: .375 + .025 = .4
    assert bounds("linear", env_steps) == pytest.approx((0.1, ceiling))


@pytest.mark.parametrize(
    ("env_steps", "factor"), [(0, 1.0), (500, math.exp(-1.5)), (1000, math.exp(-3)), (5000, math.exp(-3))]
)
def test_exponential_ends_at_five_percent_of_the_range(env_steps, factor):
    # .1 + .4 * e^{-3p}
    assert bounds("exponential", env_steps) == pytest.approx((0.1, 0.1 + 0.4 * factor))


@pytest.mark.parametrize("wrong", [{"min_noise_std": 0.0}, {"min_noise_std": 0.9}, {"noise_decay_steps": 0}])
def test_impossible_bounds_are_refused_with_the_flag_to_change(wrong):
    with pytest.raises(UserError, match="--"):
        NoiseConfig(**wrong)
