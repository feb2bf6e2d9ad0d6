"""Critics: the batched Q ensemble is a loop over independent members, and the value starts near zero."""

from __future__ import annotations

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
