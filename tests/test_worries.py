"""Alarms of training, one per cause."""

from __future__ import annotations

import pytest

from reinflow.algos.awr import AdvantageWeightedRegression
from reinflow.algos.reinflow import ReinFlow

worries, offline_worries = ReinFlow.worries, AdvantageWeightedRegression.worries

HEALTHY = {
    "charts/critic_warmup": 0.0,
    "losses/ratio_deviation": 1e-6,
    "losses/final_kl": 0.5,
    "losses/clip_fraction": 0.2,
    "losses/explained_variance": 0.8,
}


def test_a_healthy_iteration_raises_none():
    assert worries(HEALTHY) == []


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("losses/ratio_deviation", 0.1, "disagree"),
        ("losses/final_kl", 8.0, "--target_kl"),
        ("losses/clip_fraction", 0.7, "clipped"),
        ("losses/explained_variance", -0.1, "--critic_warmup_steps"),
    ],
)
def test_each_limit_has_a_sentence_with_the_fix(name, value, word):
    (sentence,) = worries(HEALTHY | {name: value})
    assert word in sentence


def test_a_critic_in_warm_up_may_still_be_wrong():
    warmup = {"charts/critic_warmup": 1.0, "losses/explained_variance": -0.5}
    assert worries(warmup) == []


def test_clipped_weights_are_an_alarm_where_they_are_the_most():
    assert offline_worries({"losses/weights_clipped": 0.5}) == []
    (sentence,) = offline_worries({"losses/weights_clipped": 0.51})
    assert "--beta" in sentence
