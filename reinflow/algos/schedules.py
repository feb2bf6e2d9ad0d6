"""The exploration noise and how its bounds change over a run.

K independent steps of std s add up to a chain's std of s * sqrt(K): the totals below were measured at K = 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from reinflow.errors import UserError

MIN_TOTAL_STD, MAX_TOTAL_STD = 0.1, 0.4
"""bounds for a whole chain where none are given"""


@dataclass(frozen=True)
class NoiseConfig:
    """Bounds of the exploration noise, in normalised action units; the network chooses inside them."""

    min_noise_std: float | None = None
    """floor of the std of each of the K denoising steps; None is 0.1 / sqrt(K), the same for a chain of any K"""
    max_noise_std: float | None = None
    """ceiling of that std at the start; None is 0.4 / sqrt(K)"""
    noise_scale: Literal["per_step", "total"] = "per_step"
    """what given bounds are for: each step, as in the guide, or the whole chain, whose steps get bound / sqrt(K)"""
    noise_decay_type: Literal["constant", "linear", "exponential"] = "linear"
    """how the ceiling falls towards the floor"""
    noise_decay_steps: int = 1_200_000
    """env steps of the decay"""

    def __post_init__(self) -> None:
        given = [bound for bound in (self.min_noise_std, self.max_noise_std) if bound is not None]
        if given and not 0 < given[0] <= given[-1]:
            raise UserError(
                f"--min_noise_std {self.min_noise_std} and --max_noise_std {self.max_noise_std} need 0 < min <= max"
            )
        if self.noise_decay_steps < 1:
            raise UserError("--noise_decay_steps must be at least 1; pass --noise_decay_type constant for no decay")

    def initial_bounds(self, num_steps: int) -> tuple[float, float]:
        """Floor and ceiling of each of `num_steps` denoising steps at the start.

        UserError where a given bound is beyond the other one, which was left out.
        """
        share = num_steps**-0.5
        scale = share if self.noise_scale == "total" else 1.0
        low = MIN_TOTAL_STD * share if self.min_noise_std is None else self.min_noise_std * scale
        high = MAX_TOTAL_STD * share if self.max_noise_std is None else self.max_noise_std * scale
        if low > high:
            raise UserError(
                f"the noise of each of {num_steps} denoising steps can't lie between {low:.3g} and {high:.3g}: "
                "pass both --min_noise_std and --max_noise_std"
            )
        return low, high

    def bounds(self, env_steps: int, num_steps: int) -> tuple[float, float]:
        """Floor and ceiling of each of `num_steps` denoising steps after `env_steps`."""
        low, high = self.initial_bounds(num_steps)
        progress = min(env_steps / self.noise_decay_steps, 1.0)
        if self.noise_decay_type == "linear":
            high = high * (1 - progress) + low * progress
        elif self.noise_decay_type == "exponential":
            high = low + (high - low) * math.exp(-3 * progress)
        return low, high
