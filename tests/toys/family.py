"""A policy family with an option of its own: a rectified flow that trains more at early or late times."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from reinflow.errors import UserError
from reinflow.policies.flow import FlowPolicy
from reinflow.policies.options import FlowConfig
from reinflow.policies.times import interpolate
from reinflow.registry import Entry


@dataclass(frozen=True)
class SkewedConfig(FlowConfig):
    """Options of a skewed flow."""

    skew: float = 1.0
    """times are u ** skew of uniform u: above 1 early ones are trained more"""

    def __post_init__(self) -> None:
        if self.skew <= 0:
            raise UserError(f"--skew {self.skew} must be above 0")


class Skewed(FlowPolicy):
    """Regressable and Samplable, and stochastic through NoisyFlow, as any flow."""

    def step_label(self, d: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(d)

    def loss(self, cond: torch.Tensor, chunk: torch.Tensor, teacher: nn.Module | None = None) -> torch.Tensor:
        x_0 = torch.randn_like(chunk)
        t = torch.rand(len(chunk), device=chunk.device) ** self.spec.family_options.skew
        v = self.avg_velocity(interpolate(x_0, chunk, t), t, t, cond)
        return (v - (chunk - x_0)).square().mean((1, 2))


ENTRY = Entry(Skewed, SkewedConfig)
