"""Consistency policy (Song et al., arXiv:2303.01469): one network that sends every point of a path to its end.

    f(x, t) = x + (1 - t) u(x, t),  so that f(., 1) is the identity and u the average velocity to the end
    f(x_t, t) is regressed on f(x_t + v / N, t + 1/N), where the network is held fixed

v is a trained ReFlow's velocity (`--teacher_path`, distillation), without one the sample's own (consistency training).
Sampling denoises to the end and puts noise back for the next time of the grid, K - 1 times.

Differs: the network is a velocity, as the other flows', so that a student starts as its teacher; times are not those
of a grid; errors are divided by 1 - t, or late times would hardly count; the target is the trained network's, not its
average's, as in DMPO (arXiv:2601.20701). And evaluation puts x_0 back each time, so that actions are a function of it;
exploration puts new noise back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reinflow.errors import UserError
from reinflow.policies.base import Policy
from reinflow.policies.flow import FlowPolicy, constant
from reinflow.policies.noisy import NoisyFlow
from reinflow.policies.options import ConsistencyConfig
from reinflow.policies.parts import NETS, NoiseNetConfig
from reinflow.policies.spec import PolicySpec
from reinflow.policies.times import interpolate, time_grid


class Consistency(FlowPolicy):
    """Regressable and Samplable in any number of steps; `initial_noise_scale` scales all noise that it acts from."""

    integrable = False

    def __init__(self, spec: PolicySpec, net: nn.Module):
        super().__init__(spec, net)
        self.config: ConsistencyConfig = spec.family_options
        self.teacher_net = None
        if self.config.teacher_path is not None:
            self.teacher_net = constant(NETS[spec.net].build(spec))
            self.encoder.requires_grad_(False)  # the teacher goes on seeing what it was trained with

    @property
    def teacher_path(self) -> str | None:
        """Checkpoint of the ReFlow that it is distilled from; None is consistency training, without one."""
        return self.config.teacher_path

    def learn_from_(self, teacher: Policy) -> None:
        """Take over a ReFlow as teacher and as start, with its encoder and normalisers. UserError if it doesn't fit."""
        for name in ("family", "net", "net_options", "cond_dim", "chunk_shape"):
            theirs, ours = getattr(teacher.spec, name), getattr(self.spec, name) if name != "family" else "reflow"
            if theirs != ours:
                raise UserError(f"the teacher of a consistency policy has {name} {theirs} and needs {ours}")
        for module in (self.net, self.teacher_net):
            cast(nn.Module, module).load_state_dict(teacher.net.state_dict())
        self.encoder.load_state_dict(teacher.encoder.state_dict())
        self.action_normalizer.load_state_dict(teacher.action_normalizer.state_dict())

    def loss(
        self, cond: Float[Tensor, "b z"], chunk: Float[Tensor, "b h a"], teacher: nn.Module | None = None
    ) -> Float[Tensor, "b"]:
        """Squared distance between the ends of neighbours on a path, per row."""
        x_0 = torch.randn_like(chunk)
        t = torch.rand(len(chunk), device=chunk.device)
        ahead = (t + 1 / self.config.consistency_steps).clamp_max(1)
        x_t = interpolate(x_0, chunk, t)
        with torch.no_grad():
            v = chunk - x_0 if self.teacher_net is None else self.teacher_net(x_t, t, torch.zeros_like(t), cond)
            target = self.end(x_t + (ahead - t)[:, None, None] * v, ahead, cond)
        return (self.end(x_t, t, cond) - target).square().mean((1, 2)) / (1 - t)

    def step_label(self, d: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """It is always 1 - t, which the network knows."""
        return torch.zeros_like(d)

    def end(
        self, x: Float[Tensor, "b h a"], t: Float[Tensor, "b"], cond: Float[Tensor, "b z"]
    ) -> Float[Tensor, "b h a"]:
        """f: where the path through x at t ends."""
        return ended(x, self.avg_velocity(x, t, 1 - t, cond), t)

    def step_means(
        self, cond: Float[Tensor, "b z"], num_steps: int
    ) -> Callable[[int, Float[Tensor, "b h a"]], Float[Tensor, "b h a"]]:
        """(k, x_k) -> t_{k+1} f(x_k, t_k), to which noise is put back."""
        times, _ = time_grid(num_steps, cond.device)
        velocity = self.velocity_at(times, 1 - times, cond)
        return lambda k, x: (k + 1) / num_steps * ended(x, velocity(k, x), times[k : k + 1])

    def all_step_means(
        self, x: Float[Tensor, "b k h a"], cond: Float[Tensor, "b z"], num_steps: int
    ) -> Float[Tensor, "b k h a"]:
        """t_{k+1} f(x_k, t_k) of the last k states of given chains, in one forward of b*k rows."""
        times, d = time_grid(num_steps, x.device)
        times = times[-x.shape[1] :]
        ends = ended(x, self.avg_velocity_grid(x, times, 1 - times, cond), times)
        return (times + d)[:, None, None] * ends

    def noise_back(self, num_steps: int) -> list[float]:
        """Share of the noise that is put back after every step."""
        return [1 - (k + 1) / num_steps for k in range(num_steps)]

    def sample(
        self, cond: Float[Tensor, "b z"], noise: Float[Tensor, "b h a"], num_steps: int | None = None
    ) -> Float[Tensor, "b h a"]:
        """All steps, `noise` put back after each."""
        num_steps = num_steps or self.spec.num_inference_steps
        step, x = self.step_means(cond, num_steps), noise
        for k, share in enumerate(self.noise_back(num_steps)):
            x = step(k, x) + share * noise
        return x

    def chain(self, num_steps: int, config: NoiseNetConfig) -> NoisyConsistency:
        """Explores by new noise where sampling puts x_0 back, and by learned noise besides."""
        return NoisyConsistency(self, num_steps, config)


class NoisyConsistency(NoisyFlow):
    """Stochastic: new noise is put back after every step, and learned noise comes to it."""

    policy: Consistency

    def own_stds(self) -> list[float]:
        """Of the noise put back, which is new noise of x_0's scale."""
        return [self.policy.spec.initial_noise_scale * share for share in self.policy.noise_back(self.all_steps)]

    def stds(self, cond: Float[Tensor, "b z"]) -> Float[Tensor, "b k h a"]:
        """Of the learned noise and the noise put back together: sqrt(learned^2 + back^2), of every step."""
        back = torch.tensor(self.own_stds()[self.held :], device=cond.device)
        return torch.hypot(super().stds(cond), back[:, None, None])


def ended(x: Float[Tensor, "b *k h a"], u: Float[Tensor, "b *k h a"], t: Float[Tensor, "n"]) -> Tensor:
    """x + (1 - t) u, by t of the last dimension before (h a)."""
    return x + (1 - t)[:, None, None] * u
