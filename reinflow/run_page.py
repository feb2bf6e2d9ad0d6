"""The page of one run, or of the three stages of a quick start, from their files alone."""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import NormalDist
from typing import Any

from reinflow.page import commands, described, document, panels, svg, table, video
from reinflow.run.directory import is_run
from reinflow.run.status import read_status
from reinflow.sweep.results import read_metrics

Z_95 = NormalDist().inv_cdf(0.975)
SUMMARY = "summary.json"
"""what a quick start leaves in its folder"""
FILM = "comparison.mp4"
"""of a quick start: the first and the last stage side by side"""
COLUMNS = ("stage", "success", "95 % interval", "at end", "return", "env steps per episode", "episodes")


def page(folder: Path) -> str | None:
    """The text of report.html; None where the folder is neither a run nor a quick start."""
    if is_run(folder):
        return document(f"ReinFlow run {folder.name}", of_run(folder))
    summary = read_summary(folder)
    if summary is None:
        return None
    return document(f"ReinFlow quick start {summary['env_id']}", of_stages(folder, summary))


def read_summary(folder: Path) -> dict[str, Any] | None:
    """What a quick start came to; None where there is none."""
    try:
        summary = json.loads((folder / SUMMARY).read_text())
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) and {"env_id", "results", "minutes"} <= summary.keys() else None


def of_run(folder: Path) -> Iterable[str]:
    """How it went, its curves, films and commands."""
    status, history = read_status(folder / "status.json"), History.read(folder)
    yield f"<h1>{html.escape(folder.name)}</h1>{described(folder)}"
    yield f"<p><b>{html.escape(verdict(status, history))}</b></p>"
    if alarms := status.get("alarms"):
        yield f"<ul>{''.join(f'<li>{html.escape(alarm)}</li>' for alarm in alarms)}</ul>"
    yield from history.charts()
    films = sorted((folder / "videos").glob("*.mp4"))
    for path, when in zip(dict.fromkeys(films[:1] + films[-1:]), ("before", "after"), strict=False):
        yield video(path, f"{when}: {path.stem}")
    script, *flags = json.loads((folder / "config.json").read_text())["argv"]
    again = ["python", "evaluate.py", "--checkpoint", str(folder)]
    yield commands(shlex.join(words) for words in (["python", Path(script).name, *flags], again))


def of_stages(folder: Path, summary: dict[str, Any]) -> Iterable[str]:
    """The table of the stages, the curves of the last one, what it looks like, and every command."""
    yield f"<h1>From demonstrations to ReinFlow: {html.escape(summary['env_id'])}</h1>"
    demos = f"{summary['num_demos']} demonstrations, " if "num_demos" in summary else ""
    yield f"<p>{demos}seed {summary.get('seed')}, {summary['minutes']:.1f} minutes in all.</p>"
    rows = [[(name, ""), *((text, "") for text in stage_cells(row))] for name, row in summary["results"].items()]
    yield table(COLUMNS, rows)
    yield (
        '<p class="note">success: share of episodes that succeed at some step, without exploration noise, from start '
        "states that no stage trained or selected on; the same ones for all three. Intervals are Wilson's.</p>"
    )
    if is_run(folder / "stage3"):
        yield f"<h2>Stage 3</h2>{described(folder / 'stage3')}"
        yield from History.read(folder / "stage3").charts()
    if (folder / FILM).exists():
        yield "<h2>before and after</h2>"
        yield video(folder / FILM, "Stage 1 on the left, Stage 3 on the right; green is solved")
    yield commands(summary.get("commands", ()))


def stage_cells(row: dict[str, Any]) -> list[str]:
    """What the table shows of an evaluation."""
    success, episodes = row["success_once"], row.get("episodes")
    interval = "-"
    if episodes:
        low, high = wilson(success, episodes)
        interval = f"{low:.1%} to {high:.1%}"
    numbers = [f"{success:.1%}", interval, f"{row['success_at_end']:.1%}", f"{row['return']:.1f}"]
    return [*numbers, f"{row['episode_len']:.1f}" if "episode_len" in row else "-", str(episodes or "-")]


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a probability from `count` trials (Wilson 1927), which keeps inside 0 and 1."""
    spread = Z_95**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = (share * (1 - share) * spread + spread**2 / 4) ** 0.5 / (1 + spread)
    return centre - half, centre + half


def verdict(status: dict[str, Any], history: History) -> str:
    """State, scores and time in a sentence."""
    parts = [str(status.get("state", "no status"))]
    if history.scores:
        shown = "{:.1%}" if history.headline == "success_once" else "{:.1f}"
        first, last, best = (shown.format(x) for x in (history.scores[0], history.scores[-1], max(history.scores)))
        parts.append(f"{history.headline} {first} at the first evaluation, {last} at the last, {best} at best")
        parts.append(f"{history.steps[-1]:,.0f} {status.get('unit', 'steps').replace('_', ' ')}")
    return ", ".join([*parts, f"{history.minutes:.1f} minutes"])


@dataclass(frozen=True)
class History:
    """What a run logged, in order."""

    lines: list[dict[str, Any]]
    headline: str
    episodes: int | None
    """of each evaluation"""
    unit: str

    @classmethod
    def read(cls, run_dir: Path) -> History:
        """From metrics.jsonl, status.json and config.json."""
        status = read_status(run_dir / "status.json")
        flags = json.loads((run_dir / "config.json").read_text())["flags"]
        unit = status.get("unit", "steps").replace("_", " ")
        headline = status.get("headline", "success_once")
        return cls(read_metrics(run_dir), headline, flags.get("num_eval_episodes"), unit)

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """Lines with a score."""
        return [line for line in self.lines if line.get(f"eval/{self.headline}") is not None]

    @property
    def steps(self) -> list[float]:
        """When each evaluation was."""
        return [line["step"] for line in self.evaluations]

    @property
    def scores(self) -> list[float]:
        """Of each evaluation."""
        return [line[f"eval/{self.headline}"] for line in self.evaluations]

    @property
    def bounds(self) -> tuple[list[float], list[float]] | None:
        """95 % intervals of the scores; None where the number of episodes isn't known."""
        if self.headline == "return":
            halves = [Z_95 * (line.get("eval/return_error") or 0.0) for line in self.evaluations]
            pairs = [(score - half, score + half) for score, half in zip(self.scores, halves, strict=True)]
        elif self.episodes:
            pairs = [wilson(score, self.episodes) for score in self.scores]
        else:
            return None
        return [low for low, _ in pairs], [high for _, high in pairs]

    @property
    def elapsed(self) -> list[float]:
        """Minutes of rollouts, updates and evaluations up to each evaluation, its own included."""
        sums = accumulate(seconds_of(line) for line in self.lines)
        passed = {id(line): total / 60 for line, total in zip(self.lines, sums, strict=True)}
        return [passed[id(line)] for line in self.evaluations]

    @property
    def minutes(self) -> float:
        """Of the whole run."""
        return sum(map(seconds_of, self.lines)) / 60

    def column(self, name: str) -> tuple[list[float], list[float]]:
        """Steps and values of the lines that have a metric."""
        found = [(line["step"], line[name]) for line in self.lines if line.get(name) is not None]
        return [step for step, _ in found], [value for _, value in found]

    def charts(self) -> Iterable[str]:
        """The score over steps and over minutes, then what explains it; nothing where nothing was logged."""
        if self.scores:
            yield self.score_chart()
        if any("losses/approx_kl" in line for line in self.lines):
            yield self.noise_and_kl()
        elif any("losses/total" in line for line in self.lines):
            figure, axes = panels(1, (8, 2.8))
            axes.plot(*self.column("losses/total"))
            axes.set(xlabel=self.unit, ylabel="loss")
            yield svg(figure)

    def score_chart(self) -> str:
        """With 95 % intervals."""
        figure, axes = panels(2, (9, 3.4))
        for one, x, label in ((axes[0], self.steps, self.unit), (axes[1], self.elapsed, "minutes")):
            one.plot(x, self.scores, marker="o", markersize=3)
            if self.bounds:
                one.fill_between(x, *self.bounds, alpha=0.2)
            one.set(xlabel=label, ylabel=f"{self.headline} (95 % interval)")
            if self.headline == "success_once":
                one.set_ylim(max(min((self.bounds or [self.scores])[0]) - 0.05, 0), 1.02)
        return svg(figure)

    def noise_and_kl(self) -> str:
        """The exploration noise from its 5th to its 95th percentile, and how far each update moved the policy."""
        figure, (left, right) = panels(2, (9, 2.8))
        steps, low = self.column("losses/noise_std_p05")
        left.fill_between(steps, low, self.column("losses/noise_std_p95")[1], alpha=0.2)
        left.plot(*self.column("losses/noise_std_p50"))
        left.set(xlabel=self.unit, ylabel="noise std, median and 90 %")
        right.plot(*self.column("losses/approx_kl"))
        right.set(xlabel=self.unit, ylabel="KL of an update (nats)")
        return svg(figure)


def seconds_of(line: dict[str, Any]) -> float:
    """What a line says that was spent."""
    return sum(value for name, value in line.items() if name.startswith("time/") and value)
