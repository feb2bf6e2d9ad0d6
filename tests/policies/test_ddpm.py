"""Diffusion policies: the schedule, one step by hand, and sampling that is exact where the noise is known."""

from __future__ import annotations

import pytest
import torch

from nets.velocity import VelocityNet
from reinflow.errors import UserError
from reinflow.policies import NoiseNetConfig, make_stochastic
from reinflow.policies.ddpm import DDPM, cosine_alphas
from reinflow.policies.options import DDPMConfig


class Exact(VelocityNet):
    """The noise of a task whose only action is .5: (x - alpha / 2) / sigma, with alpha from the time."""

    def __init__(self, steps: int):
        super().__init__()
        self.alphas = cosine_alphas(steps)

    def times(self, timestep, step_size):
        index = ((1 - timestep) * len(self.alphas)).round().long() - 1
        return self.alphas[index].unsqueeze(-1)

    def condition(self, global_cond):
        return torch.zeros(len(global_cond), 1)

    def velocity(self, sample, features):
        alpha = features.unsqueeze(-1)
        return (sample - alpha / 2) / (1 - alpha.square()).sqrt()


def test_the_schedule_is_that_of_the_cosine():
    # 1 - beta multiplies to cos^2((t + .008) / 1.008 * pi / 2) over its value at 0, but for the clipped last beta
    alphas = cosine_alphas(20).double()
    t = (torch.arange(20).double() + 1) / 20
    left = ((t + 0.008) / 1.008 * torch.pi / 2).cos() ** 2 / torch.tensor(0.008 / 1.008 * torch.pi / 2).cos() ** 2
    torch.testing.assert_close(alphas[:-1].square(), left[:-1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(alphas[-1].square(), 0.001 * alphas[-2].square(), rtol=1e-4, atol=1e-9)
    assert (alphas.diff() < 0).all()


@pytest.mark.parametrize("num_steps", [1, 2, 5, 20, 30])
def test_sampling_with_the_true_noise_ends_at_the_action(make_spec, num_steps):
    policy = DDPM(make_spec("ddpm"), Exact(20))
    chunk = policy.sample(torch.zeros(4, 10), torch.randn(4, 8, 3), num_steps)
    torch.testing.assert_close(chunk, torch.full((4, 8, 3), 0.5), rtol=0, atol=2e-3)


def test_all_noise_levels_are_visited_and_fewer_steps_take_even_ones(make_spec):
    policy = DDPM(make_spec("ddpm"), Exact(20))
    assert policy.indices(20, policy.device).tolist() == list(range(19, -1, -1))
    assert policy.indices(4, policy.device).tolist() == [19, 14, 9, 4]
    assert policy.times(policy.indices(4, policy.device)).tolist() == [0.0, 0.25, 0.5, 0.75]


def test_one_step_by_hand(make_spec):
    # alpha .6, sigma .8: x_1 = (1 - .8 * .5) / .6 = 1, inside; x' = .8 * 1 + .6 * (1 - .6) / .8 = 1.1
    # noise -1: x_1 = 1.8 / .6 = 3, clipped to 1, so that x' is the same
    policy = DDPM(make_spec("ddpm"), Exact(20))
    values = [torch.tensor(value) for value in (0.6, 0.8, 0.8, 0.6)]
    for noise in (0.5, -1.0):
        stepped = policy.stepped(torch.ones(1, 1, 1), torch.full((1, 1, 1), noise), *values)
        torch.testing.assert_close(stepped, torch.full((1, 1, 1), 1.1))


def test_the_loss_is_that_of_the_drawn_noise(make_policy):
    policy = make_policy("ddpm")
    cond, chunk = torch.randn(64, 10), torch.rand(64, 8, 3)
    torch.manual_seed(3)
    loss = policy.loss(cond, chunk)
    torch.manual_seed(3)
    x_0, index = torch.randn_like(chunk), torch.randint(20, (64,))
    alpha = policy.alpha[index][:, None, None]
    x = alpha * chunk + (1 - alpha**2).sqrt() * x_0
    noise = policy.net(x, 1 - (index + 1) / 20, torch.zeros(64), cond)
    torch.testing.assert_close(loss, (noise - x_0).square().mean((1, 2)))


def test_one_step_is_warned_about(make_policy):
    policy = make_policy("ddpm")
    assert "several" in policy.steps_warning(1)
    assert policy.steps_warning(5) is None


@pytest.mark.parametrize("changes", [{"diffusion_steps": 0}, {"denoised_clip": 0.0}])
def test_impossible_options_are_refused(changes):
    with pytest.raises(UserError, match=f"--{next(iter(changes))}"):
        DDPMConfig(**changes)


def test_with_eta_1_and_all_levels_a_chain_has_the_posterior_of_ddpm(make_policy):
    # Ho et al., eq. 7: mean = sqrt(abar') b / (1 - abar) x_1 + sqrt(a) (1 - abar') / (1 - abar) x, var = (1 - abar') /
    # (1 - abar) b, where abar = alpha^2, ' is the next level, a = abar / abar' and b = 1 - a
    policy = make_policy("ddpm", denoised_clip=1e6)
    actor = make_stochastic(policy, 20, NoiseNetConfig(eta=1.0))
    actor.set_noise_bounds_(1e-6, 1e-6)
    cond, x = torch.randn(4, 10), torch.randn(4, 8, 3)
    kernel, levels = actor.kernel(cond), policy.alpha.double().square().flip(0)
    for k in (3, 7, 18):
        now, after = levels[k], levels[k + 1]
        b = 1 - now / after
        noise = policy.net(x, torch.full((4,), k / 20), torch.zeros(4), cond).double()
        action = (x - (1 - now).sqrt() * noise) / now.sqrt()
        mean = after.sqrt() * b / (1 - now) * action + (now / after).sqrt() * (1 - after) / (1 - now) * x
        step = kernel(k, x)
        torch.testing.assert_close(step.means.double(), mean, rtol=1e-3, atol=1e-3)
        std = ((1 - after) / (1 - now) * b).sqrt().float()
        torch.testing.assert_close(step.stds, std.expand(4, 8, 3), rtol=1e-3, atol=1e-5)
    assert kernel(19, x).stds.max() < 1e-5  # the last step ends at the action


def test_learned_noise_is_the_floor_of_the_posteriors(make_policy):
    actor = make_stochastic(make_policy("ddpm"), 20, NoiseNetConfig(eta=0.5))
    actor.set_noise_bounds_(0.1, 0.1)
    stds = actor.stds(torch.randn(1, 10))[0, :, 0, 0]
    own = torch.tensor(actor.own_stds())
    torch.testing.assert_close(stds, own.clamp_min(0.1))
    assert (own > 0.1).any() and (own < 0.1).any()


def test_a_chain_with_the_true_noise_keeps_the_level_of_its_noise(make_spec):
    # of a task whose only action is .5, x_k is N(alpha_k / 2, sigma_k^2), whatever eta is
    policy = DDPM(make_spec("ddpm", denoised_clip=100.0), Exact(20))
    actor = make_stochastic(policy, 20, NoiseNetConfig(eta=1.0))
    actor.set_noise_bounds_(1e-6, 1e-6)
    cond = torch.zeros(2000, 10)
    kernel, x = actor.kernel(cond), torch.randn(2000, 8, 3)
    for k in range(10):
        x = kernel(k, x).draw(x, torch.randn_like(x))
    alpha = policy.alpha[20 - 1 - 10]
    torch.testing.assert_close(x.std(), (1 - alpha.square()).sqrt(), rtol=0.02, atol=0)
    torch.testing.assert_close(x.mean(), alpha / 2, rtol=0, atol=0.02)


def test_eta_is_for_diffusion_chains(make_policy):
    with pytest.raises(UserError, match="--eta"):
        make_stochastic(make_policy("reflow"), 4, NoiseNetConfig(eta=1.0))
    with pytest.raises(UserError, match="--eta"):
        NoiseNetConfig(eta=1.5)
