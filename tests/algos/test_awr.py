"""Advantage-weighted regression: what the weights depend on, and that they select the better of two modes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from reinflow.algos.awr import AdvantageWeightedRegression, advantage_weights, effective_sample_size
from reinflow.algos.config import AWRConfig, BCConfig, CriticConfig
from reinflow.algos.critics import Critics
from reinflow.policies.base import Policy

MakePolicy = Callable[..., Policy]


def test_weights_by_hand():
    # A = (3, 4, 5), mean 4, std 1: e^-2, 1, e^2 = 7.39 clipped to 5
    weight = advantage_weights(torch.tensor([3.0, 4.0, 5.0]), beta=2.0, weight_clip=5.0)
    torch.testing.assert_close(weight, torch.tensor([0.13533528, 1.0, 5.0]))


@pytest.mark.parametrize("trend", [-1e3, 0.0, 1e3])
def test_weights_follow_the_action_whatever_the_state_or_the_trend_of_q_contributes(trend):
    # Q(s, a) = f(s) + g(a) + trend, and V(s) = f(s), behind Q by the trend: the weights are those of g alone
    f, g = 100 * torch.randn(64, dtype=torch.float64), torch.randn(64, dtype=torch.float64)
    weight = advantage_weights((f + g + trend) - f, 1.0, 20.0)
    torch.testing.assert_close(weight, ((g - g.mean()) / g.std()).exp().clamp_max(20.0))


def test_the_advantage_is_that_of_the_qs_which_v_is_fitted_to():
    # the smaller of both target Qs, before they move, minus V, before it does
    critics = Critics(3, 2, CriticConfig(num_qs=2, num_min_qs=2, q_hidden_dim=16, tau=1.0, lr_critic=0.1))
    cond, action, reward = torch.randn(8, 3), torch.randn(8, 2), torch.ones(8)
    never = torch.zeros(8, dtype=torch.bool)
    for _ in range(3):
        expected = critics.target_q(cond, action).amin(0) - critics.value(cond)
        advantage, _ = critics.update(cond, action, reward, reward, never, cond, action)
        torch.testing.assert_close(advantage, expected.detach())


def uniform(rows: int) -> torch.Tensor:
    return torch.rand(rows, 1) * 2 - 1


def test_weights_find_the_better_action_while_q_still_grows():
    # r = 1 + s_0 + 2 a with s and a drawn anew: Q = s_0 + 2 a + c, and c grows for thousands of iterations
    torch.manual_seed(0)
    critics = Critics(2, 1, CriticConfig(num_qs=2, q_hidden_dim=64, tau=0.05, lr_critic=3e-3))
    never, discount = torch.zeros(256, dtype=torch.bool), torch.full((256,), 0.97)
    means = []
    for _ in range(60):
        cond, action = torch.randn(256, 2), uniform(256)
        reward = 1 + cond[:, 0] + 2 * action[:, 0]
        advantage, metrics = critics.update(cond, action, reward, discount, never, torch.randn(256, 2), uniform(256))
        means.append(metrics["losses/q_mean"].item())
    weight = advantage_weights(advantage, 1.0, 20.0)
    assert means[-1] > 1.2 * means[-30]
    assert correlation(weight.log(), action[:, 0]) > 0.9
    assert abs(correlation(weight.log(), cond[:, 0])) < 0.3
    # u even on [-1, 1] has std 1 / sqrt 3, so E e^(u / std) = sinh(x) / x at x = sqrt 3: ESS = 1.58^2 / 4.61 = .54
    assert effective_sample_size(weight).item() == pytest.approx(0.54, abs=0.08)


def correlation(x: torch.Tensor, y: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack((x, y)))[0, 1].item()


@pytest.mark.parametrize("scale", [1e-2, 1e3])
def test_weights_do_not_change_when_rewards_are_rescaled(scale):
    advantage = torch.randn(64)
    torch.testing.assert_close(advantage_weights(scale * advantage, 1.0, 20.0), advantage_weights(advantage, 1.0, 20.0))


def test_beta_zero_is_behaviour_cloning():
    assert torch.equal(advantage_weights(torch.randn(8), 0.0, 20.0), torch.ones(8))


def test_huge_advantages_are_clipped_not_infinite():
    # (A - mean) / std = -+.71, times 1e3
    assert advantage_weights(torch.tensor([0.0, 1e30]), 1e3, 20.0).tolist() == [0.0, 20.0]


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
    critics = CriticConfig(num_qs=3, q_hidden_dim=32, lr_critic=3e-3, tau=0.05)
    config = BCConfig(lr=3e-3, lr_warmup=10, ema_decay=0.98)
    return AdvantageWeightedRegression(policy, config, AWRConfig(beta=beta), critics, total_iters)


@pytest.mark.parametrize("family", ["shortcut", "gaussian"])  # half a minute each
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
    # (A - mean) / std is +-1, so weights are e^2 and e^-2 and half of the rows count; less as the critics still err
    assert 0.25 < metrics["losses/effective_sample_size"] < 0.8


def test_metrics_are_scalar_tensors(make_policy: MakePolicy):
    learner = make_learner(make_policy(), 1.0)
    metrics = learner.update(transitions(learner.policy))
    weights = {f"losses/{name}" for name in ("effective_sample_size", "weights_clipped", "advantage_mean")}
    assert {"losses/total", "losses/q", "losses/value"} | weights <= set(metrics)
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


def test_the_next_action_of_the_target_starts_from_the_policys_own_scale(make_policy: MakePolicy, monkeypatch):
    learner = make_learner(make_policy(initial_noise_scale=0.0), 1.0)
    rows = transitions(learner.policy, rows=8)
    average = learner.ema.module
    centre = average.sample(average.encode(rows.next_obs), torch.zeros(8, *learner.policy.spec.chunk_shape))
    given: list[torch.Tensor] = []
    update = learner.critics.update
    monkeypatch.setattr(learner.critics, "update", lambda *arguments: given.append(arguments[-1]) or update(*arguments))
    learner.update(rows)
    assert torch.equal(given[0], learner.executed(centre.clamp(-1, 1)))
