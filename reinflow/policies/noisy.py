"""A flow made stochastic by learned noise at every denoising step: what PPO fine-tunes (ReinFlow, arXiv:2505.22094)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nets.noise import ExploreNoiseNet, NoisyVelocityUNet1D
from reinflow.policies.flow import FlowPolicy, time_grid
from reinflow.types import Kernel

TIME_EMBED_DIM = 64


@dataclass(frozen=True)
class NoiseNetConfig:
    """The network that predicts the exploration noise."""

    noise_hidden_dim: int = 128
    """width of its two hidden layers"""
    noise_per_position: bool = False
    """one std per chunk position and action dimension instead of one per action dimension"""


class NoisyFlow(nn.Module):
    """Stochastic; shares the flow's network, so training it trains `policy`."""

    def __init__(self, policy: FlowPolicy, num_steps: int, config: NoiseNetConfig | None = None):
        super().__init__()
        config = config or NoiseNetConfig()
        spec = policy.spec
        self.policy = policy
        self.num_steps = num_steps
        noise_net = ExploreNoiseNet(
            TIME_EMBED_DIM,
            spec.cond_dim,
            spec.action_dim,
            hidden_dim=config.noise_hidden_dim,
            horizon=spec.pred_horizon if config.noise_per_position else None,
        )
        self.noisy_net = NoisyVelocityUNet1D(VelocityOf(policy), noise_net, TIME_EMBED_DIM)

    def start(self, cond: Float[Tensor, "b z"], generator: torch.Generator | None = None) -> Float[Tensor, "b h a"]:
        return self.policy.initial_noise(len(cond), generator)

    def kernel(self, cond: Float[Tensor, "b z"]) -> Kernel:
        """Mean x + v/K and the learned std, on the grid that `sample` uses."""
        times, d = time_grid(self.num_steps, cond.device)
        velocity = self.policy.velocity_at(times, torch.full_like(times, d), cond)
        stds = self.noisy_net.noise_stds(times, cond, self.policy.spec.pred_horizon).unbind(1)
        return lambda k, x: (x + d * velocity(k, x), stds[k])

    def steps(
        self, x: Float[Tensor, "b k h a"], cond: Float[Tensor, "b z"]
    ) -> tuple[Float[Tensor, "b k h a"], Float[Tensor, "b k h a"]]:
        """All steps at once, in one forward of b*k rows."""
        times, d = time_grid(self.num_steps, x.device)
        velocity, std = self.noisy_net.grid(x, times, torch.full_like(times, d), cond)
        return x + d * velocity, std

    def set_noise_bounds_(self, min_std: float, max_std: float) -> None:
        """Bounds of every step's std in normalised action units, in place."""
        self.noisy_net.explore_noise_net.set_bounds_(min_std, max_std)

    def velocity_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the flow's own network, for an optimiser group of their own."""
        return self.policy.net.parameters()

    def noise_parameters(self) -> Iterator[nn.Parameter]:
        yield from self.noisy_net.explore_noise_net.parameters()
        yield from self.noisy_net.time_embedding.parameters()


class VelocityOf(nn.Module):
    """A family's average velocity as a network, without owning its parameters a second time."""

    def __init__(self, policy: FlowPolicy):
        super().__init__()
        self._policy = (policy,)

    def forward(
        self, x: Float[Tensor, "b h a"], t: Float[Tensor, "b"], d: Float[Tensor, "b"], cond: Float[Tensor, "b z"]
    ) -> Float[Tensor, "b h a"]:
        return self._policy[0].avg_velocity(x, t, d, cond)

    def grid(
        self, x: Float[Tensor, "b k h a"], t: Float[Tensor, "k"], d: Float[Tensor, "k"], cond: Float[Tensor, "b z"]
    ) -> Float[Tensor, "b k h a"]:
        return self._policy[0].avg_velocity_grid(x, t, d, cond)
