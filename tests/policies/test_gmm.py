"""Mixtures of Gaussians: the likelihood that is cloned, and that both of two ways are kept apart."""

from __future__ import annotations

import math

import pytest
import torch

from reinflow.errors import UserError


def test_the_loss_is_the_negative_log_likelihood_up_to_its_scale_and_constant(make_policy):
    policy = make_policy("gmm", modes=3, mode_std=0.2)
    with torch.no_grad():
        policy.weight_net[-1].bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
    cond, chunk = torch.randn(6, 10), torch.rand(6, 8, 3)
    law = policy.mixture(cond, torch.tensor(0.2))
    modes = torch.distributions.Independent(torch.distributions.Normal(law.means, 0.2), 2)
    weights = torch.distributions.Categorical(logits=torch.tensor([0.0, 1.0, 2.0]).expand(6, 3))
    density = torch.distributions.MixtureSameFamily(weights, modes).log_prob(chunk)
    # of 24 numbers: log N = -24 log(.2 sqrt(2 pi)) - |.|^2 / (2 .04), scaled by 2 * .04 / 24
    expected = -(density + 24 * math.log(0.2 * math.sqrt(2 * math.pi))) * 2 * 0.04 / 24
    torch.testing.assert_close(policy.loss(cond, chunk), expected, rtol=1e-4, atol=1e-5)


def test_one_mode_is_cloned_as_a_gaussian_is(make_policy):
    policy = make_policy("gmm", modes=1)
    cond, chunk = torch.randn(6, 10), torch.rand(6, 8, 3)
    mean = policy.net(torch.zeros(6, 8, 3), torch.zeros(6), torch.ones(6), cond)
    torch.testing.assert_close(policy.loss(cond, chunk), (mean - chunk).square().mean((1, 2)))


def test_modes_and_weights_of_two_ways_are_found(make_policy):
    # a quarter of the chunks is at -.8, the others are at .8
    policy = make_policy("gmm", modes=3)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    cond = torch.zeros(128, 10)
    for _ in range(200):
        sign = 1 - 2 * (torch.rand(128, 1, 1) < 0.25).float()
        optimizer.zero_grad()
        policy.loss(cond, (0.8 * sign).expand(128, 8, 3)).mean().backward()
        optimizer.step()
    with torch.no_grad():
        chunks = policy.sample(torch.zeros(1000, 10), torch.randn(1000, 8, 3)).mean((1, 2))
    shares = [((chunks - mode).abs() < 0.2).float().mean().item() for mode in (-0.8, 0.8)]
    assert shares == pytest.approx([0.25, 0.75], abs=0.12)


def test_every_parameter_of_a_mixture_learns_from_its_chain(make_policy):
    policy = make_policy("gmm")
    law = policy.steps(torch.randn(6, 1, 8, 3), torch.randn(6, 10))
    law.log_prob(torch.randn(6, 1, 8, 3), torch.ones(1, 8, 3).bool()).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in policy.velocity_parameters())
    assert policy.weight_net[-1].bias.grad.abs().sum() > 0
    assert policy.std_drive.grad.abs().sum() > 0


@pytest.mark.parametrize("changes", [{"modes": 0}, {"mode_std": 0.0}, {"modes": 25}])
def test_impossible_mixtures_are_refused(make_spec, changes):
    with pytest.raises(UserError, match=f"--{next(iter(changes))}"):
        make_spec("gmm", **changes)
