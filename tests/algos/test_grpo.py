"""Groups of episodes from one start state: their advantages by hand, and that the envs really start alike."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from reinflow.algorithms import ONLINE
from reinflow.algos.grpo import group_advantages
from reinflow.algos.setting import Setting
from reinflow.envs import EnvConfig, make_env
from reinflow.errors import UserError
from reinflow.flags import with_flags
from reinflow.training.config import OnPolicyConfig
from reinflow.training.loops import OnPolicy
from reinflow.types import ChunkStep, EpisodeStats

GAMMA = 0.9


def grpo(policy, num_envs: int = 4, **options):
    entry = ONLINE["grpo"]
    config = with_flags(entry.config(), {"group": 2, "minibatch_size": 8, **options})
    return entry.build(policy, config, Setting(GAMMA, num_envs=num_envs, rollout_steps=100))


def test_advantages_of_groups_by_hand():
    # means 2 and 5, stds 1 and 0; the last pair's second one broke, so its first is alone
    returns = torch.tensor([1.0, 3.0, 5.0, 5.0, 7.0, 99.0])
    valid = torch.tensor([True] * 5 + [False])
    advantage, std = group_advantages(returns, valid, 2)
    torch.testing.assert_close(advantage, torch.tensor([-1.0, 1.0, 0.0, 0.0, 0.0, 0.0]))
    torch.testing.assert_close(std, torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0, 0.0]))


def outcome(reward: list[float], ended: list[bool], broken: list[bool] | None = None) -> ChunkStep:
    no = torch.zeros(4, dtype=torch.bool)
    rewards, executed = torch.tensor(reward), torch.full((4,), 2)
    return ChunkStep(
        {}, {}, rewards, executed, no, torch.tensor(ended), EpisodeStats(rewards, executed, no, no),
        no if broken is None else torch.tensor(broken),
    )  # fmt: skip


def test_only_the_first_episode_counts_and_a_broken_one_does_not(make_policy):
    torch.manual_seed(0)
    one = grpo(make_policy("gaussian"))
    obs = {"state": torch.randn(4, 2, 5)}
    generator = torch.Generator().manual_seed(0)
    one.begin(0)
    first = outcome([1.0, 2.0, float("nan"), 4.0], [False, True, False, False], [False, False, True, False])
    one.store(one.act(obs, generator), first)
    assert one.playing.tolist() == [True, False, False, True]
    assert not one.full
    one.store(one.act(obs, generator), outcome([10.0] * 4, [True] * 4))
    assert one.full
    # 1 + .81 * 10; the second env had ended before; the third broke, and its group's other one is alone
    left_out = one.finish(obs)
    assert left_out == 2
    torch.testing.assert_close(one.returns[[0, 1, 3]], torch.tensor([9.1, 2.0, 12.1]))
    assert one.rows[0]["advantages"].tolist() == [1.0, -1.0, 0.0, 0.0]
    assert [row["valid"].tolist() for row in one.rows] == [[1, 1, 0, 1], [1, 0, 0, 1]]
    metrics = one.update(generator)
    assert all(value.isfinite() for value in metrics.values())
    assert metrics["losses/skipped_steps"] == 0


def test_the_envs_of_a_group_start_from_one_state_and_other_iterations_from_others(make_policy):
    env = make_env(EnvConfig("Toy-v0"), 6, act_horizon=4, obs_horizon=1, gamma=GAMMA)
    run = SimpleNamespace(config=SimpleNamespace(seed=3))
    loop = OnPolicy(SimpleNamespace(group=3), env, OnPolicyConfig(), run, torch.Generator())
    first = env.reset(seed=loop._group_seeds())["state"][:, 0]
    loop.state.iteration = 1
    second = env.reset(seed=loop._group_seeds())["state"][:, 0]
    for starts in (first, second):
        assert torch.equal(starts[:3], starts[:1].expand(3, -1))
        assert torch.equal(starts[3:], starts[3:4].expand(3, -1))
        assert not torch.equal(starts[0], starts[3])
    assert not torch.equal(first[0], second[0])


def test_the_drift_from_the_first_policy_costs(make_policy):
    torch.manual_seed(0)
    gaps = []
    for weight in (0.0, 100.0):
        one = grpo(make_policy("gaussian"), kl_weight=weight, lr=1e-3)
        rows = {"cond": torch.randn(16, 10), "advantages": torch.randn(16)}
        chain = one.chain(rows["cond"])
        rows |= {"actions": chain.states.detach(), "log_probs": chain.log_prob.detach()}
        for _ in range(20):
            metrics = one.step(rows)
        gaps.append(metrics["drift"].item())
    assert gaps[1] < 0.5 * gaps[0]


def test_envs_that_make_no_whole_groups_are_refused(make_policy):
    with pytest.raises(UserError, match="--num_envs 5 is no multiple of --group 2"):
        grpo(make_policy("gaussian"), num_envs=5)
