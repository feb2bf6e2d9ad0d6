"""What the runs of a sweep came to: curves and the numbers that the guide asks for, from the runs' files alone."""

from __future__ import annotations

import json
import math
import statistics
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reinflow.run.status import read_status
from reinflow.sweep.records import View

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Curve:
    """Evaluations of one run; `scores[0]` at step 0 is the pretrained policy's."""

    steps: list[float]
    scores: list[float]
    """of the task's headline, successes from 0 to 1 or returns"""
    seconds: float = 0.0
    """of rollouts, updates and evaluations; what passed between an interruption and its resume does not count"""
    speed: float | None = None
    """env steps per second, evaluations left out"""
    epoch_seconds: float | None = None
    """of one PPO epoch over a rollout"""
    headline: str = "success_once"

    @property
    def pretrained(self) -> float:
        """Score before the first update."""
        return self.scores[0]

    @property
    def final(self) -> float:
        """Mean over the last fifth of the run, so that one lucky evaluation does not decide."""
        return statistics.mean(self.last_fifth)

    @property
    def best(self) -> float:
        """Highest score of the run, the pretrained policy's included."""
        return max(self.scores)

    @property
    def last_fifth(self) -> list[float]:
        """Scores of the evaluations in the last fifth of the run's env steps."""
        start = self.steps[-1] * 0.8
        return [s for step, s in zip(self.steps, self.scores, strict=True) if step >= start]

    @property
    def stability(self) -> float:
        """Standard deviation over the last fifth."""
        return statistics.pstdev(self.last_fifth)

    @property
    def drawdown(self) -> float:
        """Largest fall below an earlier score."""
        highest, worst = self.scores[0], 0.0
        for score in self.scores:
            highest = max(highest, score)
            worst = max(worst, highest - score)
        return worst

    def steps_to(self, goal: float) -> float | None:
        """Env steps until the score is at `goal`; None if it never was."""
        return next((step for step, s in zip(self.steps, self.scores, strict=True) if s >= goal - 1e-9), None)


def read_curve(run_dir: Path) -> Curve | None:
    """The evaluations in metrics.jsonl; None before there is one."""
    lines = read_metrics(run_dir)
    headline = read_status(run_dir / "status.json").get("headline", "success_once")
    points = [line for line in lines if line.get(f"eval/{headline}") is not None]
    if not points:
        return None
    updates = [line for line in lines if "time/update" in line]
    epochs = sum(line.get("losses/epochs") or 0 for line in updates)
    trained = sum(line["time/update"] for line in updates if line.get("losses/epochs"))
    speeds = [line["charts/SPS"] for line in updates if line.get("charts/SPS")]
    return Curve(
        [point["step"] for point in points],
        [point[f"eval/{headline}"] for point in points],
        sum(value for line in lines for name, value in line.items() if name.startswith("time/") and value),
        statistics.mean(speeds) if speeds else None,
        trained / epochs if epochs else None,
        headline,
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
        """`category:variant`, as `--configs` takes it."""
        return f"{self.category}:{self.variant}"

    @property
    def final(self) -> float:
        """Mean over seeds of the scores in the last fifth."""
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

    def steps_to(self, goal: float) -> list[float]:
        """Of the seeds that reached it."""
        return [steps for curve in self.curves if (steps := curve.steps_to(goal)) is not None]

    def mean_of(self, name: str) -> float | None:
        """As `mean`, of a property that runs may lack."""
        found = [value for curve in self.curves if (value := getattr(curve, name)) is not None]
        return statistics.mean(found) if found else None

    def differs_from(self, other: Summary) -> bool | None:
        """Whether the means differ at the 95 % level (Welch's t test); None where a side has one seed."""
        if len(self.curves) < 2 or len(other.curves) < 2:
            return None
        from scipy.stats import ttest_ind

        ours, theirs = ([curve.final for curve in summary.curves] for summary in (self, other))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # scipy's, where all seeds succeed every time
            return bool(ttest_ind(ours, theirs, equal_var=False).pvalue < 1 - CONFIDENCE)


def half_interval(values: list[float]) -> float | None:
    """Of the mean, by Student's t; None for a single value."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    error = statistics.stdev(values) / math.sqrt(len(values))
    return float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error


def common_goal(summaries: list[Summary], share: float = 0.8) -> float:
    """The score whose env steps are compared: `share` of the way from the pretrained to the best final one."""
    pretrained = statistics.mean(summary.mean("pretrained") for summary in summaries)
    return pretrained + share * (max(summary.final for summary in summaries) - pretrained)


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
