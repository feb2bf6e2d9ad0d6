"""ShortCut Flow (Frans et al., arXiv:2410.12557): one network for every step size, consistent with itself.

Differs: flow rows always carry d = 0, and the bootstrap teacher may take more than two steps (`teacher_steps`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from reinflow.errors import UserError
from reinflow.policies.flow import FlowPolicy, interpolate
from reinflow.policies.spec import PolicySpec


@dataclass(frozen=True)
class ShortcutConfig:
    """Training targets of the ShortCut Flow."""

    max_denoising_steps: int = 8
    """N: the smallest bootstrapped step is 1/N"""
    self_consistency_k: float = 0.25
    """share of rows trained on bootstrap targets"""
    flow_weight: float = 1.0
    """weight of the flow-matching rows"""
    shortcut_weight: float = 1.0
    """weight of the bootstrap rows"""
    step_size_mode: Literal["power2", "uniform", "fixed"] = "power2"
    """student steps: 1/2^i, 1/n for any n up to N, or always 1/N"""
    target_mode: Literal["velocity", "endpoint"] = "velocity"
    """compare average velocities, or the endpoints they lead to (weights an error by d^2)"""
    teacher_steps: int = 2
    """teacher steps that make up one student step"""
    t_sampling: Literal["uniform", "logitnormal", "beta"] = "uniform"
    """distribution of t on flow rows"""

    def __post_init__(self) -> None:
        if not 0 <= self.self_consistency_k <= 1:
            raise UserError(f"--self_consistency_k {self.self_consistency_k} must be from 0 to 1")
        if self.max_denoising_steps < 1:
            raise UserError(f"--max_denoising_steps {self.max_denoising_steps} must be at least 1")
        if self.teacher_steps < 2:
            raise UserError(f"--teacher_steps {self.teacher_steps} must be at least 2: one step would teach nothing")


class Shortcut(FlowPolicy):
    """Regressable and Samplable in any number of steps."""

    def __init__(self, spec: PolicySpec, net: nn.Module, config: ShortcutConfig | None = None):
        super().__init__(spec, net)
        self.config = config or ShortcutConfig()

    def loss(
        self, cond: Float[Tensor, "b z"], chunk: Float[Tensor, "b h a"], teacher: FlowPolicy | None = None
    ) -> Float[Tensor, "b"]:
        """Squared error per row; the first rows are bootstrapped from `teacher` (the EMA policy; itself when None).

        Batches must be shuffled: which row is a bootstrap row depends on its place alone.
        """
        rows = round(len(chunk) * self.config.self_consistency_k)
        x_0 = torch.randn_like(chunk)
        steps, t_boot = self.bootstrap_times(rows, chunk.device)
        t = torch.cat((t_boot, self.flow_times(len(chunk) - rows, chunk.device)))
        d = torch.cat((1.0 / steps, torch.zeros_like(t[rows:])))
        x_t = interpolate(x_0, chunk, t)
        target = chunk - x_0
        if rows:
            teacher = self if teacher is None else teacher
            boot = self.bootstrap_target(teacher, x_t[:rows], t_boot, d[:rows], cond[:rows].detach())
            target = torch.cat((boot, target[rows:]))
        error = (self.avg_velocity(x_t, t, d, cond) - target).square().mean((1, 2))
        weight = torch.full_like(error, self.config.flow_weight)
        weight[:rows] = self.config.shortcut_weight
        if self.config.target_mode == "endpoint":
            weight[:rows] *= d[:rows].square()
        return weight * error

    def flow_times(self, rows: int, device: torch.device) -> Float[Tensor, "b"]:
        """t of the flow rows, in [0, 1]."""
        if self.config.t_sampling == "logitnormal":
            return torch.randn(rows, device=device).sigmoid()
        u = torch.rand(rows, device=device)
        # Beta(1, 1.5) by its inverse distribution function: more weight near the noise, as pi0 trains
        return 1 - (1 - u) ** (1 / 1.5) if self.config.t_sampling == "beta" else u

    def bootstrap_times(self, rows: int, device: torch.device) -> tuple[Int[Tensor, "b"], Float[Tensor, "b"]]:
        """Numbers of student steps 1/d, and times t on each d's own grid, so that t + d <= 1."""
        most = self.config.max_denoising_steps
        if self.config.step_size_mode == "power2":
            steps = 2 ** torch.randint(0, most.bit_length(), (rows,), device=device)
        elif self.config.step_size_mode == "uniform":
            steps = torch.randint(1, most + 1, (rows,), device=device)
        else:
            steps = torch.full((rows,), most, device=device)
        index = (torch.rand(rows, device=device) * steps).long()
        return steps, index / steps

    @torch.no_grad()
    def bootstrap_target(
        self,
        teacher: FlowPolicy,
        x_t: Float[Tensor, "b h a"],
        t: Float[Tensor, "b"],
        d: Float[Tensor, "b"],
        cond: Float[Tensor, "b z"],
    ) -> Float[Tensor, "b h a"]:
        """Mean of the teacher's velocities over equal steps from t to t + d."""
        small = d / self.config.teacher_steps
        # steps below the smallest trained one are labelled 0, the instantaneous velocity, which flow rows train
        label = torch.where(small * self.config.max_denoising_steps < 1 - 1e-4, 0.0, small)
        x, total = x_t, torch.zeros_like(x_t)
        for index in range(self.config.teacher_steps):
            v = teacher.avg_velocity(x, t + index * small, label, cond)
            x = x + small[:, None, None] * v
            total += v
        return total / self.config.teacher_steps
