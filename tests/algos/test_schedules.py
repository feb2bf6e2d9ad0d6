"""Noise bounds over a run, as the guide defines them."""

from __future__ import annotations

import math

import pytest

from reinflow.algos.schedules import NoiseConfig
from reinflow.errors import UserError


def bounds(kind: str, env_steps: int) -> tuple[float, float]:
    config = NoiseConfig(min_noise_std=0.1, max_noise_std=0.5, noise_decay_type=kind, noise_decay_steps=1000)
    return config.bounds(env_steps, num_steps=4)


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


@pytest.mark.parametrize("num_steps", [1, 4, 8, 16])
def test_given_bounds_are_those_of_every_denoising_step(num_steps):
    assert NoiseConfig(0.01, 0.3).bounds(0, num_steps) == (0.01, 0.3)


@pytest.mark.parametrize(("num_steps", "expected"), [(1, (0.1, 0.4)), (4, (0.05, 0.2)), (16, (0.025, 0.1))])
def test_left_out_the_noise_of_a_whole_chain_is_the_same_for_any_number_of_steps(num_steps, expected):
    # K steps of std s add up to s * sqrt(K): .1 and .4
    assert NoiseConfig().bounds(0, num_steps) == expected
    assert NoiseConfig(0.1, 0.4, noise_scale="total").bounds(0, num_steps) == expected


@pytest.mark.parametrize("env_steps", [0, 300_000, 600_000, 1_200_000])
def test_the_default_bounds_at_four_steps_are_halves_of_the_totals_to_the_bit(env_steps):
    total = 0.4 * (1 - env_steps / 1_200_000) + 0.1 * (env_steps / 1_200_000)
    assert NoiseConfig().bounds(env_steps, 4) == (0.1 * 4**-0.5, total * 4**-0.5)


def test_one_bound_alone_meets_the_derived_other_one():
    # at K = 4 the other one is .05 or .2
    assert NoiseConfig(max_noise_std=0.15).bounds(0, 4) == (0.05, 0.15)
    for alone in (NoiseConfig(max_noise_std=0.04), NoiseConfig(min_noise_std=0.3)):
        with pytest.raises(UserError, match="pass both"):
            alone.bounds(0, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_noise_std": 0.0},
        {"max_noise_std": -0.1},
        {"min_noise_std": 0.9, "max_noise_std": 0.3},
        {"noise_decay_steps": 0},
    ],
)
def test_impossible_bounds_are_refused_with_the_flag_to_change(wrong):
    with pytest.raises(UserError, match="--"):
        NoiseConfig(**wrong)
