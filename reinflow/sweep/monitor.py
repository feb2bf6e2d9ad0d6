"""A live table of a sweep, read from the files that the sweep and its runs write, and from nothing else.

./monitor_reinflow.sh --log-dir runs/sweep --interval 10
./monitor_reinflow.sh --once --json
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reinflow.cli import run_script
from reinflow.errors import UserError
from reinflow.run.progress import clock
from reinflow.run.status import headline_field
from reinflow.sweep.records import View, look, read_records

NARROW, WIDE = 80, 100
"""columns of the table without and with KL, clip fraction and speed"""
TREND = "_.-=+*#@"
"""a score from low to high in a character"""
TREND_WIDTH = 5
STATES = ("running", "queued", "failed", "killed", "done")


@dataclass(frozen=True)
class Config:
    """Show where every job of a sweep stands."""

    log_dir: str = "runs/sweep"
    """folder of the sweep"""
    interval: float = 10.0
    """seconds between two looks"""
    once: bool = False
    """look once and stop"""
    json: bool = False
    """print the jobs as JSON instead of a table"""


def main(config: Config) -> None:
    """Show the sweep every `--interval` seconds until all jobs have ended, or once."""
    if config.interval <= 0:
        raise UserError(f"--interval {config.interval} must be more than 0 seconds")
    log_dir = Path(config.log_dir)
    if not (log_dir / "jobs").is_dir():
        raise UserError(f"{log_dir} is not the folder of a sweep: pass the --log-dir of ./sweep_reinflow_parallel.sh")
    while True:
        views = [look(record) for record in read_records(log_dir)]
        if config.json:
            print(json.dumps([as_json(view) for view in views], indent=1), flush=True)
        else:
            width = shutil.get_terminal_size((NARROW, 24)).columns
            screen = table(log_dir, views, width)
            print(f"\x1b[H\x1b[2J{screen}" if sys.stdout.isatty() and not config.once else screen, flush=True)
        if config.once or all(view.state in ("done", "failed", "killed") for view in views):
            return
        time.sleep(config.interval)


def as_json(view: View) -> dict[str, Any]:
    """Record, state and status of a job, as `--json` prints them."""
    return {**vars(view.record), "state": view.state, "status": view.status}


def table(log_dir: Path, views: list[View], width: int = NARROW) -> str:
    """Summary, one line per job, the worst news last; no line is longer than `width` where that is at least 80."""
    lines = [summary(log_dir, views)]
    header = "slot run                 seed phase   progress      now best trend      ETA  age"
    wide = width >= WIDE
    lines.append(header + ("      KL clip%   SPS" if wide else ""))
    for state in STATES:
        lines += [row(view) + (diagnosis(view) if wide else "") for view in views if view.state == state]
    for view in views:
        reasons = [view.record.error] if view.state == "failed" and view.record.error else []
        reasons += view.status.get("alarms", []) if view.state == "running" else []
        lines += [f"! {label(view)} seed {view.record.seed}: {reason}" for reason in reasons]
    return "\n".join(line[: max(width, NARROW)] for line in lines)


def summary(log_dir: Path, views: list[View]) -> str:
    """The line above the table: jobs by state, time spent and time left."""
    counts = Counter(view.state for view in views)
    parts = [f"{counts[state]} {state}" for state in ("done", "running", "queued", "failed", "killed") if counts[state]]
    eta = sweep_eta(views)
    left = f"  ETA {clock(eta)}" if eta is not None else ""
    return f"{len(views)} jobs: {' '.join(parts)}  elapsed {clock(elapsed(views))}{left}  in {log_dir}"


def elapsed(views: list[View]) -> float:
    """Seconds from the first start to the last end, or to now while something runs."""
    started = [view.record.started for view in views if view.record.started]
    if not started:
        return 0.0
    if any(view.state == "running" for view in views):
        return time.time() - min(started)
    return max([view.record.ended for view in views if view.record.ended] or started) - min(started)


def sweep_eta(views: list[View]) -> float | None:
    """Seconds until all jobs are done, as if the running ones' mean duration held for the queued ones too."""
    left = [view.status["eta"] for view in views if view.state == "running" and view.status.get("eta") is not None]
    if not left:
        return None
    started = [view for view in views if view.state == "running" and view.status.get("sps")]
    whole = [view.status["total"] / view.status["sps"] for view in started]
    queued = sum(view.state == "queued" for view in views)
    rounds = queued / max(sum(view.state == "running" for view in views), 1)
    return max(left) + rounds * (sum(whole) / len(whole) if whole else 0.0)


def row(view: View) -> str:
    """A line of the table: slot, job, seed, phase, progress, score, best, trend, time left, age of the status."""
    status, record = view.status, view.record
    share = status.get("step", 0) / max(status.get("total", 0), 1)
    shown = view.state if view.state != "running" else (status.get("phase") or "start")
    eta = clock(status["eta"]) if view.state == "running" and status.get("eta") is not None else ""
    age = f"{view.age:.0f}s" if view.state == "running" and view.age is not None else ""
    score = headline_field(status)
    return (
        f"{(record.slot or '-')[:4]:4} {label(view):19} {record.seed:>4} {shown:7} {bar(share)} "
        f"{number(status.get(score))} {number(status.get(f'best_{score}'))} "
        f"{trend(status.get(f'{score}_history', []), score):{TREND_WIDTH}} {eta:>7} {age:>4}"
    )


def diagnosis(view: View) -> str:
    """KL and clip fraction of the last update, and the speed."""
    status = view.status
    if view.state != "running" or status.get("sps") is None:
        return ""
    kl, clipped = status.get("kl"), status.get("clip_fraction")
    known = f" {kl:>7.2g} {clipped:>5.0%}" if kl is not None and clipped is not None else " " * 14
    return f"{known} {status['sps']:>5.0f}"


def label(view: View) -> str:
    """Category and name of the job's configuration."""
    return f"{view.record.category}:{view.record.variant}"


def bar(share: float, width: int = 6) -> str:
    """A progress bar of `width` characters and the share in %."""
    share = min(max(share, 0.0), 1.0)  # the last iteration runs past the total
    full = round(share * width)
    return f"[{'#' * full}{'.' * (width - full)}]{share:>4.0%}"


def number(score: float | None) -> str:
    """In four characters: a success with two digits, a return with as many as there is room for."""
    if score is None:
        return "   -"
    digits = next((d for d in (2, 1) if len(f"{score:.{d}f}") <= 4), 0)
    return f"{score:4.{digits}f}"


def trend(history: list[list[float]], score: str = "success") -> str:
    """The last scores as characters from low to high: successes from 0 to 1, returns from the lowest to the highest."""
    scores = [value for _, value in history]
    low, high = (0.0, 1.0) if score == "success" else (min(scores, default=0.0), max(scores, default=1.0))
    shares = [(value - low) / ((high - low) or 1.0) for value in scores[-TREND_WIDTH:]]
    return "".join(TREND[min(int(share * len(TREND)), len(TREND) - 1)] for share in shares)


if __name__ == "__main__":
    run_script(main, Config)
