"""Minimal iterative policy (Pan et al., arXiv:2512.01809): two regressions, the second of which corrects the first.

    a_0 = f(0, 0),    a_1 = f(t* a_0, t*),    f(0, 0) and f(t* a + (1 - t*) z, t*) regressed on a,  z ~ N(0, I)

It is a control for the flows: noise while it trains and steps when it acts, but no distribution that it fits.
Differs: any number of steps, all but the first from t*; and both regressions count alike, where the authors' code
divides the first's error by t*^2 and the second's by (1 - t*)^2, so that it counts 81 times as much.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reinflow.policies.flow import FlowPolicy
from reinflow.policies.options import MIPConfig
from reinflow.policies.spec import PolicySpec


class MIP(FlowPolicy):
    """Regressable and Samplable; a function of what it sees, so `initial_noise_scale` means nothing to it."""

    integrable = False

    def __init__(self, spec: PolicySpec, net: nn.Module):
        super().__init__(spec, net)
        self.config: MIPConfig = spec.family_options

    def loss(
        self, cond: Float[Tensor, "b z"], chunk: Float[Tensor, "b h a"], teacher: nn.Module | None = None
    ) -> Float[Tensor, "b"]:
        """Sum of both squared errors per row, in one pass of 2b rows."""
        share = self.config.correction_time
        noisy = share * chunk + (1 - share) * torch.randn_like(chunk)
        x = torch.stack((torch.zeros_like(chunk), noisy), 1)
        times = self.times(2, chunk.device)
        action = self.avg_velocity_grid(x, times, torch.zeros_like(times), cond)
        return (action - chunk.unsqueeze(1)).square().mean((2, 3)).sum(1)

    def times(self, num_steps: int, device: torch.device) -> Float[Tensor, "k"]:
        """What the network is shown of the time of every step."""
        first = torch.arange(num_steps, device=device) == 0
        return torch.where(first, 0.0, self.config.correction_time)

    def start_from(self, noise: Float[Tensor, "b h a"]) -> Float[Tensor, "b h a"]:
        """Zeros: the first regression sees no noise."""
        return torch.zeros_like(noise)

    def step_means(
        self, cond: Float[Tensor, "b z"], num_steps: int
    ) -> Callable[[int, Float[Tensor, "b h a"]], Float[Tensor, "b h a"]]:
        """An action, shrunk to what the next step was trained to see unless it is the last."""
        times = self.times(num_steps, cond.device)
        action = self.velocity_at(times, torch.zeros_like(times), cond)
        shares = self.shares(num_steps)
        return lambda k, x: shares[k] * action(k, x if k else torch.zeros_like(x))

    def all_step_means(
        self, x: Float[Tensor, "b k h a"], cond: Float[Tensor, "b z"], num_steps: int
    ) -> Float[Tensor, "b k h a"]:
        """`step_means` at all states of given chains, in one forward of b*k rows; the first reads zeros for x_0."""
        times = self.times(x.shape[1], x.device)
        shares = torch.tensor(self.shares(x.shape[1]), device=x.device)
        x = torch.cat((torch.zeros_like(x[:, :1]), x[:, 1:]), 1)
        return shares[:, None, None] * self.avg_velocity_grid(x, times, torch.zeros_like(times), cond)

    def shares(self, num_steps: int) -> list[float]:
        """What every step's action is multiplied by."""
        return [self.config.correction_time] * (num_steps - 1) + [1.0]
