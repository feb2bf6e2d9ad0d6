"""The record of a job: `LOG_DIR/jobs/<job>.json`, written by the sweep, read by the monitor and by the next sweep."""

from __future__ import annotations

import json
import os
import platform
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from reinflow.run.status import read_status
from reinflow.runtime.files import write_json

State = Literal["queued", "running", "done", "failed", "killed"]

SILENT_SECONDS = 1800.0
"""a run on another machine, whose processes can't be seen, is taken for dead after so long: evaluations are silent"""


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
    failures: int = 0
    """attempts that ended with an error of their own"""
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
        """The record's file in the folder of its sweep."""
        return log_dir / "jobs" / f"{self.name}.json"

    def runs_as(self, slot: str, pid: int) -> None:
        """A new attempt began on this machine."""
        self.state, self.slot, self.pid, self.host = "running", slot, pid, platform.node()
        self.attempts += 1
        self.started, self.error = time.time(), None

    def save(self, log_dir: Path) -> None:
        """Write the record, complete or not at all."""
        path = self.path(log_dir)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(self))


def read_records(log_dir: Path) -> list[Record]:
    """All jobs of a sweep in the order of their categories; files of other versions are left out."""
    found = [read_record(log_dir, path.stem) for path in sorted((log_dir / "jobs").glob("*.json"))]
    return [record for record in found if record is not None]


def read_record(log_dir: Path, name: str) -> Record | None:
    """None where there is none that can be read."""
    try:
        return Record(**json.loads((log_dir / "jobs" / f"{name}.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


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
    """A run that says `running` while its process is gone, or on another machine shows no sign of life, was killed."""
    status = read_status(Path(record.run_dir) / "status.json") if record.attempts else {}
    view = View(record, record.state, status)
    if record.state != "running":
        return view
    here = record.host == platform.node()
    gone = not alive(record.pid) if here else (view.age or 0.0) > SILENT_SECONDS
    if not gone:
        return view
    return View(record, "done" if status.get("state") == "done" else "killed", status)


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
