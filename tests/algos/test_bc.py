"""Behaviour cloning of any Regressable policy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from reinflow.algos.bc import BehaviorCloning, warmup_cosine
from reinflow.algos.config import BCConfig, DispersiveConfig
from reinflow.cli import parse
from reinflow.errors import UserError
from reinflow.policies import FAMILIES
from reinflow.policies.base import Policy
from train_aw_shortcut_flow import Config as WeightedConfig
from train_shortcut_flow import Config as CloningConfig

MakePolicy = Callable[..., Policy]


def batch(policy: Policy, rows: int = 64) -> SimpleNamespace:
    spec = policy.spec
    states = torch.randn(rows, spec.obs_horizon, spec.state_dim)
    chunk = 0.5 * states[:, -1:, : spec.action_dim].tanh().expand(-1, spec.pred_horizon, -1)
    return SimpleNamespace(obs={"state": states}, chunk=chunk)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_average_policy_learns_to_act_as_demonstrated(make_policy: MakePolicy, family):
    policy = make_policy(family, mlp_hidden_dim=128)
    learner = BehaviorCloning(policy, BCConfig(lr=3e-3, lr_warmup=10, ema_decay=0.98), total_iters=500)
    test = batch(policy, 200)
    expected = test.chunk[:, policy.spec.executed]

    def error() -> float:
        with torch.no_grad():
            return (learner.ema.module.act(test.obs) - expected).abs().mean().item()

    before = error()
    for _ in range(500):
        metrics = learner.update(batch(policy))
    assert error() < 0.5 * before
    assert metrics["losses/total"].isfinite()


@pytest.mark.parametrize("net", ["mlp", "unet"])
def test_bfloat16_gives_nearly_the_same_loss_and_leaves_weights_and_gradients_in_float32(make_policy: MakePolicy, net):
    policy = make_policy(net=net, unet_dims=(16, 32))
    rows = batch(policy)
    losses = []
    for bf16 in (False, True):
        learner = BehaviorCloning(policy, BCConfig(bf16=bf16), total_iters=10)
        torch.manual_seed(0)
        loss, cond = learner.regression(rows)
        losses.append(loss)
        assert loss.dtype == cond.dtype == torch.float32
    assert 0 < (losses[0] - losses[1]).abs().max() < 0.05 * losses[0].max()
    losses[1].mean().backward()
    assert {p.grad.dtype for p in policy.parameters() if p.grad is not None} == {torch.float32}


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine():
    # 10 warm-up and 90 cosine iterations to a peak of 1: .1, .2 .. 1 at 10; half of it at 10 + 45; 0 at 100
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = warmup_cosine(optimizer, warmup=10, total=100)
    rates = []
    for _ in range(101):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert [rates[i] for i in (0, 1, 9, 10, 55, 100)] == pytest.approx([0.1, 0.19, 0.91, 1.0, 0.5, 0.0], abs=1e-6)


def test_no_warm_up_starts_at_the_peak():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    assert warmup_cosine(optimizer, warmup=0, total=100).get_last_lr() == [1.0]


@pytest.mark.parametrize("use_ema_teacher", [True, False])
def test_the_moving_average_teaches_a_policy_that_takes_a_teacher(
    make_policy: MakePolicy, monkeypatch, use_ema_teacher
):
    policy = make_policy("shortcut")
    learner = BehaviorCloning(policy, BCConfig(use_ema_teacher=use_ema_teacher), total_iters=10)
    seen, original = [], policy.loss

    def loss(cond: torch.Tensor, chunk: torch.Tensor, teacher: Policy | None = None) -> torch.Tensor:
        seen.append(teacher)
        return original(cond, chunk, teacher)

    monkeypatch.setattr(policy, "loss", loss)
    learner.update(batch(policy))
    assert seen == [learner.ema.module if use_ema_teacher else None]


def test_a_policy_without_a_loss_is_refused_in_a_sentence():
    with pytest.raises(UserError, match="Regressable"):
        BehaviorCloning(torch.nn.Linear(1, 1), BCConfig(), total_iters=10)


def test_a_restored_learner_continues_bit_identically(make_policy: MakePolicy):
    first = BehaviorCloning(make_policy(), BCConfig(), total_iters=20)
    for _ in range(3):
        first.update(batch(first.policy))
    second = BehaviorCloning(make_policy(), BCConfig(), total_iters=20)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for learner in (first, second):
        torch.manual_seed(5)
        for _ in range(3):
            learner.update(batch(learner.policy))
    for one, other in (
        (first.policy, second.policy),
        (first.ema.module, second.ema.module),
    ):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_several_draws_for_one_encoding_average_to_the_loss_of_one(make_policy: MakePolicy):
    policy = make_policy("reflow")
    data = batch(policy, 32)
    calls = []
    encode = policy.encode
    policy.encode = lambda obs: calls.append(len(obs["state"])) or encode(obs)  # type: ignore[method-assign]

    def loss(draws: int) -> torch.Tensor:
        rows, cond = BehaviorCloning(policy, BCConfig(draws=draws), total_iters=1).regression(data)
        assert (rows.shape, cond.shape) == ((32,), (32, policy.spec.cond_dim))
        return rows.detach()

    one, many = torch.stack([loss(1) for _ in range(64)]), loss(64)
    assert calls[-1] == 32  # encoded once, however many draws
    # the mean of 64 losses either way: their standard error is that of 64 draws
    error = one.std(0) / 64**0.5
    assert ((one.mean(0) - many).abs() < 6 * error).all()
    assert one.std(0).mean() > 3 * (one.mean(0) - many).abs().mean()


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_a_dispersive_loss_is_added_to_the_policys_own_and_nothing_at_weight_0(make_policy: MakePolicy, weight):
    policy = make_policy("reflow")
    data, dispersion = batch(policy, 32), DispersiveConfig(dispersive="hinge", dispersive_weight=weight)
    rows = []
    for config in (BCConfig(), BCConfig(dispersion=dispersion)):
        torch.manual_seed(1)
        rows.append(BehaviorCloning(policy, config, total_iters=1).regression(data)[0])
    more = rows[1] - rows[0]
    torch.testing.assert_close(more, more[:1].expand(32), rtol=0, atol=1e-5)
    assert torch.equal(*rows) if weight == 0 else more[0] > 1e-3


@pytest.mark.parametrize("config", [CloningConfig, WeightedConfig])
def test_stages_1_and_2_take_a_dispersive_loss(config):
    words = "--dispersive infonce_l2 --dispersive_weight .1 --dispersive_temperature .3 --dispersive_layer late"
    chosen = parse(config, words.split()).bc.dispersion
    assert chosen == DispersiveConfig("infonce_l2", 0.1, 0.3, dispersive_layer="late")
