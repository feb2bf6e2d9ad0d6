"""Dispersive losses: their arithmetic, that they push, and that they ride on the pass of the family's own loss."""

from __future__ import annotations

import math

import pytest
import torch

from reinflow.algos.config import DispersiveConfig
from reinflow.algos.dispersive import LOSSES, Dispersed, dispersion, distances
from reinflow.errors import UserError
from reinflow.policies import FAMILIES, NETS, PolicySpec, build_policy
from reinflow.policies.ema import EMA

every_loss = pytest.mark.parametrize("name", LOSSES)
CONFIG = DispersiveConfig()


def chosen(name: str, **changes: object) -> DispersiveConfig:
    return DispersiveConfig(dispersive=name, **changes)


def make_policy(family: str = "shortcut", net: str = "mlp"):
    torch.manual_seed(0)
    spec = PolicySpec.of(
        family=family, net=net, state_dim=5, action_dim=3, obs_horizon=2, act_horizon=4, pred_horizon=8,
        unet_dims=(16, 32), mlp_hidden_dim=64, mlp_depth=2, diffusion_step_embed_dim=16,
    )  # fmt: skip
    policy = build_policy(spec)
    for parameter in policy.net.parameters():
        if not parameter.any():  # the closed gates of a new DiT, behind which the rows of a Gaussian are all the same
            torch.nn.init.normal_(parameter, std=0.1)
    return policy


def loss_of(policy, config: DispersiveConfig, teacher=None) -> torch.Tensor:
    torch.manual_seed(1)
    return Dispersed(policy, config).loss(torch.randn(12, policy.spec.cond_dim), torch.rand(12, 8, 3), teacher)


def test_distances_are_squared_and_per_feature():
    # (0, 0) and (2, 4): (4 + 16) / 2 = 10
    z = torch.tensor([[0.0, 0.0], [2.0, 4.0]])
    torch.testing.assert_close(distances(z), torch.tensor([[0.0, 10.0], [10.0, 0.0]]))


def test_distances_keep_their_digits_far_from_the_origin():
    z = torch.randn(8, 32)
    exact = torch.cdist(z.double(), z.double()).square() / 32
    torch.testing.assert_close(distances(z + 1000), exact.float(), rtol=1e-2, atol=1e-3)


def test_each_loss_by_hand():
    # rows (0, 0) and (1, 1): D = (1 + 1) / 2 = 1 off the diagonal, tau .5
    z = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    expected = math.log((2 * math.exp(0) + 2 * math.exp(-1 / 0.5)) / 4)
    assert LOSSES["infonce_l2"](z, CONFIG).item() == pytest.approx(expected, rel=1e-5)
    # margin 1.5: (1.5 - 1)^2
    assert LOSSES["hinge"](z, chosen("hinge", dispersive_margin=1.5)).item() == pytest.approx(0.25, rel=1e-5)
    # both variances and the covariance are 1/2: mean squared off-diagonal 1/4, plus 1 - 1/2
    assert LOSSES["covariance"](z, CONFIG).item() == pytest.approx(0.25 + 0.5, rel=1e-5)
    # a right angle: 1 - cos = 1
    right = torch.tensor([[3.0, 0.0], [0.0, 0.1]])
    assert LOSSES["infonce_cosine"](right, CONFIG).item() == pytest.approx(expected, rel=1e-5)


def test_covariance_over_more_features_than_rows_is_that_of_the_matrix():
    z = torch.randn(6, 9)
    matrix = torch.cov(z.T.double())
    off = matrix - matrix.diag().diag()
    expected = off.square().sum() / (9 * 8) + (1 - matrix.diag()).clamp_min(0).mean()
    assert LOSSES["covariance"](z, CONFIG).item() == pytest.approx(expected.item(), rel=1e-4)


@every_loss
@pytest.mark.parametrize("features", [64, 137])
def test_gradients_live_at_any_number_of_features(name, features):
    torch.manual_seed(0)
    z = (0.5 * torch.randn(32, features)).requires_grad_()  # |z_i - z_j|^2 / f is about .5
    (gradient,) = torch.autograd.grad(LOSSES[name](z, CONFIG), z)
    # a step against it lowers the loss by its squared norm, by far more than the rounding of the loss
    assert gradient.isfinite().all()
    assert gradient.norm() > 1e-2
    assert (gradient.abs().amax(1) > 0).all()


@every_loss
def test_pushing_two_equal_rows_apart_lowers_the_loss(name):
    torch.manual_seed(0)
    z = torch.randn(2, 64)[:1].repeat(2, 1)
    apart = z + torch.tensor([[0.1], [-0.1]]) * torch.randn(64)
    assert LOSSES[name](apart, CONFIG) < LOSSES[name](z, CONFIG) - 1e-4


@every_loss
def test_equal_rows_and_a_single_row_give_a_finite_loss_and_gradient(name):
    for z in (torch.ones(4, 8, requires_grad=True), torch.ones(1, 8, requires_grad=True)):
        loss = LOSSES[name](z, CONFIG)
        loss.backward()
        assert loss.isfinite() and z.grad.isfinite().all()


@every_loss
def test_half_precision_features_are_dispersed_in_float32(name):
    z = torch.randn(8, 4, 16)
    config = chosen(name)
    half = dispersion([z.bfloat16()], config)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, dispersion([z.bfloat16().float().flatten(1)], config), rtol=0, atol=0)


def test_several_layers_count_their_mean():
    z = [torch.randn(8, 16), torch.randn(8, 4, 5)]
    config = chosen("infonce_l2")
    torch.testing.assert_close(dispersion(z, config), (dispersion(z[:1], config) + dispersion(z[1:], config)) / 2)


@pytest.mark.parametrize("changes", [{"dispersive": "none"}, {"dispersive": "hinge", "dispersive_weight": 0.0}])
def test_no_dispersion_is_bit_equal_to_the_familys_own_loss(changes):
    policy = make_policy()
    torch.manual_seed(1)
    plain = policy.loss(torch.randn(12, 10), torch.rand(12, 8, 3))
    assert torch.equal(loss_of(policy, DispersiveConfig(**changes)), plain)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_any_family_and_net_adds_the_same_number_to_each_row(family, net):
    policy = make_policy(family, net)
    plain = loss_of(policy, DispersiveConfig())
    for name, layer in zip(LOSSES, ("early", "mid", "late", "all"), strict=True):
        more = loss_of(policy, chosen(name, dispersive_layer=layer)) - plain
        assert more.abs().max() > 1e-6
        torch.testing.assert_close(more, more[:1].expand(12), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("own_teacher", [True, False])
def test_only_the_students_pass_is_dispersed(own_teacher):
    # the bootstrap rows of a shortcut call the net twice more, without gradient, on 3 of the 12 rows
    policy = make_policy("shortcut")
    rows: list[int] = []
    for block in policy.net.blocks:
        block.register_forward_hook(lambda block, args, output: rows.append(len(output)))
    loss_of(policy, chosen("infonce_l2"), None if own_teacher else EMA(policy).module)
    assert rows.count(12) == len(policy.net.blocks)
    dispersed = loss_of(policy, chosen("infonce_l2", dispersive_layer="all")).mean()
    plain = loss_of(policy, DispersiveConfig()).mean()
    features: list[torch.Tensor] = []
    for block in policy.net.blocks:
        block.register_forward_hook(lambda block, args, output: features.append(output))
    loss_of(policy, DispersiveConfig())
    expected = dispersion([z for z in features if len(z) == 12], chosen("infonce_l2"))
    torch.testing.assert_close(dispersed - plain, 0.5 * expected, rtol=1e-4, atol=1e-6)


def test_descending_a_dispersive_loss_spreads_the_features():
    policy = make_policy("reflow")
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    config = chosen("infonce_l2", dispersive_layer="late", dispersive_weight=10.0)
    first = (loss_of(policy, config) - loss_of(policy, DispersiveConfig())).mean().item()
    for _ in range(20):
        optimizer.zero_grad()
        loss_of(policy, config).mean().backward()
        optimizer.step()
    last = (loss_of(policy, config) - loss_of(policy, DispersiveConfig())).mean().item()
    assert last < first - 1


def test_a_config_that_contracts_is_refused():
    with pytest.raises(UserError, match="--dispersive_weight -1"):
        DispersiveConfig(dispersive_weight=-1)
    with pytest.raises(UserError, match="must be positive"):
        DispersiveConfig(dispersive_temperature=0)
