"""Flow policies: an average velocity, and Euler steps along it on the one time grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nets.velocity import VelocityNet
from reinflow.policies.base import Policy
from reinflow.policies.noisy import NoisyFlow
from reinflow.policies.parts import NETS, NoiseNetConfig
from reinflow.policies.spec import PolicySpec
from reinflow.policies.times import time_grid

N = TypeVar("N", bound=nn.Module)


class FlowPolicy(Policy):
    """Samplable; families say which step size their network is shown and how `loss` trains it.

    With `ft_denoising_steps` in its spec, the first steps of a chain are those of `held_net`.
    """

    integrable: ClassVar[bool] = True
    """whether it follows the velocity that `velocity_now` gives"""
    held_net: VelocityNet | None

    def __init__(self, spec: PolicySpec, net: nn.Module):
        super().__init__(spec, net)
        holds = spec.ft_denoising_steps is not None
        self.held_net = cast(VelocityNet, constant(NETS[spec.net].build(spec))) if holds else None

    def time_label(self, t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """What the network is shown of a time."""
        return t

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
        return self.net(x, self.time_label(t), self.step_label(d), cond)

    def velocity_now(
        self, x: Float[Tensor, "b h a"], t: Float[Tensor, "b"], cond: Float[Tensor, "b z"]
    ) -> Float[Tensor, "b h a"]:
        """Velocity at t itself, which leads to where sampling in many steps does."""
        return self.avg_velocity(x, t, torch.zeros_like(t), cond)

    def avg_velocity_grid(
        self, x: Float[Tensor, "b k h a"], t: Float[Tensor, "k"], d: Float[Tensor, "k"], cond: Float[Tensor, "b z"]
    ) -> Float[Tensor, "b k h a"]:
        """`avg_velocity` of chains, each state at its own time."""
        return cast(VelocityNet, self.net).grid(x, self.time_label(t), self.step_label(d), cond)

    def velocity_at(
        self, t: Float[Tensor, "k"], d: Float[Tensor, "k"], cond: Float[Tensor, "b z"]
    ) -> Callable[[int, Float[Tensor, "b h a"]], Float[Tensor, "b h a"]]:
        """(k, x) -> `avg_velocity` at t[k]; what does not depend on x is computed here, for all k at once."""
        net, held = cast(VelocityNet, self.net), self.spec.held_steps(len(t))
        times, sizes = self.time_label(t), self.step_label(d)
        features = net.features(times[held:], sizes[held:], cond).unbind(1)
        if not held:
            return lambda k, x: net.velocity(x, features[k])
        first = cast(VelocityNet, self.held_net)
        early = first.features(times[:held], sizes[:held], cond).unbind(1)
        return lambda k, x: first.velocity(x, early[k]) if k < held else net.velocity(x, features[k - held])

    def step_means(
        self, cond: Float[Tensor, "b z"], num_steps: int
    ) -> Callable[[int, Float[Tensor, "b h a"]], Float[Tensor, "b h a"]]:
        """(k, x_k) -> x_{k+1} of a chain without exploration noise, by Euler's rule."""
        times, d = time_grid(num_steps, cond.device)
        velocity = self.velocity_at(times, torch.full_like(times, d), cond)
        return lambda k, x: x + d * velocity(k, x)

    def all_step_means(
        self, x: Float[Tensor, "b k h a"], cond: Float[Tensor, "b z"], num_steps: int
    ) -> Float[Tensor, "b k h a"]:
        """`step_means` at the last k states x_{K-k} .. x_{K-1} of given chains, in one forward of b*k rows."""
        times, d = time_grid(num_steps, x.device)
        times = times[-x.shape[1] :]
        return x + d * self.avg_velocity_grid(x, times, torch.full_like(times, d), cond)

    def sample(
        self, cond: Float[Tensor, "b z"], noise: Float[Tensor, "b h a"], num_steps: int | None = None
    ) -> Float[Tensor, "b h a"]:
        """All steps from x_0 = `noise` to x_1."""
        num_steps = num_steps or self.spec.num_inference_steps
        step = self.step_means(cond, num_steps)
        x = noise
        for k in range(num_steps):
            x = step(k, x)
        return x

    def in_one_step(self, cond: Float[Tensor, "b z"], noise: Float[Tensor, "b h a"]) -> Float[Tensor, "b h a"]:
        """The chunk that one step over the whole interval leads to."""
        return self.sample(cond, noise, 1)

    def chain(self, num_steps: int, config: NoiseNetConfig) -> NoisyFlow:
        """Its own steps, with learned noise added to each (ReinFlow, arXiv:2505.22094)."""
        return NoisyFlow(self, num_steps, config)


def constant(net: N) -> N:
    """`net` with buffers in place of parameters, which no optimiser moves and no average follows."""
    for module in net.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, parameter.detach())
    return net
