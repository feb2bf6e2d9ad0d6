"""Flow policies: an average velocity, the one time grid, and Euler sampling along it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor

from nets.velocity import VelocityNet
from reinflow.policies.base import Policy
from reinflow.policies.parts import FamilyConfig


def time_grid(num_steps: int, device: torch.device | None = None) -> tuple[Float[Tensor, "k"], float]:
    """Times t_k = k/K and the step size 1/K, for sampling and for scoring."""
    return torch.arange(num_steps, device=device) / num_steps, 1.0 / num_steps


def interpolate(
    x_0: Float[Tensor, "b h a"], x_1: Float[Tensor, "b h a"], t: Float[Tensor, "b"]
) -> Float[Tensor, "b h a"]:
    """x_t = (1 - t) x_0 + t x_1"""
    return torch.lerp(x_0, x_1, t[:, None, None])


@dataclass(frozen=True)
class FlowConfig(FamilyConfig):
    """Options of a flow."""

    noise_scale: ClassVar[float] = 0.0


class FlowPolicy(Policy):
    """Samplable; families say which step size their network is shown and how `loss` trains it."""

    def step_label(self, d: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """What the network is shown of a step size: the one rule of training, sampling and scoring."""
        return d

    def avg_velocity(
        self,
        x: Float[Tensor, "b h a"],
        t: Float[Tensor, "b_or_1"],
        d: Float[Tensor, "b_or_1"],
        cond: Float[Tensor, "b z"],
    ) -> Float[Tensor, "b h a"]:
        """Velocity averaged over [t, t + d]."""
        return self.net(x, t, self.step_label(d), cond)

    def avg_velocity_grid(
        self, x: Float[Tensor, "b k h a"], t: Float[Tensor, "k"], d: Float[Tensor, "k"], cond: Float[Tensor, "b z"]
    ) -> Float[Tensor, "b k h a"]:
        """`avg_velocity` of chains, each state at its own time."""
        return cast(VelocityNet, self.net).grid(x, t, self.step_label(d), cond)

    def velocity_at(
        self, t: Float[Tensor, "k"], d: Float[Tensor, "k"], cond: Float[Tensor, "b z"]
    ) -> Callable[[int, Float[Tensor, "b h a"]], Float[Tensor, "b h a"]]:
        """(k, x) -> `avg_velocity` at t[k]; what does not depend on x is computed here, for all k at once."""
        net = cast(VelocityNet, self.net)
        features = net.features(t, self.step_label(d), cond).unbind(1)
        return lambda k, x: net.velocity(x, features[k])

    def sample(
        self, cond: Float[Tensor, "b z"], noise: Float[Tensor, "b h a"], num_steps: int | None = None
    ) -> Float[Tensor, "b h a"]:
        """Euler steps from x_0 = `noise` to x_1."""
        times, d = time_grid(num_steps or self.spec.num_inference_steps, noise.device)
        velocity = self.velocity_at(times, torch.full_like(times, d), cond)
        x = noise
        for k in range(len(times)):
            x = x + d * velocity(k, x)
        return x
