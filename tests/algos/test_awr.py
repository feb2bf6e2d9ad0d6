"""Advantage-weighted regression: what the weights depend on, and that they select the better of two modes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from reinflow.algos.awr import AdvantageWeightedRegression, AWRConfig, advantage_weights, effective_sample_size
from reinflow.algos.bc import BCConfig
from reinflow.algos.critics import CriticConfig
from reinflow.policies import Policy

MakePolicy = Callable[..., Policy]


def test_weights_by_hand():
    # A = (-1, 0, 1), std 1: e^-2, 1, e^2 = 7.39 clipped to 5
    weight = advantage_weights(torch.tensor([-1.0, 0.0, 1.0]), beta=2.0, weight_clip=5.0)
    torch.testing.assert_close(weight, torch.tensor([0.13533528, 1.0, 5.0]))


def test_weights_do_not_depend_on_what_only_the_state_contributes():
    # Q(s, a) = f(s) + g(a), and V(s) = f(s) + c: the advantage is g(a) - c
    f, g = 100 * torch.randn(64, dtype=torch.float64), torch.randn(64, dtype=torch.float64)
    torch.testing.assert_close(advantage_weights((f + g) - (f + 0.3), 1.0, 20.0), advantage_weights(g - 0.3, 1.0, 20.0))


@pytest.mark.parametrize("scale", [1e-2, 1e3])
def test_weights_do_not_change_when_rewards_are_rescaled(scale):
    advantage = torch.randn(64)
    torch.testing.assert_close(advantage_weights(scale * advantage, 1.0, 20.0), advantage_weights(advantage, 1.0, 20.0))


def test_beta_zero_is_behaviour_cloning():
    assert torch.equal(advantage_weights(torch.randn(8), 0.0, 20.0), torch.ones(8))


def test_huge_advantages_are_clipped_not_infinite():
    assert advantage_weights(torch.tensor([0.0, 1e30]), 1e3, 20.0).tolist() == [1.0, 20.0]


@pytest.mark.parametrize(
    ("weights", "expected"), [([1.0] * 4, 1.0), ([1.0, 0.0, 0.0, 0.0], 0.25), ([3.0, 1.0], 16 / 20)]
)
def test_effective_sample_size_by_hand(weights, expected):
    assert effective_sample_size(torch.tensor(weights)).item() == pytest.approx(expected)


def transitions(policy: Policy, rows: int = 128) -> SimpleNamespace:
    """Half of the demonstrated chunks go to +.5 and earn 1, the other half go to -.5 and earn nothing."""
    spec = policy.spec
    obs = {"state": torch.randn(rows, spec.obs_horizon, spec.state_dim)}
    good = torch.arange(rows) % 2 == 0
    level = torch.where(good, 0.5, -0.5)[:, None, None]
    return SimpleNamespace(
        obs=obs,
        chunk=level.expand(rows, spec.pred_horizon, spec.action_dim),
        reward=good.float(),
        discount=torch.full((rows,), 0.9),
        next_obs=obs,
        terminated=torch.ones(rows, dtype=torch.bool),
        truncated=torch.zeros(rows, dtype=torch.bool),
    )


def make_learner(policy: Policy, beta: float, total_iters: int = 200) -> AdvantageWeightedRegression:
    critics = CriticConfig(num_qs=3, q_hidden_dim=32, lr_critic=3e-3)
    config = BCConfig(lr=3e-3, lr_warmup=10, ema_decay=0.98)
    return AdvantageWeightedRegression(policy, config, AWRConfig(beta=beta), critics, total_iters)


@pytest.mark.parametrize("family", ["shortcut", "gaussian"])
def test_the_policy_prefers_the_rewarded_mode_and_without_weights_it_does_not(make_policy: MakePolicy, family):
    test = {"state": torch.randn(200, 2, 5)}
    means = {}
    for beta in (0.0, 2.0):
        learner = make_learner(make_policy(family), beta)
        for _ in range(200):
            metrics = learner.update(transitions(learner.policy))
        with torch.no_grad():
            means[beta] = learner.ema.module.act(test).mean().item()
    assert abs(means[0.0]) < 0.2
    assert means[2.0] > 0.3
    # A / std(A) is +-1 around the middle, so weights are about e^2 and e^-2, or 1 and e^-4: half of the rows count
    assert 0.4 < metrics["losses/effective_sample_size"] < 0.8


def test_metrics_are_scalar_tensors(make_policy: MakePolicy):
    learner = make_learner(make_policy(), 1.0)
    metrics = learner.update(transitions(learner.policy))
    assert {"losses/total", "losses/q", "losses/value", "losses/effective_sample_size"} <= set(metrics)
    assert all(value.shape == () and bool(value.isfinite()) for value in metrics.values())


def test_critics_never_move_the_policy(make_policy: MakePolicy):
    learner = make_learner(make_policy(), 1.0)
    before = [p.detach().clone() for p in learner.policy.parameters()]
    rows = transitions(learner.policy)
    cond = learner.policy.encode(rows.obs)
    action = learner.executed(learner.policy.normalize_chunk(rows.chunk))
    learner.critics.update(cond, action, rows.reward, rows.discount, rows.terminated, cond, action)
    assert all(torch.equal(a, b) for a, b in zip(before, learner.policy.parameters(), strict=True))
    assert all(p.grad is None for p in learner.policy.parameters())


def test_a_restored_learner_continues_bit_identically(make_policy: MakePolicy):
    first, second = make_learner(make_policy(), 1.0), make_learner(make_policy(), 1.0)
    for _ in range(2):
        first.update(transitions(first.policy))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for learner in (first, second):
        torch.manual_seed(5)
        learner.update(transitions(learner.policy))
    for one, other in ((first.policy, second.policy), (first.critics, second.critics)):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
