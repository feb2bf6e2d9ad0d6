"""Critics: the batched Q ensemble is a loop over independent members, and the value starts near zero."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from nets import QEnsemble, ValueNetwork

B, Z, C = 6, 5, 4


def member_by_hand(ensemble: QEnsemble, i: int, x: torch.Tensor) -> torch.Tensor:
    """Member `i` alone, with plain matrix products."""
    for linear, norm, _ in ensemble.hidden:
        x = x @ linear.weight[i] + linear.bias[i, 0]
        x = F.silu(F.layer_norm(x, x.shape[-1:], norm.weight[i, 0], norm.bias[i, 0]))
    return (x @ ensemble.out.weight[i] + ensemble.out.bias[i, 0]).squeeze(-1)


def randomised_ensemble() -> QEnsemble:
    """Norms start as the identity, where a member's could be mistaken for another's."""
    torch.manual_seed(0)
    ensemble = QEnsemble(Z, C, num_qs=4, hidden_dim=32)
    with torch.no_grad():
        for parameter in ensemble.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return ensemble


def test_the_ensemble_equals_a_loop_over_its_members():
    ensemble, cond, chunk = randomised_ensemble(), torch.randn(B, Z), torch.randn(B, C)
    looped = torch.stack([member_by_hand(ensemble, i, torch.cat((cond, chunk), -1)) for i in range(4)])
    torch.testing.assert_close(ensemble(cond, chunk), looped, rtol=0, atol=1e-6)


def test_members_differ_at_initialisation():
    q = QEnsemble(Z, C)(torch.randn(B, Z), torch.randn(B, C))
    assert q.shape == (10, B)
    assert (torch.pdist(q) > 1e-3).all()


def test_members_do_not_share_gradients():
    ensemble = randomised_ensemble()
    ensemble(torch.randn(B, Z), torch.randn(B, C))[1].sum().backward()
    for parameter in ensemble.parameters():
        assert parameter.grad[1].any()
        assert not parameter.grad[[0, 2, 3]].any()


def test_q_depends_on_condition_and_chunk():
    ensemble, cond, chunk = randomised_ensemble(), torch.randn(B, Z), torch.randn(B, C)
    q = ensemble(cond, chunk)
    assert (ensemble(cond + 1, chunk) != q).all()
    assert (ensemble(cond, chunk + 1) != q).all()


def test_the_value_is_one_number_a_row_and_starts_near_zero():
    value = ValueNetwork(Z)(100 * torch.randn(64, Z))
    assert value.shape == (64,)
    # LayerNorm and SiLU bound a hidden row's length by sqrt(256) = 16, the last layer's by .01 / sqrt(3) on average:
    # |V| stays under about .01 * 16 / sqrt(3) = .09 whatever the scale of the observation
    assert value.abs().max() < 0.09


def test_the_value_learns_a_target():
    torch.manual_seed(0)
    net, cond = ValueNetwork(Z, hidden_dims=(64, 64)), torch.randn(256, Z)
    target = cond[:, 0] * 2
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        loss = F.mse_loss(net(cond), target)
        loss.backward()
        optimizer.step()
    assert loss < 0.05  # the target's variance is 4


def trained_value(scale: float) -> ValueNetwork:
    """Predictions of about `scale`, on `ROWS`."""
    torch.manual_seed(0)
    net = ValueNetwork(Z, hidden_dims=(64, 64), last_layer_scale=1.0, scale=scale)
    with torch.no_grad():
        net.net[-1].bias.fill_(1.0)
    return net


ROWS = torch.randn(256, Z, generator=torch.Generator().manual_seed(0))


def size(values: torch.Tensor | float) -> torch.Tensor:
    return torch.as_tensor(values).double().square().mean().sqrt()


@pytest.mark.parametrize("returns", [0.0, 0.7, 33.0, 320.0])
def test_returns_near_the_scale_or_none_at_all_change_no_bit_of_v(returns):
    # the band of a scale of 33 goes from .02 * 33 = .66 to 10 * 33 = 330
    net = trained_value(33.0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert net.follow_(size(returns), size(net(ROWS).detach())) == 1.0
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.unit == 1.0


def test_v_takes_the_size_of_large_returns_and_predicts_what_it_did():
    net = trained_value(33.0)
    before = net(ROWS).detach()
    assert net.follow_(size(3e5), size(before)) == 1.0
    assert net.scale == 3e5
    torch.testing.assert_close(net(ROWS), before)
    torch.testing.assert_close(net.unit, torch.tensor(3e5 / 33))


def test_v_of_small_returns_keeps_its_predictions_and_noise_above_them_shrinks():
    # V = 33 beside returns of .033 is noise of 1000 times their size: with the scale it shrinks to their size
    fitting, noise = trained_value(33.0), trained_value(33.0)
    before = fitting(ROWS).detach()
    assert fitting.follow_(size(0.033), size(0.1)) == 1.0
    torch.testing.assert_close(fitting(ROWS), before)
    torch.testing.assert_close(noise.follow_(size(0.033), size(before)), torch.tensor(0.001))
    torch.testing.assert_close(noise(ROWS), 0.001 * before)


@pytest.mark.parametrize("sizes", [[1e-3] * 6, [1.0] * 6, [3e5] * 6, [20.0] * 6 + [3e5] * 6, [3e5] * 6 + [20.0] * 6])
def test_v_learns_returns_of_any_size_in_tens_of_updates(sizes):
    torch.manual_seed(0)
    net = ValueNetwork(Z, scale=33.0)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, eps=1e-5)
    for returns in sizes:
        target = returns * (1 + 0.5 * ROWS[:, 0])
        net.follow_(size(target), size(net(ROWS).detach()))
        for _ in range(16):
            optimizer.zero_grad()
            (F.mse_loss(net(ROWS), target) / net.unit.square()).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
    # of a variance of (.5 * returns)^2
    assert F.mse_loss(net(ROWS), target) < 0.2 * (0.5 * returns) ** 2


def test_a_value_in_another_unit_goes_through_a_checkpoint():
    net, other = trained_value(33.0), ValueNetwork(Z, hidden_dims=(64, 64), scale=33.0)
    net.follow_(size(3e5), size(1.0))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(ROWS), net(ROWS))
    assert other.unit == net.unit
