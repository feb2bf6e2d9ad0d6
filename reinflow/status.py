"""status.json: all that a monitor or a report needs to know of a run, replaced atomically."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

from reinflow.files import read_json, write_json

BEAT_SECONDS = 1.0
"""shortest time between two writes that only move the step"""


class Status:
    """A dict that is a file.

    Fields: name, seed, state (running | done | failed | killed), pid, host, gpu, step, total, unit, sps, eta (seconds),
    phase, kl and clip_fraction (of the last update), success, best_success, success_history ([step, success] pairs),
    alarms, write_failures (what a disk refused), error, started and heartbeat (unix time).
    """

    def __init__(self, path: Path, fields: dict[str, Any]):
        self.path = path
        self._fields = fields
        self._written = 0.0

    @classmethod
    def new(cls, path: Path, name: str, seed: int, total: int, unit: str, resumed: bool) -> Status:
        """A fresh status; a resumed run keeps its successes."""
        import torch  # not at the top: monitors and sweeps read a status, and torch takes seconds to start

        fields = {
            "name": name,
            "seed": seed,
            "state": "starting",
            "pid": os.getpid(),
            "host": platform.node(),
            "gpu": os.environ.get("CUDA_VISIBLE_DEVICES", "0") if torch.cuda.is_available() else None,
            "step": 0,
            "total": total,
            "unit": unit,
            "sps": None,
            "eta": None,
            "phase": None,
            "success": None,
            "best_success": None,
            "success_history": [],
            "alarms": [],
            "write_failures": 0,
            "error": None,
            "started": time.time(),
        }
        if resumed:
            before = read_status(path)
            kept = ("step", "success", "best_success", "success_history")
            fields.update({key: before[key] for key in kept if key in before})
        return cls(path, fields)

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    def update(self, **fields: Any) -> None:
        """Set fields and write the file."""
        self._fields.update(fields)
        success = fields.get("success")
        if success is not None:
            self._fields["success_history"].append([self._fields["step"], success])
            self._fields["best_success"] = max(success, self._fields["best_success"] or 0.0)
        self._write()

    def beat(self, step: int, **fields: Any) -> None:
        """Move the step; written at most once a second."""
        self._fields.update(step=step, **fields)
        if time.time() - self._written >= BEAT_SECONDS:
            self._write()

    def count_failure(self) -> None:
        """A write failed; shown with the next one that succeeds."""
        self._fields["write_failures"] += 1

    def _write(self) -> None:
        self._written = time.time()
        try:
            write_json(self.path, {**self._fields, "heartbeat": self._written})
        except OSError:
            self.count_failure()


def read_status(path: Path) -> dict[str, Any]:
    """The fields of a status.json, empty where there is none that can be read."""
    try:
        fields = read_json(path)
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}
