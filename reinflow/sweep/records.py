"""The record of a job: `LOG_DIR/jobs/<job>.json`, written by the sweep, read by the monitor and by the next sweep."""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from reinflow.files import write_json
from reinflow.status import read_status

State = Literal["queued", "running", "done", "failed", "killed"]


@dataclass
class Record:
    """What a sweep knows of a job; the run itself writes the rest into its status.json."""

    name: str
    category: str
    variant: str
    seed: int
    run_dir: str
    state: State = "queued"
    attempts: int = 0
    slot: str | None = None
    """GPU, or core, that it runs on"""
    pid: int | None = None
    host: str = field(default_factory=platform.node)
    error: str | None = None
    started: float | None = None
    """unix time"""
    ended: float | None = None
    command: list[str] = field(default_factory=list)

    def path(self, log_dir: Path) -> Path:
        return log_dir / "jobs" / f"{self.name}.json"

    def save(self, log_dir: Path) -> None:
        path = self.path(log_dir)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(self))


def read_records(log_dir: Path) -> list[Record]:
    """All jobs of a sweep in the order of their categories; files of other versions are left out."""
    records = []
    for path in sorted((log_dir / "jobs").glob("*.json")):
        try:
            records.append(Record(**json.loads(path.read_text())))
        except (OSError, ValueError, TypeError):
            continue
    return records


@dataclass(frozen=True)
class View:
    """A job as it stands now: its record, corrected by its run's status.json and by whether its process lives."""

    record: Record
    state: State
    status: dict[str, Any]
    """fields of status.json; empty before the run has made it"""

    @property
    def age(self) -> float | None:
        """Seconds since the run's last sign of life."""
        return time.time() - self.status["heartbeat"] if "heartbeat" in self.status else None


def look(record: Record) -> View:
    """A run that says `running` while its process is gone was killed."""
    status = read_status(Path(record.run_dir) / "status.json") if record.attempts else {}
    state = record.state
    if state == "running" and record.host == platform.node() and not alive(record.pid):
        state = "done" if status.get("state") == "done" else "killed"
    return View(record, state, status)


def alive(pid: int | None) -> bool:
    """Whether a process of this machine runs; a zombie doesn't."""
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return True
