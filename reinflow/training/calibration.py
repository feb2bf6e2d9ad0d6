"""How far Q is from the discounted return that followed: how methods with a Q die is that it grows beyond it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from reinflow.training.learner import Metrics
from reinflow.types import ChunkStep


@dataclass
class Calibration:
    """Mean of Q minus return over the decisions of the episodes that ended.

    The return of a decision is what its episode brought from there on, discounted; where the time limit cut it, plus
    the discounted value of where it was. Episodes are summed up as they go:

        w <- w + 1;   G <- G + w R;   w <- w gamma**tau

    so that G is the sum over an episode's decisions of their returns so far, and w that of their discounts.
    """

    gamma: float
    """discount per env step"""
    weight: Tensor | float = 0.0
    returns: Tensor | float = 0.0
    q: Tensor | float = 0.0
    decisions: Tensor | float = 0.0
    bias: Tensor | float = 0.0
    """over all episodes since the last `read`"""
    count: Tensor | float = 0.0

    def add(self, q: Float[Tensor, "n"], step: ChunkStep, final_value: Float[Tensor, "n"] | float) -> None:
        """Count a decision of every env that was judged `q`; `final_value` is that of `step.final_obs`."""
        weight = self.weight + torch.ones_like(q)
        self.returns = self.returns + weight * step.reward
        self.weight = weight * self.gamma**step.executed
        self.q = self.q + q
        self.decisions = self.decisions + torch.ones_like(q)
        beyond = torch.where(step.truncated & ~step.terminated, self.weight * final_value, 0.0)
        gap = torch.where(step.ended & ~step.broken, self.q - self.returns - beyond, 0.0)
        self.bias = self.bias + gap.sum()
        self.count = self.count + torch.where(step.ended & ~step.broken, self.decisions, 0.0).sum()
        goes_on = ~(step.ended | step.broken)
        for name in ("weight", "returns", "q", "decisions"):
            setattr(self, name, torch.where(goes_on, getattr(self, name), 0.0))

    def read(self) -> Metrics:
        """The mean since the last `read`; nothing where no episode ended."""
        bias, count = self.bias, self.count
        self.bias = self.count = 0.0
        return {"losses/q_bias": bias / count} if float(count) else {}

    def restart(self) -> None:
        """Forget the episodes that are not over: other ones start."""
        self.weight = self.returns = self.q = self.decisions = 0.0

    def state_dict(self) -> dict[str, Any]:
        """As data."""
        return dict(vars(self))
