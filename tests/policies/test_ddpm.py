"""Diffusion policies: the schedule, one step by hand, and sampling that is exact where the noise is known."""

from __future__ import annotations

import pytest
import torch

from nets.velocity import VelocityNet
from reinflow.errors import UserError
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
