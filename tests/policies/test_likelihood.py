"""The exact likelihood of a flow against distributions that are known: a linear flow, and a diffusion of one action."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nets.velocity import VelocityNet
from reinflow.errors import UserError
from reinflow.policies import NoiseNetConfig, make_stochastic
from reinflow.policies.chain import chain_log_prob, sample_chain
from reinflow.policies.ddpm import DDPM, cosine_alphas
from reinflow.policies.likelihood import FlowLikelihood
from reinflow.policies.reflow import ReFlow

SHAPE = (2, 2)
ALL = torch.ones(1, *SHAPE).bool()


class Linear(VelocityNet):
    """v = A x + b of the flat chunk, at all times."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(0.3 * torch.randn(4, 4))
        self.shift = nn.Parameter(torch.randn(4))

    def times(self, timestep, step_size):
        return torch.zeros(len(timestep), 1)

    def condition(self, global_cond):
        return torch.zeros(len(global_cond), 1)

    def velocity(self, sample, features):
        return (sample.flatten(1) @ self.matrix.T + self.shift).unflatten(1, SHAPE)


class NoiseOfGaussian(VelocityNet):
    """The noise in alpha a + sigma x_0 of actions a ~ N(.2, .1^2): sigma (x - .2 alpha) / (.01 alpha^2 + sigma^2)."""

    def times(self, timestep, step_size):
        angles = torch.cat((cosine_alphas(20).flip(0).acos(), torch.zeros(1)))
        place = timestep * 20
        level = place.long().clamp(0, 19)
        return torch.lerp(angles[level], angles[level + 1], place - level).unsqueeze(-1)

    def condition(self, global_cond):
        return torch.zeros(len(global_cond), 1)

    def velocity(self, sample, features):
        alpha, sigma = features.cos().unsqueeze(-1), features.sin().unsqueeze(-1)
        return sigma * (sample - 0.2 * alpha) / (0.01 * alpha.square() + sigma.square())


@pytest.fixture
def small(make_spec):
    def build(family, **changes):
        sizes = {"action_dim": 2, "pred_horizon": 2, "act_horizon": 1, "initial_noise_scale": 1.0}
        return make_spec(family, **sizes | changes)

    return build


def exact_law(net: Linear, scale: float = 1.0) -> torch.distributions.MultivariateNormal:
    """x_1 = e^A x_0 + (integral of e^(A s)) b, and x_0 ~ N(0, scale^2)."""
    matrix, shift = net.matrix.detach(), net.shift.detach()
    grown = torch.zeros(5, 5)
    grown[:4, :4], grown[:4, 4] = matrix, shift
    whole = torch.linalg.matrix_exp(grown)
    return torch.distributions.MultivariateNormal(whole[:4, 4], scale**2 * whole[:4, :4] @ whole[:4, :4].T)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_log_density_of_a_linear_flow_is_that_of_its_normal_distribution(small, scale):
    policy = ReFlow(small("reflow", initial_noise_scale=scale), Linear())
    x = torch.randn(32, 4)
    found = FlowLikelihood(policy, num_steps=40, probes=0).log_density(x.unflatten(1, SHAPE), torch.zeros(32, 10))
    torch.testing.assert_close(found, exact_law(policy.net, scale).log_prob(x), rtol=1e-3, atol=1e-3)


def test_its_gradient_is_that_of_the_normal_distribution(small):
    # d log p / d b_j of a flow with A = 0: x_1 = x_0 + b, so (x_1 - b)_j
    policy = ReFlow(small("reflow"), Linear())
    nn.init.zeros_(policy.net.matrix)
    x = torch.randn(1, 4)
    FlowLikelihood(policy, 4, probes=0).log_density(x.unflatten(1, SHAPE), torch.zeros(1, 10)).sum().backward()
    torch.testing.assert_close(policy.net.shift.grad, (x - policy.net.shift)[0].detach(), rtol=1e-4, atol=1e-5)
    # d log p / d A is -1 on the diagonal from the trace, and what x_0 says: at A = 0 it is x_0 times the path's mean
    x_0 = (x - policy.net.shift)[0].detach()
    expected = torch.outer(x_0, (x_0 + x[0]) / 2) - torch.eye(4)
    torch.testing.assert_close(policy.net.matrix.grad, expected, rtol=1e-3, atol=1e-3)


def test_random_probes_give_the_trace_in_the_mean(small):
    policy = ReFlow(small("reflow"), Linear())
    exact, guessed = FlowLikelihood(policy, 4, probes=0), FlowLikelihood(policy, 4, probes=2)
    x, cond = torch.randn(4096, *SHAPE), torch.zeros(4096, 10)
    with torch.no_grad():
        errors = guessed.log_density(x, cond) - exact.log_density(x, cond)
    spread = (policy.net.matrix - policy.net.matrix.diagonal().diag()).square().sum().item() ** 0.5
    assert 0.3 * spread < errors.std() < 1.5 * spread  # of the trace of A with two probes: at most spread
    assert errors.mean().abs() < 5 * errors.std() / 256**0.5  # 256 sets of probes are independent


def test_the_same_chunk_gets_the_same_probes(small):
    guessed = FlowLikelihood(ReFlow(small("reflow"), Linear()), 4, probes=2)
    x = torch.randn(64, *SHAPE)
    assert torch.equal(guessed.chosen_probes(x), guessed.chosen_probes(x.clone()))
    assert guessed.chosen_probes(x).unique(dim=1).shape[1] > 8


def test_a_diffusion_of_a_normal_action_has_its_density(small):
    policy = DDPM(small("ddpm", denoised_clip=10.0), NoiseOfGaussian())
    x = 0.2 + 0.1 * torch.randn(32, *SHAPE)
    found = FlowLikelihood(policy, num_steps=150, probes=0).log_density(x, torch.zeros(32, 10))
    expected = torch.distributions.Normal(0.2, 0.1).log_prob(x).sum((1, 2))
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("family", ["reflow", "shortcut", "meanflow", "improved_meanflow", "ddpm"])
@pytest.mark.parametrize("probes", [0, 2])
def test_the_ratio_of_what_was_drawn_is_one_and_moves_with_the_weights(make_policy, family, probes):
    policy = make_policy(family, initial_noise_scale=1.0)
    actor = make_stochastic(policy, 3, NoiseNetConfig(likelihood="exact", likelihood_probes=probes))
    cond, scored = torch.randn(6, 10), torch.ones(1, 8, 3).bool()
    with torch.no_grad():
        chain = sample_chain(actor, cond, scored, torch.Generator().manual_seed(0))
    assert torch.equal(chain.chunk, policy.sample(cond, chain.states[:, 0], 3))
    again = actor.steps(chain.states[:, :-1], cond).log_prob(chain.states[:, 1:], scored)
    torch.testing.assert_close(again.detach(), chain.log_prob, rtol=1e-5, atol=1e-3)
    again.sum().backward()
    assert sum(p.grad.abs().sum() for p in actor.velocity_parameters() if p.grad is not None) > 0


@pytest.mark.parametrize(
    ("family", "changes", "word"),
    [("mip", {}, "mip"), ("gaussian", {}, "gaussian"), ("consistency", {"initial_noise_scale": 1.0}, "consistency"),
     ("reflow", {"initial_noise_scale": 0.0}, "initial_noise_scale"),
     ("reflow", {"initial_noise_scale": 1.0, "ft_denoising_steps": 2}, "ft_denoising_steps")],
)  # fmt: skip
def test_what_has_no_such_likelihood_is_refused(make_policy, family, changes, word):
    policy = make_policy(family, **changes)
    with pytest.raises(UserError, match=word):
        make_stochastic(policy, 4, NoiseNetConfig(likelihood="exact"))


def test_it_has_no_density_of_single_numbers_to_compare_in_closed_form(small):
    actor = FlowLikelihood(ReFlow(small("reflow"), Linear()), 2, probes=0)
    law = actor.steps(torch.zeros(1, 1, *SHAPE), torch.zeros(1, 10))
    assert not law.comparable
    with pytest.raises(ValueError, match="closed form"):
        law.kl(law, ALL)


def test_a_normal_chain_is_something_else_than_the_exact_likelihood(small):
    # of a step of std .1 around x_1, at x_1: -4 log(.1) - 4 * .9189
    policy = ReFlow(small("reflow"), Linear())
    x = torch.zeros(1, 1, *SHAPE)
    found = chain_log_prob(torch.cat((x, x), 1), x, torch.full_like(x, 0.1), ALL)
    law = FlowLikelihood(policy, 1, probes=0).steps(x, torch.zeros(1, 10))
    assert (found - law.log_prob(x, ALL)).abs() > 1
