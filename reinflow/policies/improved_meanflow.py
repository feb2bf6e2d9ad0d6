"""Improved MeanFlow (Geng et al., arXiv:2512.02012): MeanFlow's identity as a regression on the data's own velocity.

    V(x, t, d) = u - d * sg(du/dt)    is regressed on    v = x_1 - x_0

The derivative goes along the network's own velocity u(x, t, 0), which depends on x_t alone, instead of the sample's v.
Differs: no head of its own for that velocity, as in DMPO's form; the boundary d = 0 gives it.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reinflow.policies.meanflow import MeanFlow
from reinflow.policies.times import interpolate


class ImprovedMeanFlow(MeanFlow):
    """Regressable and Samplable in any number of steps, one included; `initial_noise_scale` is that of a flow."""

    def loss(
        self, cond: Float[Tensor, "b z"], chunk: Float[Tensor, "b h a"], teacher: nn.Module | None = None
    ) -> Float[Tensor, "b"]:
        """Squared error of V per row. Batches must be shuffled, as for `MeanFlow`."""
        x_0 = torch.randn_like(chunk)
        t, d = self.intervals(len(chunk), chunk.device)
        predicted = self.compound_velocity(interpolate(x_0, chunk, t), t, d, cond)
        return self.weighted((predicted - (chunk - x_0)).square().mean((1, 2)))

    def compound_velocity(
        self,
        x_t: Float[Tensor, "b h a"],
        t: Float[Tensor, "b"],
        d: Float[Tensor, "b"],
        cond: Float[Tensor, "b z"],
    ) -> Float[Tensor, "b h a"]:
        """V, whose gradient is that of u alone."""
        with torch.no_grad():
            own = self.avg_velocity(x_t, t, torch.zeros_like(d), cond)
        slope = self.total_derivative(x_t, t, d, cond, own)
        return self.avg_velocity(x_t, t, d, cond) - d[:, None, None] * slope
