"""Rectified flow (Liu et al., arXiv:2209.03003): the network's instantaneous velocity, its step size held at 0."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reinflow.policies.flow import FlowPolicy
from reinflow.policies.options import ReFlowConfig
from reinflow.policies.spec import PolicySpec
from reinflow.policies.times import interpolate, sampled_times


class ReFlow(FlowPolicy):
    """Regressable and Samplable; needs several steps where the data has several modes."""

    def __init__(self, spec: PolicySpec, net: nn.Module):
        super().__init__(spec, net)
        self.config: ReFlowConfig = spec.family_options

    def step_label(self, d: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """0 for any step size: the network knows the velocity at one instant only."""
        return torch.zeros_like(d)

    def loss(
        self, cond: Float[Tensor, "b z"], chunk: Float[Tensor, "b h a"], teacher: nn.Module | None = None
    ) -> Float[Tensor, "b"]:
        """Flow-matching error per row."""
        x_0 = torch.randn_like(chunk)
        t = sampled_times(self.config.t_sampling, (len(chunk),), chunk.device)
        v = self.avg_velocity(interpolate(x_0, chunk, t), t, t, cond)
        return (v - (chunk - x_0)).square().mean((1, 2))
