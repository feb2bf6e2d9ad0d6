"""A flow made stochastic by learned noise at every denoising step: what PPO fine-tunes (ReinFlow, arXiv:2505.22094)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nets.noise import ExploreNoiseNet, StepNoise
from reinflow.policies.parts import NoiseNetConfig
from reinflow.policies.spec import PolicySpec
from reinflow.policies.times import time_grid
from reinflow.policies.transition import Transition
from reinflow.types import Kernel

TIME_EMBED_DIM = 64


@runtime_checkable
class Stepwise(Protocol):
    """What goes from noise to an action in steps, as flows do."""

    spec: PolicySpec
    net: nn.Module

    def initial_noise(self, rows: int, generator: torch.Generator | None = None) -> Float[Tensor, "b h a"]:
        """Drawn x_0."""
        ...

    def step_means(
        self, cond: Float[Tensor, "b z"], num_steps: int
    ) -> Callable[[int, Float[Tensor, "b h a"]], Float[Tensor, "b h a"]]:
        """(k, x_k) -> x_{k+1} without exploration noise."""
        ...

    def all_step_means(self, x: Float[Tensor, "b k h a"], cond: Float[Tensor, "b z"]) -> Float[Tensor, "b k h a"]:
        """`step_means` at x_0 .. x_{K-1} of given chains, in one forward."""
        ...


class NoisyFlow(nn.Module):
    """Stochastic; shares the flow's network, so training it trains `policy`."""

    def __init__(self, policy: Stepwise, num_steps: int, config: NoiseNetConfig):
        super().__init__()
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
        self.noisy_net = StepNoise(noise_net, TIME_EMBED_DIM)

    def start(self, cond: Float[Tensor, "b z"], generator: torch.Generator | None = None) -> Float[Tensor, "b h a"]:
        """x_0 as the policy draws it; learned noise comes to the steps alone."""
        return self.policy.initial_noise(len(cond), generator)

    def kernel(self, cond: Float[Tensor, "b z"]) -> Kernel:
        """The flow's own step and the learned std, on the grid that `sample` uses."""
        mean = self.policy.step_means(cond, self.num_steps)
        stds = self.stds(cond).unbind(1)
        return lambda k, x: Transition(mean(k, x), stds[k])

    def steps(self, x: Float[Tensor, "b k h a"], cond: Float[Tensor, "b z"]) -> Transition:
        """All steps at once, in one forward of b*k rows."""
        return Transition(self.policy.all_step_means(x, cond), self.stds(cond))

    def stds(self, cond: Float[Tensor, "b z"]) -> Float[Tensor, "b k h a"]:
        """Of every step."""
        times, _ = time_grid(self.num_steps, cond.device)
        return self.noisy_net.noise_stds(times, cond, self.policy.spec.pred_horizon)

    def set_noise_bounds_(self, min_std: float, max_std: float) -> None:
        """Bounds of every step's std in normalised action units, in place."""
        self.noisy_net.explore_noise_net.set_bounds_(min_std, max_std)

    def velocity_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the flow's own network, for an optimiser group of their own."""
        return self.policy.net.parameters()

    def noise_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the noise network and of its own embedding of time."""
        yield from self.noisy_net.explore_noise_net.parameters()
        yield from self.noisy_net.time_embedding.parameters()
