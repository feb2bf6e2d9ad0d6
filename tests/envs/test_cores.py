"""The cost model of many cores, by hand."""

from __future__ import annotations

import pytest

from reinflow.envs.cores import PICK_CUBE, StepCost, hint_at_more_envs


def test_a_line_is_fitted_exactly():
    cost = StepCost.fitted({4: 0.003 + 4 * 0.0005, 16: 0.003 + 16 * 0.0005, 64: 0.003 + 64 * 0.0005})
    assert (cost.fixed, cost.per_env) == (pytest.approx(0.003), pytest.approx(0.0005))


def test_the_model_gives_back_what_it_was_fitted_to():
    # envs / (3 ms + .437 ms * envs)
    speeds = [PICK_CUBE.speed(envs, cores=1) for envs in (64, 128, 256)]
    assert speeds == [pytest.approx(measured, rel=0.02) for measured in (2069, 2206, 2232)]


def test_the_fixed_cost_of_enough_envs_is_a_tenth_of_a_step():
    # 3 / (3 + .437 n) <= .1 from n = 61.8 on, so 64
    assert PICK_CUBE.enough() == 64


def test_128_envs_on_16_cores_are_too_few_and_on_2_enough():
    # 8 a core: 8 / (3 + 3.5) = 1.23 a ms; 64 a core: 64 / (3 + 28) = 2.07: 1.68 times as many
    hint = hint_at_more_envs(128, rollout_steps=48, cores=16)
    assert "128 envs are 8 for each of 16 simulator processes" in hint
    assert "about 1.7 times as many env steps/s with --num_envs 1024 --rollout_steps 6" in hint
    assert hint_at_more_envs(128, rollout_steps=48, cores=2) is None
    assert hint_at_more_envs(2048, rollout_steps=48, cores=16) is None


def test_no_hint_leaves_an_iteration_without_a_future():
    assert "--rollout_steps 4;" in hint_at_more_envs(128, rollout_steps=12, cores=16)


def test_a_machine_whose_steps_cost_more_gains_more():
    # 16 processes x 8 envs that make 5.5k env steps/s need 23.3 ms for a step: 19.8 of them fixed
    slow = StepCost(fixed=19.8e-3, per_env=0.437e-3)
    assert slow.speed(128, 16) == pytest.approx(5500, rel=0.01)
    assert slow.speed(1024, 16) / slow.speed(128, 16) > 3
