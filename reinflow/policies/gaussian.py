"""Gaussian policy over action chunks: a chain of one step with a state-independent learned std.

It reads its mean from a velocity network at x = 0, t = 0, d = 1, so that every backbone serves it. Cloning fits the
mean only; the std is for exploration and is learned by PPO inside the same bounds as a flow's noise.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nets.noise import BoundedStd
from reinflow.policies.base import Policy
from reinflow.policies.parts import NoiseNetConfig
from reinflow.policies.spec import PolicySpec
from reinflow.policies.transition import Transition
from reinflow.types import Kernel


class Gaussian(Policy):
    """Regressable, Samplable and natively Stochastic."""

    num_steps = all_steps = 1

    def __init__(self, spec: PolicySpec, net: nn.Module):
        super().__init__(spec, net)
        self.std_drive = nn.Parameter(torch.zeros(spec.action_dim))
        self.std_bounds = BoundedStd()

    def mean(self, cond: Float[Tensor, "b z"]) -> Float[Tensor, "b h a"]:
        """What the network gives at x = 0, t = 0, d = 1: the normalised chunk in the distribution's centre."""
        x = self.start(cond)
        t = torch.zeros_like(cond[:, 0])
        return self.net(x, t, torch.ones_like(t), cond)

    def loss(
        self, cond: Float[Tensor, "b z"], chunk: Float[Tensor, "b h a"], teacher: nn.Module | None = None
    ) -> Float[Tensor, "b"]:
        """Squared error of the mean per row."""
        return (self.mean(cond) - chunk).square().mean((1, 2))

    def sample(
        self, cond: Float[Tensor, "b z"], noise: Float[Tensor, "b h a"], num_steps: int | None = None
    ) -> Float[Tensor, "b h a"]:
        """The mean; a Gaussian has no use for `noise` and steps when it does not explore."""
        return self.mean(cond)

    def in_one_step(self, cond: Float[Tensor, "b z"], noise: Float[Tensor, "b h a"]) -> Float[Tensor, "b h a"]:
        """`sample`, which never takes more."""
        return self.sample(cond, noise, 1)

    def chain(self, num_steps: int, config: NoiseNetConfig) -> Gaussian:
        """Itself: it has one step, and a std of its own."""
        return self

    def start(self, cond: Float[Tensor, "b z"], generator: torch.Generator | None = None) -> Float[Tensor, "b h a"]:
        """Zeros, for which nothing is drawn: the one step does not depend on x_0."""
        return cond.new_zeros(len(cond), *self.spec.chunk_shape)

    def kernel(self, cond: Float[Tensor, "b z"]) -> Kernel:
        """One step: N(mean, std), whatever x_0 is."""
        mean = self.mean(cond)
        std = self.std_bounds.squash(self.std_drive).expand(mean.shape)
        return lambda k, x: Transition(mean, std)

    def steps(self, x: Float[Tensor, "b 1 h a"], cond: Float[Tensor, "b z"]) -> Transition:
        """The one step of each chain, which depends on the condition alone."""
        return Transition.stacked([self.kernel(cond)(0, x[:, 0])])

    def set_noise_bounds_(self, min_std: float, max_std: float) -> None:
        """Bounds of the std in normalised action units, in place."""
        self.std_bounds.set_bounds_(min_std, max_std)

    def velocity_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the mean, for an optimiser group of their own."""
        return self.net.parameters()

    def noise_parameters(self) -> Iterator[nn.Parameter]:
        """One number per action dimension, which the bounds turn into a std."""
        yield self.std_drive
