"""Mixture of Gaussians over action chunks (Bishop 1994; robomimic's BC-GMM, arXiv:2108.03298): a chain of one step.

A velocity network at x = 0 and d = 1 gives the mean of mode m at t = m / modes, so that every backbone serves it; the
weights of the modes come from the condition.

Differs: all modes have one std, which cloning holds at `mode_std` and PPO learns for exploration, as the Gaussian's.
The negative log-likelihood is scaled so that one mode has the Gaussian's squared error.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nets.mlp import MLP
from nets.velocity import VelocityNet
from reinflow.policies.gaussian import Gaussian
from reinflow.policies.options import GMMConfig
from reinflow.policies.spec import PolicySpec
from reinflow.policies.transition import Transition
from reinflow.types import Kernel

WEIGHT_HIDDEN_DIM = 128


class GMM(Gaussian):
    """Regressable, Samplable and natively Stochastic.

    x_0 chooses the mode: with `initial_noise_scale` 1 by the weights, with 0 the likeliest. It explores by the weights.
    """

    def __init__(self, spec: PolicySpec, net: nn.Module):
        super().__init__(spec, net)
        self.config: GMMConfig = spec.family_options
        self.weight_net = MLP(spec.cond_dim, (WEIGHT_HIDDEN_DIM,), self.config.modes)
        for parameter in self.weight_net[-1].parameters():
            nn.init.zeros_(parameter)

    def mixture(self, cond: Float[Tensor, "b z"], std: Float[Tensor, "..."]) -> Transition:
        """Its one step, with a std that broadcasts to (b h a)."""
        modes = self.config.modes
        t = torch.arange(modes, device=cond.device) / modes
        x = cond.new_zeros(len(cond), modes, *self.spec.chunk_shape)
        means = cast(VelocityNet, self.net).grid(x, t, torch.ones_like(t), cond)
        return Transition(means, std.expand(x[:, 0].shape), self.weight_net(cond).log_softmax(-1))

    def loss(
        self, cond: Float[Tensor, "b z"], chunk: Float[Tensor, "b h a"], teacher: nn.Module | None = None
    ) -> Float[Tensor, "b"]:
        """-(2 std^2 / n) log sum_m w_m exp(-|chunk - mean_m|^2 / (2 std^2)) of n numbers, per row."""
        law = self.mixture(cond, chunk.new_tensor(self.config.mode_std))
        assert law.log_weights is not None
        scale = 2 * self.config.mode_std**2 / chunk[0].numel()
        errors = (chunk.unsqueeze(1) - law.means).square().mean((2, 3))
        return -scale * (law.log_weights - errors / scale).logsumexp(1)

    def sample(
        self, cond: Float[Tensor, "b z"], noise: Float[Tensor, "b h a"], num_steps: int | None = None
    ) -> Float[Tensor, "b h a"]:
        """The mean of the mode that `noise` chooses; it has no use for steps."""
        return self.kernel(cond)(0, noise).mean_from(noise)

    def start(self, cond: Float[Tensor, "b z"], generator: torch.Generator | None = None) -> Float[Tensor, "b h a"]:
        """Standard normal x_0, whatever `initial_noise_scale` is: it chooses a mode by the weights."""
        return torch.randn(len(cond), *self.spec.chunk_shape, generator=generator, device=cond.device)

    def kernel(self, cond: Float[Tensor, "b z"]) -> Kernel:
        """One step: the mixture with the std for exploration; x_0 only chooses the mode."""
        law = self.mixture(cond, self.std_bounds.squash(self.std_drive))
        return lambda k, x: law

    def velocity_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of means and weights, for an optimiser group of their own."""
        return chain(self.net.parameters(), self.weight_net.parameters())
