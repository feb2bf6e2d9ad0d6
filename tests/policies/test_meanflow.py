"""MeanFlow and Improved MeanFlow: the identity on flows whose average velocity is known, and where it ends."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reinflow.errors import UserError
from reinflow.policies import NETS, PolicySpec, build_policy
from reinflow.policies.improved_meanflow import ImprovedMeanFlow
from reinflow.policies.meanflow import LOGIT_MEAN, MeanFlow
from reinflow.policies.options import MeanFlowConfig

both = pytest.mark.parametrize("family", ["meanflow", "improved_meanflow"])


class Linear(nn.Module):
    """x' = (2 t - 1) x, so that x(t + d) = x(t) exp(d (2 t + d - 1)); its exact average velocity."""

    def forward(self, x, t, d, cond):
        grown = torch.expm1(d * (2 * t + d - 1)) / torch.where(d == 0, 1.0, d)
        return torch.where(d == 0, 2 * t - 1, grown)[:, None, None] * x


@pytest.fixture
def rows(make_spec):
    """A MeanFlow and an Improved one of the exact network, all rows averages, and where they are asked."""
    spec = make_spec("meanflow", average_share=1.0, time_scale=1.0)
    t = torch.rand(32).double()
    at = torch.randn(32, 8, 3).double(), t, (1 - t) * torch.rand(32).double()
    return MeanFlow(spec, Linear()), ImprovedMeanFlow(spec, Linear()), at


def test_the_target_of_a_flow_with_known_average_velocity_is_that_velocity(rows):
    policy, _, (x, t, d) = rows
    v = (2 * t - 1)[:, None, None] * x
    target = v + d[:, None, None] * policy.total_derivative(x, t, d, torch.zeros(32, 10), v)
    torch.testing.assert_close(target, policy.avg_velocity(x, t, d, torch.zeros(32, 10)))


def test_the_compound_velocity_of_the_true_average_is_the_velocity(rows):
    _, policy, (x, t, d) = rows
    compound = policy.compound_velocity(x, t, d, torch.zeros(32, 10))
    torch.testing.assert_close(compound, (2 * t - 1)[:, None, None] * x)


@pytest.mark.parametrize("net", NETS)
def test_the_total_derivative_agrees_with_central_differences(make_policy, net):
    policy = make_policy("meanflow", net, average_share=1.0).double()
    x, v, cond = torch.randn(8, 8, 3).double(), torch.randn(8, 8, 3).double(), torch.randn(8, 10).double()
    t, d, step = 0.1 + 0.4 * torch.rand(8).double(), 0.1 + 0.3 * torch.rand(8).double(), 1e-5
    ahead, behind = (policy.avg_velocity(x + s * v, t + s, d - s, cond) for s in (step, -step))
    slope = policy.total_derivative(x, t, d, cond, v)
    assert not slope.requires_grad
    torch.testing.assert_close(slope, (ahead - behind) / (2 * step), rtol=1e-3, atol=1e-3)


@both
def test_rows_without_an_interval_are_flow_matching_bit_by_bit(make_policy, family):
    policy = make_policy(family, adaptive_power=0.0)
    cond, chunk = torch.randn(16, 10), torch.rand(16, 8, 3)
    torch.manual_seed(3)
    loss = policy.loss(cond, chunk)
    torch.manual_seed(3)
    x_0 = torch.randn_like(chunk)
    t = (torch.randn(2, 16) + LOGIT_MEAN).sigmoid()[0]
    half = torch.arange(16) < 8
    assert (policy.intervals(16, chunk.device)[1] > 0).tolist() == half.tolist()
    v = policy.avg_velocity(torch.lerp(x_0, chunk, t[:, None, None])[8:], t[8:], torch.zeros(8), cond[8:])
    flow = (v - (chunk - x_0)[8:]).square().mean((1, 2))
    torch.testing.assert_close(loss[8:], flow, rtol=1e-6, atol=0)  # other sizes of a product round differently
    alone = make_policy(family, adaptive_power=0.0, average_share=0.0)
    alone.load_state_dict(policy.state_dict())
    torch.manual_seed(3)
    v = alone.avg_velocity(torch.lerp(x_0, chunk, t[:, None, None]), t, torch.zeros(16), cond)
    assert torch.equal(alone.loss(cond, chunk), (v - (chunk - x_0)).square().mean((1, 2)))


@both
def test_gradients_come_from_the_student_alone(make_policy, family):
    # the target is a constant: the gradient is that of |u - constant|^2
    policy = make_policy(family, adaptive_power=0.0)
    cond, chunk = torch.randn(16, 10), torch.rand(16, 8, 3)
    torch.manual_seed(3)
    policy.loss(cond, chunk).sum().backward()
    got = [p.grad.clone() for p in policy.net.parameters()]
    policy.zero_grad()
    torch.manual_seed(3)
    x_0 = torch.randn_like(chunk)
    t, d = policy.intervals(16, chunk.device)
    x_t, v = torch.lerp(x_0, chunk, t[:, None, None]), chunk - x_0
    along = policy.avg_velocity(x_t, t, torch.zeros(16), cond).detach() if family == "improved_meanflow" else v
    target = v + d[:, None, None] * policy.total_derivative(x_t, t, d, cond, along)
    (policy.avg_velocity(x_t, t, d, cond) - target).square().mean((1, 2)).sum().backward()
    for mine, parameter in zip(got, policy.net.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-4, atol=1e-6)


def test_adaptive_weights_by_hand(make_policy):
    # 3.999 / (3.999 + .001)^.5 = 1.9995; the gradient is that of the error over its weight: 1 / 2
    error = torch.tensor([3.999], requires_grad=True)
    weighted = make_policy("meanflow", adaptive_power=0.5, adaptive_offset=1e-3).weighted(error)
    torch.testing.assert_close(weighted, torch.tensor([1.9995]))
    torch.testing.assert_close(torch.autograd.grad(weighted.sum(), error)[0], torch.tensor([0.5]))


def test_logit_normal_times_are_those_of_the_paper_reversed(make_policy):
    # logit t ~ N(-.4, 1) for noise at 1 is logit t ~ N(.4, 1) for noise at 0
    t, d = make_policy("meanflow", average_share=0.0).intervals(20_000, torch.device("cpu"))
    assert abs(t.logit().mean() - 0.4) < 0.03
    assert not d.any()
    t, d = make_policy("meanflow", average_share=1.0).intervals(20_000, torch.device("cpu"))
    assert ((t >= 0) & (d >= 0) & (t + d <= 1 + 1e-6)).all()
    both_ends = torch.cat((t, t + d)).clamp(1e-6, 1 - 1e-6)
    assert abs(both_ends.logit().mean() - 0.4) < 0.03


def share_near_modes(family: str, iterations: int, **options: object) -> list[float]:
    """Of one-step samples, after training on chunks around -.8 or .8: near the one, near the other."""
    spec = PolicySpec.of(
        family=family, net="mlp", obs_horizon=1, act_horizon=1, pred_horizon=1, mlp_hidden_dim=64, mlp_depth=2,
        diffusion_step_embed_dim=16, **options,
    )  # fmt: skip
    policy = build_policy(spec)
    optimizer = torch.optim.Adam(policy.parameters(), lr=2e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    for _ in range(iterations):
        chunk = 0.8 * (2.0 * torch.randint(0, 2, (128, 1, 1)) - 1) + 0.05 * torch.randn(128, 1, 1)
        optimizer.zero_grad()
        policy.loss(torch.zeros(128, 1), chunk).mean().backward()
        optimizer.step()
        scheduler.step()
    with torch.no_grad():
        chunks = policy.sample(torch.zeros(1000, 1), torch.randn(1000, 1, 1), num_steps=1)
    return [((chunks - mode).abs() < 0.3).float().mean().item() for mode in (-0.8, 0.8)]


@both
def test_one_step_hits_both_modes(family):
    assert min(share_near_modes(family, 400)) > 0.15


def test_unscaled_times_spoil_the_derivative(make_policy):
    # as drawn weights have it, du/dt of a new network is that of the fastest wave: 100 times as large
    slopes = []
    for scale in (1.0, 0.01):
        torch.manual_seed(0)
        policy = make_policy("meanflow", average_share=1.0, time_scale=scale)
        x, t, cond = torch.randn(64, 8, 3), torch.rand(64), torch.zeros(64, 10)
        slopes.append(policy.total_derivative(x, t, 1 - t, cond, torch.zeros_like(x)).square().mean().sqrt())
    assert slopes[0] > 30 * slopes[1]


@pytest.mark.parametrize(
    "changes", [{"average_share": 1.5}, {"adaptive_power": -1}, {"adaptive_offset": 0}, {"time_scale": 0}]
)
def test_impossible_options_are_refused(changes):
    with pytest.raises(UserError, match=next(iter(changes))):
        MeanFlowConfig(**changes)
