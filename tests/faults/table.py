"""The faults by number: what is done, and the function that does it and says what it measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults import disk, inputs, processes, ranks, stopping, tracking, values

Inject = Callable[[Path, bool], str]
"""(empty folder, whether with the full numbers) -> what was measured; AssertionError where a promise was broken"""


@dataclass(frozen=True)
class Fault:
    """One row of the table."""

    number: str
    injection: str
    inject: Inject


FAULTS = [
    Fault("F1", "kill -9 at counted calls and inside saves; resume", stopping.kills),
    Fault("F2", "failure and death at every system call of a save", stopping.failing_calls),
    Fault("F3", "cuts, flips and mutations of checkpoints", disk.damage),
    Fault("F4", "SIGTERM at counted calls, once and twice", stopping.signals),
    Fault("F5", "full, read-only and forbidden disks", disk.disks),
    Fault("F6", "numbers that aren't finite, everywhere", values.numbers),
    Fault("F7", "simulator workers killed and hung", processes.workers),
    Fault("F8", "bad and mutated demonstrations", inputs.demonstrations),
    Fault("F9", "files that try to run code", inputs.malice),
    Fault("F10", "resume of another run", inputs.resumes),
    Fault("F11", "trackers that stall, raise or never start", tracking.tracking),
    Fault("F12", "two trainers in one directory", processes.two_trainers),
    Fault("F13", "a rank of several killed or stopped", ranks.ranks),
    Fault("F14", "sweep drivers and jobs killed", processes.sweeps),
    Fault("F15", "thousands of iterations: memory and open files", stopping.endurance),
    Fault("F16", "save, load, save of random states", disk.round_trips),
]
