"""Faults at a counted moment of a run, never after a guessed time: a busy machine moves none of them.

`python -m tests.faults.strikes STRIKE SCRIPT ...` runs a script that strikes itself, `Strike.command` is that line.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from reinflow.runtime import interrupts
from reinflow.training import keeper
from tests.faults.runs import every_call

MOST_CALLS = 1000
"""function calls between a check and a strike; from the last check to the end of a run there are more"""


@dataclass(frozen=True)
class Strike:
    """A signal that a process sends itself, once."""

    number: int
    note: str
    """file that says when; where it exists, the strike was before a restart and does not come again"""
    checks: int
    """of `interrupts.check`, which runs between minibatches, decisions and evaluation steps"""
    calls: int = 0
    """of functions, after that check"""
    rank: int = 0
    """of the process that is struck, where a run has several"""

    @classmethod
    def drawn(cls, draw: Random, number: int, note: Path, checks: tuple[int, int], rank: int = 0) -> Strike:
        """Anywhere in the code after a check between those two."""
        return cls(number, str(note), draw.randint(*checks), draw.randrange(MOST_CALLS), rank)

    def command(self, script: str | Path, *words: str) -> list[str]:
        """Arguments of Python that run a script with this strike."""
        return ["-m", "tests.faults.strikes", json.dumps(asdict(self)), str(script), *words]

    def arm(self, then: Callable[[], None] = lambda: None) -> None:
        """Strike this process when the moment comes; `then()` is called just before."""
        if int(os.environ.get("RANK", "0")) != self.rank or Path(self.note).exists():
            return

        def strike() -> None:
            then()
            hit(self.number, Path(self.note))

        on_checks(at(self.checks, lambda: after_calls(self.calls, strike)))


def hit(number: int, note: Path) -> None:
    note.write_text(str(time.monotonic()))
    os.kill(os.getpid(), number)


def since(note: Path) -> float:
    """Seconds since a strike."""
    return time.monotonic() - float(note.read_text())


def on_checks(act: Callable[[], None]) -> None:
    """From now on `act()` comes before every check for signals."""
    check = interrupts.check

    def checking() -> None:
        act()
        check()

    interrupts.check = checking


def on_calls_of_saves(act: Callable[[], None]) -> None:
    """`act()` comes before every system call by which the saves from now on change the disk.

    Not before those that the training makes beside a save: how many there are is a matter of time.
    """
    save = keeper.save_training

    def saving(*arguments: object) -> Path:
        saver = threading.get_ident()
        with every_call(lambda number, name: act() if threading.get_ident() == saver else None):
            return save(*arguments)  # type: ignore[arg-type]

    keeper.save_training = saving  # type: ignore[assignment]


def at(count: int, act: Callable[[], None]) -> Callable[[], None]:
    """Something that does `act` the `count`-th time it is called, and otherwise nothing."""
    called = 0

    def call() -> None:
        nonlocal called
        called += 1
        if called == count:
            act()

    return call


def after_calls(count: int, act: Callable[[], None]) -> None:
    """`act()` before the function call that follows the next `count` ones of this thread."""

    def last() -> None:
        sys.setprofile(None)
        act()

    call = at(count + 1, last)
    sys.setprofile(lambda frame, event, argument: call() if event in ("call", "c_call") else None)


if __name__ == "__main__":
    strike, *sys.argv = sys.argv[1:]
    Strike(**json.loads(strike)).arm()
    runpy.run_path(sys.argv[0], run_name="__main__")
