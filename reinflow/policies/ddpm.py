"""Diffusion policy (DDPM, Ho et al., arXiv:2006.11239; DPPO, arXiv:2409.00588): the network predicts the noise x_0.

    x = alpha_i x_1 + sigma_i x_0,   alpha_i^2 + sigma_i^2 = 1,   i = T - 1 (noise) .. 0,   of a cosine schedule

Sampling is DDIM's (Song et al., arXiv:2010.02502) in any number of steps: from index i to a smaller one j,

    x_1 = clip((x - sigma_i eps) / alpha_i),   x' = alpha_j x_1 + sigma_j (x - alpha_i x_1) / sigma_i

A chain for PPO adds noise to each step, of std max(eta s, learned) with the posterior's s, which is DDPM's where eta is
1 and all levels are steps; the mean keeps its noise level: sqrt(sigma_j^2 - (eta s)^2) in place of sigma_j.

    s = sigma_j / sigma_i sqrt(1 - alpha_i^2 / alpha_j^2)

Differs: DPPO's floor of the std is a constant, here it is the learned noise of the flows between its bounds; without
exploring, actions are a function of x_0 (eta is 0 then). The network is shown i as the time 1 - (i + 1) / T, which runs
from noise to data here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from nets.velocity import VelocityNet
from reinflow.policies.flow import FlowPolicy
from reinflow.policies.noisy import NoisyFlow
from reinflow.policies.options import DDPMConfig
from reinflow.policies.parts import NoiseNetConfig
from reinflow.policies.spec import PolicySpec

MAX_BETA = 0.999


class DDPM(FlowPolicy):
    """Regressable, Scored and Samplable, in one step badly; `initial_noise_scale` is that of a flow."""

    alpha: Tensor
    in_one_step = None  # type: ignore[assignment]  # not OneStep: at pure noise it knows nothing of actions

    def __init__(self, spec: PolicySpec, net: nn.Module):
        super().__init__(spec, net)
        self.config: DDPMConfig = spec.family_options
        self.register_buffer("alpha", cosine_alphas(self.config.diffusion_steps), persistent=False)

    def steps_warning(self, num_steps: int) -> str | None:
        """A sentence where K is 1: the noise in pure noise says nothing of actions."""
        if num_steps > 1:
            return None
        return "K = 1: a diffusion policy knows nothing of actions at pure noise, choose several denoising steps"

    def loss(
        self, cond: Float[Tensor, "b z"], chunk: Float[Tensor, "b h a"], teacher: nn.Module | None = None
    ) -> Float[Tensor, "b"]:
        """Squared error of the noise per row."""
        x, index, x_0 = self.noised(chunk)
        return (self.noise_in(x, index, cond) - x_0).square().mean((1, 2))

    def noised(self, chunk: Float[Tensor, "b h a"]) -> tuple[Tensor, Int[Tensor, "b"], Float[Tensor, "b h a"]]:
        """Chunks at noise levels drawn evenly, these levels, and the noise x_0 that is in them."""
        x_0 = torch.randn_like(chunk)
        index = torch.randint(self.config.diffusion_steps, (len(chunk),), device=chunk.device)
        alpha, sigma = self.levels(index)
        return alpha * chunk + sigma * x_0, index, x_0

    def noise_in(
        self, x: Float[Tensor, "b h a"], level: Int[Tensor, "b"], cond: Float[Tensor, "b z"]
    ) -> Float[Tensor, "b h a"]:
        """What the network takes for x_0; -sigma times the score of the policy at that level."""
        t = self.times(level)
        return self.net(x, t, torch.zeros_like(t), cond)

    def levels(self, index: Int[Tensor, "n"]) -> tuple[Float[Tensor, "n 1 1"], Float[Tensor, "n 1 1"]]:
        """Shares of action and noise."""
        alpha = self.alpha[index][:, None, None]
        return alpha, (1 - alpha.square()).sqrt()

    def times(self, index: Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        """What the network is shown of an index i: 1 - (i + 1) / T, so 0 is the noisiest level."""
        return 1 - (index + 1) / self.config.diffusion_steps

    def indices(self, num_steps: int, device: torch.device) -> Int[Tensor, "k"]:
        """The noise level that each step starts from, evenly from the last to the first."""
        left = 1 - torch.arange(num_steps, device=device) / num_steps
        return (left * self.config.diffusion_steps).round().long().clamp_min(1) - 1

    def step_means(
        self, cond: Float[Tensor, "b z"], num_steps: int, eta: float = 0.0
    ) -> Callable[[int, Float[Tensor, "b h a"]], Float[Tensor, "b h a"]]:
        """(k, x_k) -> x_{k+1} by DDIM's rule, or its mean where noise comes to it."""
        index = self.indices(num_steps, cond.device)
        noise = self.velocity_at(self.times(index), torch.zeros(num_steps, device=cond.device), cond)
        factors = torch.stack(self.factors(index, eta)).unbind(1)
        return lambda k, x: self.stepped(x, noise(k, x), *factors[k])

    def all_step_means(
        self, x: Float[Tensor, "b k h a"], cond: Float[Tensor, "b z"], num_steps: int, eta: float = 0.0
    ) -> Float[Tensor, "b k h a"]:
        """`step_means` at the last k states of given chains, in one forward of b*k rows."""
        index, last = self.indices(num_steps, x.device), slice(-x.shape[1], None)
        times = self.times(index[last])
        noise = cast(VelocityNet, self.net).grid(x, times, torch.zeros_like(times), cond)
        return self.stepped(x, noise, *(factor[last] for factor in self.factors(index, eta)))

    def velocity_now(
        self, x: Float[Tensor, "b h a"], t: Float[Tensor, "b"], cond: Float[Tensor, "b z"]
    ) -> Float[Tensor, "b h a"]:
        """dx/dt of the probability flow: with the angle a whose cosine is alpha, linear in t between two levels,

        x' = a' (cos a eps - sin a x_1). DDIM's step, that keeps eps where x_1 is clipped, is exact on it.
        """
        angles = torch.cat((self.alpha.flip(0).acos(), self.alpha.new_zeros(1)))
        place = t * self.config.diffusion_steps
        level = place.long().clamp(0, self.config.diffusion_steps - 1)
        turn = angles[level + 1] - angles[level]
        angle = (angles[level] + (place - level) * turn)[:, None, None]
        noise = self.net(x, t, torch.zeros_like(t), cond)
        limit = self.config.denoised_clip
        action = ((x - angle.sin() * noise) / angle.cos()).clamp(-limit, limit)
        speed = (turn * self.config.diffusion_steps)[:, None, None]
        return speed * (angle.cos() * noise - angle.sin() * action)

    def factors(self, index: Int[Tensor, "k"], eta: float = 0.0) -> tuple[Float[Tensor, "k 1 1"], ...]:
        """Shares of action and noise before and after every step; nothing is left of the noise after the last."""
        alpha, sigma = self.levels(index)
        after = torch.cat((alpha[1:], torch.ones_like(alpha[:1]))), torch.cat((sigma[1:], torch.zeros_like(sigma[:1])))
        if eta:
            added = eta * self.posterior_stds(index)[:, None, None]
            after = after[0], (after[1].square() - added.square()).clamp_min(0).sqrt()
        return alpha, sigma, *after

    def posterior_stds(self, index: Int[Tensor, "k"]) -> Float[Tensor, "k"]:
        """s of every step (DDIM's eq. 16 at eta = 1); 0 in the last, which ends at the action."""
        alpha, sigma, next_alpha, next_sigma = (factor[:, 0, 0] for factor in self.factors(index))
        return next_sigma / sigma * (1 - (alpha / next_alpha).square()).clamp_min(0).sqrt()

    def chain(self, num_steps: int, config: NoiseNetConfig) -> NoisyDDPM:
        """Its own steps, with the share `eta` of the posterior's noise and with learned noise as its floor."""
        return NoisyDDPM(self, num_steps, config)

    def stepped(
        self,
        x: Float[Tensor, "b *k h a"],
        noise: Float[Tensor, "b *k h a"],
        alpha: Tensor,
        sigma: Tensor,
        next_alpha: Tensor,
        next_sigma: Tensor,
    ) -> Float[Tensor, "b *k h a"]:
        """The next state, by the noise that was predicted in this one."""
        limit = self.config.denoised_clip
        action = ((x - sigma * noise) / alpha).clamp(-limit, limit)
        return next_alpha * action + next_sigma * (x - alpha * action) / sigma


class NoisyDDPM(NoisyFlow):
    """Stochastic: the noise of a diffusion chain, and no less than the learned noise."""

    policy: DDPM

    def __init__(self, policy: DDPM, num_steps: int, config: NoiseNetConfig):
        super().__init__(policy, num_steps, config)
        self.eta = config.eta

    def own_stds(self) -> list[float]:
        """Of the posterior, times eta."""
        index = self.policy.indices(self.all_steps, self.policy.device)
        return (self.eta * self.policy.posterior_stds(index)).tolist()

    def step_means(self, cond: Float[Tensor, "b z"]) -> Callable[[int, Float[Tensor, "b h a"]], Float[Tensor, "b h a"]]:
        """(k, x_k) -> the mean of x_{k+1}, which leaves room for the noise."""
        return self.policy.step_means(cond, self.all_steps, self.eta)

    def all_step_means(self, x: Float[Tensor, "b k h a"], cond: Float[Tensor, "b z"]) -> Float[Tensor, "b k h a"]:
        """The same of the steps that are not held, in one forward."""
        return self.policy.all_step_means(x, cond, self.all_steps, self.eta)

    def stds(self, cond: Float[Tensor, "b z"]) -> Float[Tensor, "b k h a"]:
        """The larger of the posterior's and the learned, of every step that is not held."""
        learned = super().stds(cond)
        if not self.eta:
            return learned
        index = self.policy.indices(self.all_steps, cond.device)[-self.num_steps :]
        return torch.maximum(learned, self.eta * self.policy.posterior_stds(index)[:, None, None])


def cosine_alphas(num_steps: int) -> Float[Tensor, "t"]:
    """sqrt of the running product of 1 - beta (Nichol and Dhariwal, arXiv:2102.09672)."""

    def left(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - left((i + 1) / num_steps) / left(i / num_steps), MAX_BETA) for i in range(num_steps)]
    return (1 - torch.tensor(betas, dtype=torch.float64)).cumprod(0).sqrt().float()
