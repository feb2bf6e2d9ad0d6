"""MeanFlow (Geng et al., arXiv:2505.13447): the network learns the average velocity itself, so that one step is enough.

The paper's time runs from data to noise and its u ends at the earlier time r; here t runs from noise (0) to data (1)
and u(x, t, d) is the average velocity over [t, t + d]. With the end t + d held, d * u = integral of v gives

    u = v + d * du/dt,    du/dt = (v . d/dx + d/dt - d/dd) u

The network is shown both times scaled by `time_scale`: its embedding's fastest wave turns by 1000 rad per unit of time,
of which du/dt would learn nothing but noise.

Differs: half of the rows are averages (the paper takes a quarter of them), as in DMPO (arXiv:2601.20701), and these are
the first of a batch; the weights' power is .5 instead of 1, for the same reason.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reinflow.policies.flow import FlowPolicy
from reinflow.policies.options import MeanFlowConfig
from reinflow.policies.spec import PolicySpec
from reinflow.policies.times import interpolate, sampled_times

LOGIT_MEAN = 0.4
"""of `logitnormal`: the paper has -.4, and logit(1 - t) = -logit(t)"""


class MeanFlow(FlowPolicy):
    """Regressable and Samplable in any number of steps, one included; `initial_noise_scale` is that of a flow."""

    def __init__(self, spec: PolicySpec, net: nn.Module):
        super().__init__(spec, net)
        self.config: MeanFlowConfig = spec.family_options

    def time_label(self, t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """`time_scale` times t, which slows the embedding's waves down."""
        return self.config.time_scale * t

    def step_label(self, d: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """`time_scale` times d, which slows the embedding's waves down."""
        return self.config.time_scale * d

    def loss(
        self, cond: Float[Tensor, "b z"], chunk: Float[Tensor, "b h a"], teacher: nn.Module | None = None
    ) -> Float[Tensor, "b"]:
        """Squared distance to the identity's own right side, which carries no gradient, per row.

        Batches must be shuffled: which row learns an average depends on its place alone.
        """
        x_0 = torch.randn_like(chunk)
        t, d = self.intervals(len(chunk), chunk.device)
        x_t, v = interpolate(x_0, chunk, t), chunk - x_0
        target = v + d[:, None, None] * self.total_derivative(x_t, t, d, cond, v)
        return self.weighted((self.avg_velocity(x_t, t, d, cond) - target).square().mean((1, 2)))

    def averages(self, rows: int) -> int:
        """How many of them, the first, learn an average."""
        return round(rows * self.config.average_share)

    def intervals(self, rows: int, device: torch.device) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        """Start t and length d of each row's interval; d is 0 on rows that learn the velocity."""
        drawn = sampled_times(self.config.t_sampling, (2, rows), device, LOGIT_MEAN)
        start, end = drawn.sort(0).values
        averages = torch.arange(rows, device=device) < self.averages(rows)
        return torch.where(averages, start, drawn[0]), torch.where(averages, end - start, 0.0)

    @torch.no_grad()
    def total_derivative(
        self,
        x_t: Float[Tensor, "b h a"],
        t: Float[Tensor, "b"],
        d: Float[Tensor, "b"],
        cond: Float[Tensor, "b z"],
        v: Float[Tensor, "b h a"],
    ) -> Float[Tensor, "b h a"]:
        """du/dt along the path x' = v with the interval's end held, by one forward-mode product in float32.

        It is 0 on rows that learn the velocity, where it counts nothing.
        """
        rows = self.averages(len(t))
        if not rows:
            return torch.zeros_like(x_t)
        at = x_t[:rows], t[:rows], d[:rows]
        directions = v[:rows], torch.ones_like(at[1]), -torch.ones_like(at[2])
        with torch.autocast(x_t.device.type, enabled=False):
            slope = torch.func.jvp(lambda x, t, d: self.avg_velocity(x, t, d, cond[:rows]), at, directions)[1]
        return torch.cat((slope, torch.zeros_like(x_t[rows:])))

    def weighted(self, error: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """The rows' errors under the adaptive weights of the paper (its eq. 22)."""
        return error / (error.detach() + self.config.adaptive_offset) ** self.config.adaptive_power
