"""Progress of a run for a person: a bar on a terminal, otherwise a plain line every few seconds.

A line that can't be shown (a full disk, a terminal that is gone, a pipe that nobody reads) is no reason to end a run.
"""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from reinflow.cli import drop_unwritable

LINE_SECONDS = 5.0
"""shortest time between two plain lines"""
NOBODY_READS = {errno.EPIPE, errno.EIO}


class Progress:
    """`keep(line)` receives every line that is printed (for train.log)."""

    def __init__(self, total: int, unit: str, keep: Callable[[str], None]):
        self.total = total
        self.unit = unit
        self.step = 0
        self.speed: float | None = None
        """units per second since the start, evaluations included"""
        self.eta: float | None = None
        """seconds left at that speed"""
        self._keep = keep
        self._shown: dict[str, Any] = {}
        self._line_time = 0.0
        self._bar = tqdm(total=total, unit=f" {unit}", dynamic_ncols=True) if sys.stderr.isatty() else None
        self.start(0)

    def start(self, step: int) -> None:
        """Measure speed from here."""
        self.step = self._first = step
        self._clock = time.perf_counter()
        if self._bar is not None:
            with forgiving():
                self._bar.reset(self.total)
            self._bar.initial = self._bar.n = step

    def show(self, **fields: Any) -> None:
        """Fields that stay in the line until they change; None hides one."""
        self._shown.update(fields)

    def update(self, step: int, postfix: dict[str, Any]) -> None:
        """`postfix` values may be tensors; they are read only when a line is shown."""
        seconds = time.perf_counter() - self._clock
        if step > self._first and seconds > 0:
            self.speed = (step - self._first) / seconds
            self.eta = max(self.total - step, 0) / self.speed
        self.step = step
        now = time.monotonic()
        if now - self._line_time < LINE_SECONDS and step < self.total:
            return
        self._line_time = now
        words = [
            f"{name} {value if isinstance(value, str) else f'{float(value):.3g}'}" for name, value in postfix.items()
        ]
        if self._bar is not None:
            self._bar.set_postfix_str("  ".join(self._fields() + words), refresh=False)
            with forgiving():
                self._bar.update(step - self._bar.n)
            self._keep(self._line(words))
        else:
            self.print(self._line(words))

    def print(self, line: str) -> None:
        """Show a line above the bar, or as it is, after handing it to `keep`."""
        self._keep(line)
        with forgiving():
            if self._bar is not None:
                self._bar.write(line)
            else:
                print(line, flush=True)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            with forgiving():
                self._bar.close()

    def _fields(self) -> list[str]:
        words = []
        for name, value in self._shown.items():
            if value is not None:
                words.append(str(value) if name == "phase" else f"{name} {value:.3f}")
        return words

    def _line(self, words: list[str]) -> str:
        done = f"{self.step:,}/{self.total:,} {self.unit} ({self.step / max(self.total, 1):.0%})"
        timing = [f"{self.speed:,.0f}/s", f"ETA {clock(self.eta)}"] if self.speed and self.eta is not None else []
        return "  ".join([done, *self._fields(), *timing, *words])


@contextmanager
def forgiving() -> Iterator[None]:
    """A full disk may take the next line; a lost terminal or pipe never does."""
    try:
        yield
    except OSError as error:
        if error.errno in NOBODY_READS:
            drop_unwritable()


def clock(seconds: float) -> str:
    """3725 -> 1:02:05"""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
