"""status.json: all that a monitor or a report needs to know of a run, replaced atomically."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

from reinflow.runtime.files import read_json, write_json

BEAT_SECONDS = 1.0
"""shortest time between two writes that only move the step"""
HEADLINES = {"success_once": "success", "return": "return"}
"""what tasks are ranked by (`reinflow.types.Headline`), and what people read; fields that an evaluation sets"""
SCORES = tuple(HEADLINES.values())


class Status:
    """A dict that is a file.

    Fields: name, seed, state (running | done | failed | killed), pid, host, gpu, step, total, unit, sps, eta (seconds),
    phase, kl and clip_fraction (of the last update), headline (success_once | return: what the task is ranked by),
    success, best_success, success_history ([step, success] pairs) and the same three of return, alarms, write_failures
    (what a disk refused), error, started and heartbeat (unix time).
    """

    def __init__(self, path: Path, fields: dict[str, Any]):
        self.path = path
        self._fields = fields
        self._written = 0.0

    @classmethod
    def new(cls, path: Path, name: str, seed: int, total: int, unit: str, resumed: bool) -> Status:
        """A fresh status; a resumed run keeps its successes."""
        import torch  # not at the top: monitors and sweeps read a status, and torch takes seconds to start

        fields: dict[str, Any] = {
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
            "headline": "success_once",
            **{field: None for name in SCORES for field in (name, f"best_{name}")},
            **{f"{name}_history": [] for name in SCORES},
            "alarms": [],
            "write_failures": 0,
            "error": None,
            "started": time.time(),
        }
        if resumed:
            before = read_status(path)
            kept = [field for name in SCORES for field in (name, f"best_{name}", f"{name}_history")]
            fields.update({key: before[key] for key in ("step", "headline", *kept) if key in before})
        return cls(path, fields)

    def __getitem__(self, name: str) -> Any:
        return self._fields[name]

    def update(self, **fields: Any) -> None:
        """Set fields and write the file."""
        self._fields.update(fields)
        for name in SCORES:
            if (score := fields.get(name)) is not None:
                self._fields[f"{name}_history"].append([self._fields["step"], score])
                best = self._fields[f"best_{name}"]
                self._fields[f"best_{name}"] = score if best is None else max(score, best)
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


def headline_field(status: dict[str, Any]) -> str:
    """The score to look at; runs of before there was a choice are ranked by success."""
    return HEADLINES[status.get("headline", "success_once")]


def read_status(path: Path) -> dict[str, Any]:
    """The fields of a status.json, empty where there is none that can be read."""
    try:
        fields = read_json(path)
    except (OSError, ValueError):
        return {}
    return fields if isinstance(fields, dict) else {}
