"""The time of a flow, from 0 (noise) to 1 (data): the one grid, the path between the ends, and times to train at."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from reinflow.policies.options import TimeSampling


def time_grid(num_steps: int, device: torch.device | None = None) -> tuple[Float[Tensor, "k"], float]:
    """Times t_k = k/K and the step size 1/K, for sampling and for scoring."""
    return torch.arange(num_steps, device=device) / num_steps, 1.0 / num_steps


def interpolate(
    x_0: Float[Tensor, "b h a"], x_1: Float[Tensor, "b h a"], t: Float[Tensor, "b"]
) -> Float[Tensor, "b h a"]:
    """x_t = (1 - t) x_0 + t x_1"""
    return torch.lerp(x_0, x_1, t[:, None, None])


def sampled_times(
    kind: TimeSampling, shape: tuple[int, ...], device: torch.device, logit_mean: float = 0.0
) -> Float[Tensor, "..."]:
    """Times in [0, 1]; `logit_mean` is that of the normal distribution behind `logitnormal`, whose std is 1."""
    if kind == "logitnormal":
        return (torch.randn(shape, device=device) + logit_mean).sigmoid()
    u = torch.rand(shape, device=device)
    # Beta(1, 1.5) by its inverse distribution function: more weight near the noise, as pi0 trains
    return 1 - (1 - u) ** (1 / 1.5) if kind == "beta" else u
