"""The batched MuJoCo tasks do what gymnasium's single envs do: the same start states, steps, rewards and falls."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from reinflow.envs import EnvConfig, make_env
from reinflow.envs.mujoco import RULES, MujocoEnv
from reinflow.envs.suite import task_of
from reinflow.errors import UserError

gymnasium = pytest.importorskip("gymnasium")
pytest.importorskip("mujoco")

STEPS = 50
"""enough for all that can fall to do so"""
NEVER_OVER = ("HalfCheetah-v5", "Pusher-v5")


@pytest.mark.parametrize("env_id", RULES)
def test_a_batch_is_as_many_of_gymnasiums_envs_to_the_bit(env_id: str):
    env, seeds = MujocoEnv(env_id, 2), [3, 14]
    stock = [gymnasium.make(env_id) for _ in seeds]

    def same(ours: Tensor, theirs: Any) -> bool:
        return torch.equal(ours, torch.from_numpy(np.array(theirs)).float())

    starts = [one.reset(seed=seed)[0] for one, seed in zip(stock, seeds, strict=True)]
    assert same(env.reset(seed=seeds)["state"], starts)
    low, high = torch.tensor(env.spec.action_low), torch.tensor(env.spec.action_high)
    generator = torch.Generator().manual_seed(0)
    falls = 0
    for _ in range(STEPS):
        action = low + (high - low) * torch.rand(2, len(low), generator=generator)
        step = env.step(action)
        steps = [one.step(own.numpy()) for one, own in zip(stock, action, strict=True)]
        frames, rewards, ends, *_ = zip(*steps, strict=True)
        assert same(step.obs["state"], frames)
        assert same(step.reward, rewards)
        assert step.terminated.tolist() == list(ends)
        over = step.terminated.nonzero().squeeze(1)
        falls += len(over)
        if len(over):
            now = env.reset(env_idx=over)["state"]
            for index in over.tolist():
                assert same(now[index], stock[index].reset()[0])
            others = ~step.terminated
            assert torch.equal(now[others], step.obs["state"][others])
    assert (falls == 0) == (env_id in NEVER_OVER)


@pytest.mark.parametrize("env_id", RULES)
def test_limit_bounds_and_ranking_are_the_tasks(env_id: str):
    spec, stock = MujocoEnv(env_id, 1).spec, gymnasium.make(env_id)
    assert spec.max_episode_steps == task_of(env_id).limit == stock.spec.max_episode_steps
    assert spec.action_low == tuple(stock.action_space.low.tolist())
    assert spec.action_high == tuple(stock.action_space.high.tolist())
    assert (task_of(env_id).headline, task_of(env_id).terminates_on) == ("return", "failure")


def test_a_fall_terminates_and_the_limit_truncates():
    chunk = {"act_horizon": 100, "obs_horizon": 1, "gamma": 1.0}
    env = make_env(EnvConfig("Hopper-v5", num_workers=0), 2, **chunk)
    env.reset(seed=0)
    step = env.step_chunk(torch.ones(2, 100, 3))  # all joints bend, and it is down in less than a second
    assert step.terminated.all() and not step.truncated.any()
    assert (step.executed < 100).all()
    env = make_env(EnvConfig("Hopper-v5", num_workers=0, max_episode_steps=8), 2, **chunk)
    env.reset(seed=0)
    assert env.step_chunk(torch.zeros(2, 100, 3)).truncated.all()


def test_without_the_package_a_sentence_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--env_id Ant-v5 needs mujoco: pip install -e '\.\[mujoco\]'"):
        make_env(EnvConfig("Ant-v5"), 1, act_horizon=1, obs_horizon=1, gamma=1.0)
