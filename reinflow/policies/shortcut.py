"""ShortCut Flow (Frans et al., arXiv:2410.12557): one network for every step size, consistent with itself.

Differs: flow rows always carry d = 0, the bootstrap teacher may take more than two steps (`teacher_steps`), and the
network is shown trained step sizes only, by the teacher and by every sampler alike.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from reinflow.policies.flow import FlowPolicy
from reinflow.policies.options import ShortcutConfig
from reinflow.policies.spec import PolicySpec
from reinflow.policies.times import interpolate, sampled_times


class Shortcut(FlowPolicy):
    """Regressable and Samplable in any number of steps."""

    def __init__(self, spec: PolicySpec, net: nn.Module):
        super().__init__(spec, net)
        self.config: ShortcutConfig = spec.family_options

    def trained_steps(self, device: torch.device | None = None) -> Int[Tensor, "n"]:
        """Numbers of steps 1/d whose step size d bootstrap rows train."""
        most = self.config.max_denoising_steps
        if self.config.step_size_mode == "power2":
            return 2 ** torch.arange(most.bit_length(), device=device)
        if self.config.step_size_mode == "uniform":
            return torch.arange(1, most + 1, device=device)
        return torch.full((1,), most, device=device)

    def step_label(self, d: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """The largest trained step size that is not above d; 0, the instantaneous velocity, is always trained."""
        steps = self.trained_steps(d.device)
        not_above = d[:, None] * steps > 1 - 1e-4
        return torch.where(not_above, 1.0 / steps, 0.0).amax(1)

    def steps_warning(self, num_steps: int) -> str | None:
        """A sentence where 1/K is not a trained step size, unless K is more than any trained number of steps."""
        trained = self.trained_steps().tolist()
        if num_steps in trained or num_steps > max(trained):
            return None
        return (
            f"K = {num_steps} denoising steps were not trained, and each is taken for a smaller one, which loses "
            f"accuracy: choose K from {', '.join(map(str, trained))}, or more than {max(trained)}"
        )

    def loss(
        self, cond: Float[Tensor, "b z"], chunk: Float[Tensor, "b h a"], teacher: FlowPolicy | None = None
    ) -> Float[Tensor, "b"]:
        """Squared error per row; the first rows are bootstrapped from `teacher` (the EMA policy; itself when None).

        Batches must be shuffled: which row is a bootstrap row depends on its place alone.
        """
        rows = round(len(chunk) * self.config.self_consistency_k)
        x_0 = torch.randn_like(chunk)
        steps, t_boot = self.bootstrap_times(rows, chunk.device)
        t = torch.cat((t_boot, sampled_times(self.config.t_sampling, (len(chunk) - rows,), chunk.device)))
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

    def bootstrap_times(self, rows: int, device: torch.device) -> tuple[Int[Tensor, "b"], Float[Tensor, "b"]]:
        """Numbers of student steps 1/d, and times t on each d's own grid, so that t + d <= 1."""
        trained = self.trained_steps(device)
        steps = trained[torch.randint(len(trained), (rows,), device=device)]
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
        x, total = x_t, torch.zeros_like(x_t)
        for index in range(self.config.teacher_steps):
            v = teacher.avg_velocity(x, t + index * small, small, cond)
            x = x + small[:, None, None] * v
            total += v
        return total / self.config.teacher_steps
