"""What policies are ranked by: their success, or their return where the task says so.

Best checkpoints, roll-backs, alarms and the status all compare the same `Score`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, field

from reinflow.training.evaluation import standard_error
from reinflow.types import Headline


@dataclass(frozen=True, order=True)
class Score:
    """Of one evaluation, the higher the better."""

    value: float
    """mean of the headline over the episodes"""
    second: float
    """decides between equal values"""
    error: float = field(compare=False)
    """standard error of `value`"""

    def is_near(self, best: Score) -> bool:
        """Whether it is less than a standard error of `best` below it."""
        return self.value > best.value - best.error

    def is_below(self, other: Score) -> bool:
        """Whether it is lower by more than two standard errors of their difference."""
        return self.value < other.value - 2 * math.hypot(self.error, other.error)

    def saved(self) -> list[float]:
        """As a resumable state has it."""
        return list(astuple(self))


def score_of(metrics: Mapping[str, float], headline: Headline, episodes: int) -> Score:
    """Of an evaluation's metrics, means over so many episodes."""
    success = metrics["eval/success_once"]
    if headline == "return":
        return Score(metrics["eval/return"], success, metrics["eval/return_error"])
    return Score(success, metrics["eval/success_at_end"], standard_error(success, episodes))


def restored(saved: list[float] | float | None, episodes: int) -> Score | None:
    """What `Score.saved` gave; older states hold successes alone, and NaN where there was none yet."""
    match saved:
        case [value, second, error]:
            return Score(value, second, error)
        case [value, second]:
            return Score(value, second, standard_error(value, episodes))
        case float() if not math.isnan(saved):
            return Score(saved, 0.0, standard_error(saved, episodes))
    return None
