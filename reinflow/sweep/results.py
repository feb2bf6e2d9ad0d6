"""What the runs of a sweep came to: curves and the numbers that the guide asks for, from the runs' files alone."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reinflow.sweep.records import View

SUCCESS = "eval/success_once"
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Curve:
    """Evaluations of one run; `success[0]` at step 0 is the pretrained policy's."""

    steps: list[float]
    success: list[float]
    seconds: list[float]
    """wall time since the first evaluation"""

    @property
    def pretrained(self) -> float:
        return self.success[0]

    @property
    def final(self) -> float:
        """Mean over the last fifth of the run, so that one lucky evaluation does not decide."""
        return statistics.mean(self.last_fifth)

    @property
    def best(self) -> float:
        return max(self.success)

    @property
    def last_fifth(self) -> list[float]:
        start = self.steps[-1] * 0.8
        return [s for step, s in zip(self.steps, self.success, strict=True) if step >= start]

    @property
    def stability(self) -> float:
        """Standard deviation over the last fifth."""
        return statistics.pstdev(self.last_fifth)

    @property
    def drawdown(self) -> float:
        """Largest fall below an earlier success."""
        highest, worst = 0.0, 0.0
        for success in self.success:
            highest = max(highest, success)
            worst = max(worst, highest - success)
        return worst

    def steps_to(self, share: float) -> float | None:
        """Env steps until `share` of the way from the pretrained to the best success; None if it never rose."""
        if self.best <= self.pretrained:
            return None
        goal = self.pretrained + share * (self.best - self.pretrained)
        return next(step for step, success in zip(self.steps, self.success, strict=True) if success >= goal - 1e-9)


def read_curve(run_dir: Path) -> Curve | None:
    """The evaluations in metrics.jsonl; None before there is one."""
    points = [line for line in read_metrics(run_dir) if line.get(SUCCESS) is not None]
    if not points:
        return None
    first = points[0]["time"]
    return Curve(
        [point["step"] for point in points],
        [point[SUCCESS] for point in points],
        [point["time"] - first for point in points],
    )


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without one that a kill cut short."""
    path = run_dir / "metrics.jsonl"
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


@dataclass(frozen=True)
class Summary:
    """One configuration over its seeds."""

    category: str
    variant: str
    curves: list[Curve]

    @property
    def key(self) -> str:
        return f"{self.category}:{self.variant}"

    @property
    def final(self) -> float:
        return statistics.mean(curve.final for curve in self.curves)

    @property
    def interval(self) -> float | None:
        """Half of the 95 % interval of the mean over seeds (Student's t); None for a single seed."""
        return half_interval([curve.final for curve in self.curves])

    def mean(self, name: str) -> float:
        """Mean over seeds of a property of the curves."""
        return statistics.mean(getattr(curve, name) for curve in self.curves)

    @property
    def gain(self) -> float:
        """Over the pretrained policy."""
        return statistics.mean(curve.final - curve.pretrained for curve in self.curves)

    @property
    def steps_to_80(self) -> float | None:
        """Mean over the seeds whose success rose."""
        reached = [steps for curve in self.curves if (steps := curve.steps_to(0.8)) is not None]
        return statistics.mean(reached) if reached else None

    @property
    def minutes(self) -> float:
        return statistics.mean(curve.seconds[-1] for curve in self.curves) / 60

    def differs_from(self, other: Summary) -> bool | None:
        """Whether the means differ at the 95 % level (Welch's t test); None where a side has one seed."""
        if len(self.curves) < 2 or len(other.curves) < 2:
            return None
        from scipy.stats import ttest_ind

        ours, theirs = ([curve.final for curve in summary.curves] for summary in (self, other))
        return bool(ttest_ind(ours, theirs, equal_var=False).pvalue < 1 - CONFIDENCE)


def half_interval(values: list[float]) -> float | None:
    """Of the mean, by Student's t; None for a single value."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    error = statistics.stdev(values) / math.sqrt(len(values))
    return float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error


def summarise(views: list[View]) -> list[Summary]:
    """Configurations with at least one finished run, best first inside each category, the baseline first of all."""
    groups: dict[tuple[str, str], list[Curve]] = {}
    for view in views:
        curve = read_curve(Path(view.record.run_dir)) if view.state == "done" else None
        if curve is not None:
            groups.setdefault((view.record.category, view.record.variant), []).append(curve)
    summaries = [Summary(category, variant, curves) for (category, variant), curves in groups.items()]
    order = list(dict.fromkeys(["baseline", *(summary.category for summary in summaries)]))
    return sorted(summaries, key=lambda summary: (order.index(summary.category), -summary.final))
