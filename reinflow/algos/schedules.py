"""The exploration noise and how its bounds change over a run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from reinflow.errors import UserError


@dataclass(frozen=True)
class NoiseConfig:
    """Bounds of the exploration noise, in normalised action units; the network chooses inside them."""

    min_noise_std: float = 0.1
    """floor of the std"""
    max_noise_std: float = 0.4
    """ceiling of the std at the start"""
    noise_decay_type: Literal["constant", "linear", "exponential"] = "linear"
    """how the ceiling falls towards the floor"""
    noise_decay_steps: int = 1_200_000
    """env steps of the decay"""

    def __post_init__(self) -> None:
        if not 0 < self.min_noise_std <= self.max_noise_std:
            raise UserError(
                f"--min_noise_std {self.min_noise_std} and --max_noise_std {self.max_noise_std} need 0 < min <= max"
            )
        if self.noise_decay_steps < 1:
            raise UserError("--noise_decay_steps must be at least 1; pass --noise_decay_type constant for no decay")

    def bounds(self, env_steps: int) -> tuple[float, float]:
        """Floor and ceiling after `env_steps`."""
        low, high = self.min_noise_std, self.max_noise_std
        progress = min(env_steps / self.noise_decay_steps, 1.0)
        if self.noise_decay_type == "linear":
            high = high * (1 - progress) + low * progress
        elif self.noise_decay_type == "exponential":
            high = low + (high - low) * math.exp(-3 * progress)
        return low, high
