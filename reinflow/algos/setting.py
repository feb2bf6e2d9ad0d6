"""What every algorithm is built with, beside a policy and its own options."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Setting:
    """The run that an algorithm is built for."""

    gamma: float
    """discount per env step"""
    updates: int | None = None
    """gradient steps of the whole run; None where env steps end it, so that learning rates don't fall"""
    parts: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """what else the checkpoint holds, as `critic` or `q`, where it predicts the return of this run"""
    level: Tensor | None = None
    """the constant V that agrees with the data, where new critics start; None leaves them near 0"""
    num_envs: int = 1
    """envs of this process"""
    rollout_steps: int = 0
    """decisions of each env in a rollout, of an on-policy run"""

    @property
    def decisions(self) -> int:
        """Of all envs in a rollout."""
        return self.num_envs * self.rollout_steps
