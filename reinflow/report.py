"""The page that a sweep, a run or a quick start ends in: `python -m reinflow.report FOLDER` writes report.html there.

It is one file that needs no network (page.py). Of a sweep there are report.md and results.csv, too.
"""

from __future__ import annotations

import csv
import html
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from reinflow import run_page
from reinflow.cli import run_script
from reinflow.errors import UserError
from reinflow.page import described, document, panels, svg, table, video
from reinflow.sweep.records import View, look, read_records
from reinflow.sweep.results import CONFIDENCE, Summary, common_goal, read_metrics, summarise

COLUMNS = (
    "configuration", "seeds", "{score}", "±95 %", "vs baseline", "vs pretrained", "best", "steps to goal", "stability",
    "drawdown", "minutes", "steps/s", "s/epoch",
)  # fmt: skip


@dataclass(frozen=True)
class Unit:
    """How a page shows scores."""

    word: str
    headline: str
    """whose mean over episodes it is"""
    factor: float
    sign: str


UNITS = {
    "success_once": Unit("success", "success_once", 100.0, " %"),
    "return": Unit("return", "return", 1.0, ""),
}


@dataclass(frozen=True)
class Config:
    """Write the report of a sweep, of a run, or of a quick start."""

    log_dir: Annotated[str, tyro.conf.Positional]
    """its folder"""


def main(config: Config) -> None:
    """Write report.html, and for a sweep two files more; UserError for a folder of anything else."""
    log_dir = Path(config.log_dir)
    if text := run_page.page(log_dir):
        (log_dir / "report.html").write_text(text)
        print(f"wrote {log_dir / 'report.html'}")
        return
    views = [look(record) for record in read_records(log_dir)]
    if not views:
        raise UserError(
            f"{log_dir} is not the folder of a sweep, a run or a quick start: pass the --log-dir of "
            "./sweep_reinflow_parallel.sh, a run below runs/, or the quick start's --output_dir"
        )
    summaries = summarise(views)
    goal = common_goal(summaries) if summaries else 0.0
    (log_dir / "report.html").write_text(page(log_dir, views, summaries, goal))
    (log_dir / "report.md").write_text(markdown(views, summaries, goal))
    write_csv(log_dir / "results.csv", views)
    print(f"wrote {log_dir / 'report.html'}, report.md and results.csv")


# ---- numbers as text ------------------------------------------------------------------------------------------------


def baseline_of(summaries: list[Summary]) -> Summary | None:
    """The first configuration of the category `baseline`; None where the sweep has none."""
    return next((summary for summary in summaries if summary.category == "baseline"), None)


def unit_of(summaries: list[Summary]) -> Unit:
    """A sweep has one task, so all of its runs have one headline."""
    return UNITS[summaries[0].curves[0].headline if summaries else "success_once"]


def columns(summaries: list[Summary]) -> list[str]:
    """Titles of the table."""
    return [name.format(score=unit_of(summaries).word) for name in COLUMNS]


def number(value: float | None, digits: int) -> str:
    """With `digits` decimals and a comma after thousands; a dash for None."""
    return "-" if value is None else f"{value:,.{digits}f}"


def cells(summary: Summary, baseline: Summary | None, goal: float) -> list[str]:
    """A configuration's row; a difference to the baseline that the seeds bear out has a star."""
    interval, count, factor = summary.interval, len(summary.curves), unit_of([summary]).factor
    versus = "-"
    if baseline is not None and summary is not baseline:
        star = "*" if summary.differs_from(baseline) else ""
        versus = f"{factor * (summary.final - baseline.final):+.1f}{star}"
    reached = summary.steps_to(goal)
    some = f" ({len(reached)}/{count})" if len(reached) < count else ""
    return [
        summary.key,
        str(count),
        f"{factor * summary.final:.1f}",
        number(None if interval is None else factor * interval, 1),
        versus,
        f"{factor * summary.gain:+.1f}",
        f"{factor * summary.mean('best'):.1f}",
        f"{sum(reached) / len(reached):,.0f}{some}" if reached else "-",
        f"{factor * summary.mean('stability'):.1f}",
        f"{factor * summary.mean('drawdown'):.1f}",
        f"{summary.mean('seconds') / 60:.1f}",
        number(summary.mean_of("speed"), 0),
        number(summary.mean_of("epoch_seconds"), 2),
    ]


def verdict(summaries: list[Summary]) -> str:
    """Which differences to the baseline exceed the noise of the seeds, in a sentence."""
    baseline = baseline_of(summaries)
    if baseline is None:
        return "There is no finished baseline to compare with."
    others = [summary for summary in summaries if summary is not baseline]
    judged = [(summary, summary.differs_from(baseline)) for summary in others]
    if all(differs is None for _, differs in judged):
        return 'With one seed per configuration no difference can be told from noise: run --seeds "0 1 2" or more.'
    parts = []
    for word, sign in (("better", 1), ("worse", -1)):
        names = [s.key for s, differs in judged if differs and sign * (s.final - baseline.final) > 0]
        if names:
            parts.append(f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} {word} than the baseline")
    comparable = sum(differs is not None for _, differs in judged)
    unclear = sum(differs is False for _, differs in judged)
    parts.append(f"{unclear} of {comparable} configurations can't be told from it (95 % level, Welch's t test)")
    if comparable < len(judged):
        parts.append(f"{len(judged) - comparable} have one seed, which can't be compared")
    chance = (1 - CONFIDENCE) * comparable
    return f"{'; '.join(parts)}. By chance alone about {chance:.1f} would look different."


def explanation(goal: float, unit: Unit) -> str:
    """What the table's columns mean, in the unit of its scores."""
    percent = ", in %" if unit.sign else ""
    return (
        f"{unit.word}: {unit.headline} of the evaluations in the last fifth of a run, mean over seeds{percent}. "
        f"steps to goal: env steps until a {unit.word} of {unit.factor * goal:.0f}{unit.sign}, 80 % of the way from "
        "the pretrained policy to the best configuration; (seeds that got there). "
        f"stability: standard deviation over the last fifth. drawdown: largest fall below an earlier {unit.word}. "
        "minutes: rollouts, updates and evaluations of a run. steps/s: env steps, evaluations left out. "
        "s/epoch: a PPO epoch over one rollout. *: differs from the baseline at the 95 % level."
    )


def markdown(views: list[View], summaries: list[Summary], goal: float) -> str:
    """The text of report.md: verdict, table, its explanation and the jobs that failed."""
    baseline = baseline_of(summaries)
    lines = ["# ReinFlow sweep", "", heading(views), "", verdict(summaries), ""]
    lines += ["| " + " | ".join(columns(summaries)) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(cells(summary, baseline, goal)) + " |" for summary in summaries]
    lines += ["", explanation(goal, unit_of(summaries)), ""]
    lines += [f"* {view.record.name}: {view.state}: {view.record.error or ''}" for view in unfinished(views)]
    return "\n".join(lines) + "\n"


def heading(views: list[View]) -> str:
    """How many jobs there are, and how many in each state."""
    counts = Counter(view.state for view in views)
    return f"{len(views)} jobs: " + ", ".join(f"{count} {state}" for state, count in counts.most_common())


def unfinished(views: list[View]) -> list[View]:
    """Jobs that failed or were killed."""
    return [view for view in views if view.state in ("failed", "killed")]


def write_csv(path: Path, views: list[View]) -> None:
    """Every evaluation of every run."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["category", "variant", "seed", "state", "env_steps", "success_once", "success_at_end", "return"]
        )
        for view in views:
            record = view.record
            for line in read_metrics(Path(record.run_dir)):
                if "eval/success_once" in line:
                    numbers = [line.get(f"eval/{name}") for name in ("success_once", "success_at_end", "return")]
                    writer.writerow([record.category, record.variant, record.seed, view.state, line["step"], *numbers])


# ---- the page -------------------------------------------------------------------------------------------------------


def page(log_dir: Path, views: list[View], summaries: list[Summary], goal: float) -> str:
    """The text of report.html: verdict, tables and charts by category, failures and videos."""
    baseline = baseline_of(summaries)
    body = [f"<h1>ReinFlow sweep</h1><p>{html.escape(heading(views))}</p>", origin(views)]
    body.append(f"<p><b>{html.escape(verdict(summaries))}</b></p>")
    body.append(html_table(summaries, baseline, goal))
    body.append(f'<p class="note">{html.escape(explanation(goal, unit_of(summaries)))} Click a column to sort.</p>')
    for category in dict.fromkeys(s.category for s in summaries if s is not baseline):
        members = [s for s in summaries if s is baseline or s.category == category]
        ranked = sorted(members, key=lambda summary: -summary.final)
        body.append(f"<h2>{html.escape(category)}</h2>{html_table(ranked, baseline, goal)}{chart(members)}")
    body.append('<p class="note">Lines are means over seeds, bands reach from the lowest to the highest seed.</p>')
    body.append(failures(log_dir, views))
    body.append(videos(views))
    return document("ReinFlow sweep", body)


def origin(views: list[View]) -> str:
    """Task, commit, versions and the command of the first job that left its config.json."""
    found = (described(Path(view.record.run_dir)) for view in views)
    return next(filter(None, found), "")


def html_table(summaries: list[Summary], baseline: Summary | None, goal: float) -> str:
    """A row per configuration, with significant differences to the baseline coloured."""
    rows = []
    for summary in summaries:
        texts = cells(summary, baseline, goal)
        marks = ["" for _ in texts]
        if texts[4].endswith("*"):
            marks[4] = "better" if texts[4].startswith("+") else "worse"
        rows.append(list(zip(texts, marks, strict=True)))
    return table(columns(summaries), rows)


def chart(summaries: list[Summary]) -> str:
    """Scores over env steps, mean over seeds with the range between them, as SVG."""
    import numpy as np

    figure, axes = panels(1, (8, 3.6))
    for index, summary in enumerate(summaries):
        end = min(curve.steps[-1] for curve in summary.curves)
        grid = np.linspace(0, end, 60)
        values = np.stack([np.interp(grid, curve.steps, curve.scores) for curve in summary.curves])
        style: dict[str, Any] = {"color": "black", "linestyle": "--"} if summary.category == "baseline" else {}
        (line,) = axes.plot(grid, values.mean(0), label=summary.key, zorder=len(summaries) - index, **style)
        if len(values) > 1:
            axes.fill_between(grid, values.min(0), values.max(0), alpha=0.15, color=line.get_color())
    unit = unit_of(summaries)
    axes.set(xlabel="env steps", ylabel=unit.headline)
    if unit.headline == "success_once":
        lowest = min(min(curve.scores) for summary in summaries for curve in summary.curves)
        axes.set_ylim(max(lowest - 0.05, 0), 1.02)
    axes.legend(fontsize=8, loc="best")
    return svg(figure)


def failures(log_dir: Path, views: list[View]) -> str:
    """Jobs that did not end well, with the last lines of their logs."""
    parts = []
    for view in unfinished(views):
        log = log_dir / f"{view.record.name}.log"
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:]) if log.exists() else ""
        parts.append(f"<h3>{html.escape(view.record.name)}: {view.state}</h3><pre>{html.escape(tail)}</pre>")
    return f"<h2>failed or killed</h2>{''.join(parts)}" if parts else ""


def videos(views: list[View]) -> str:
    """First and last evaluation video of every run that recorded some."""
    parts = []
    for view in views:
        found = sorted((Path(view.record.run_dir) / "videos").glob("*.mp4"))
        parts += [video(path, f"{view.record.name}: {path.stem}") for path in dict.fromkeys(found[:1] + found[-1:])]
    return f"<h2>videos</h2>{''.join(parts)}" if parts else ""


if __name__ == "__main__":
    run_script(main, Config)
