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

    def all_step_means(
        self, x: Float[Tensor, "b k h a"], cond: Float[Tensor, "b z"], num_steps: int
    ) -> Float[Tensor, "b k h a"]:
        """`step_means` at the last k states x_{K-k} .. x_{K-1} of given chains, in one forward."""
        ...


class NoisyFlow(nn.Module):
    """Stochastic; shares the flow's network, so training it trains `policy`.

    The `held` first of `all_steps` steps, which the policy keeps from fine-tuning, lead to where its chain starts.
    """

    def __init__(self, policy: Stepwise, num_steps: int, config: NoiseNetConfig):
        super().__init__()
        spec = policy.spec
        self.policy = policy
        self.all_steps = num_steps
        self.held = spec.held_steps(num_steps)
        self.num_steps = num_steps - self.held
        noise_net = ExploreNoiseNet(
            TIME_EMBED_DIM,
            spec.cond_dim,
            spec.action_dim,
            hidden_dim=config.noise_hidden_dim,
            horizon=spec.pred_horizon if config.noise_per_position else None,
        )
        self.noisy_net = StepNoise(noise_net, TIME_EMBED_DIM)

    def start(self, cond: Float[Tensor, "b z"], generator: torch.Generator | None = None) -> Float[Tensor, "b h a"]:
        """x_0 as the policy draws it, after the held steps where there are any; learned noise comes to the others."""
        x = self.policy.initial_noise(len(cond), generator)
        if not self.held:
            return x
        mean = self.step_means(cond)
        for k, std in enumerate(self.own_stds()[: self.held]):
            x = mean(k, x)
            if std:
                x = x + std * torch.randn(x.shape, generator=generator, device=x.device)
        return x

    def own_stds(self) -> list[float]:
        """Of the noise that each of all steps has besides the learned noise: none in a flow."""
        return [0.0] * self.all_steps

    def step_means(self, cond: Float[Tensor, "b z"]) -> Callable[[int, Float[Tensor, "b h a"]], Float[Tensor, "b h a"]]:
        """(k, x_k) -> the mean of x_{k+1}, of all steps."""
        return self.policy.step_means(cond, self.all_steps)

    def all_step_means(self, x: Float[Tensor, "b k h a"], cond: Float[Tensor, "b z"]) -> Float[Tensor, "b k h a"]:
        """The same of the steps that are not held, in one forward."""
        return self.policy.all_step_means(x, cond, self.all_steps)

    def kernel(self, cond: Float[Tensor, "b z"]) -> Kernel:
        """The flow's own step and the learned std, on the grid that `sample` uses."""
        mean = self.step_means(cond)
        stds = self.stds(cond).unbind(1)
        return lambda k, x: Transition(mean(k + self.held, x), stds[k])

    def steps(self, x: Float[Tensor, "b k h a"], cond: Float[Tensor, "b z"]) -> Transition:
        """All steps at once, in one forward of b*k rows."""
        return Transition(self.all_step_means(x, cond), self.stds(cond))

    def stds(self, cond: Float[Tensor, "b z"]) -> Float[Tensor, "b k h a"]:
        """Of every step that is not held."""
        times, _ = time_grid(self.all_steps, cond.device)
        return self.noisy_net.noise_stds(times[self.held :], cond, self.policy.spec.pred_horizon)

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
