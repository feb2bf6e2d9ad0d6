"""A tracker that can't block: it lives in a thread of its own behind a bounded queue.

A tracker that stalls (no network) loses its own metrics when the queue is full and nothing else; one that raises
stops. `metrics.jsonl` holds everything either way.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

QUEUED = 1_000
"""writes that wait for a slow tracker"""
CLOSING_SECONDS = 10.0
"""how long the end of a run waits for all of its trackers to send what is queued"""


class Sink(Protocol):
    """Where metrics go."""

    name: str

    def write(self, metrics: dict[str, float], step: int) -> None:
        """Take metrics of one step of the run."""
        ...

    def close(self) -> None:
        """Finish what was taken; nothing is written afterwards."""
        ...


class Tracker:
    """A `Sink` around another, made and used by a thread; `warn` is called by whoever writes, never by the thread."""

    def __init__(self, name: str, make: Callable[[], Sink], warn: Callable[[str], None]):
        self.name = name
        self.lost = 0
        """writes that found the queue full"""
        self._make = make
        self._warn = warn
        self._queue: queue.Queue[tuple[dict[str, float], int] | None] = queue.Queue(QUEUED)
        self._failure: str | None = None
        self._told = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def write(self, metrics: dict[str, float], step: int) -> None:
        """Queue the metrics for the thread; they are lost where the queue is full or the tracker has failed."""
        self._tell()
        if self._failure is not None:
            return
        try:
            self._queue.put_nowait((metrics, step))
        except queue.Full:
            self.lost += 1
            if self.lost == 1:
                self._warn(f"the {self.name} log does not keep up and loses metrics; metrics.jsonl has them all")

    def close(self, deadline: float) -> None:
        """Wait for the thread until `deadline` of the monotonic clock; one that stalls dies with the process."""
        try:
            self._queue.put(None, timeout=left(deadline))
        except queue.Full:
            pass
        else:
            self._thread.join(left(deadline))
        self._tell()
        if self._thread.is_alive():
            self._warn(f"the {self.name} log did not finish in time and was left behind")

    def _tell(self) -> None:
        if self._failure is not None and not self._told:
            self._told = True
            self._warn(self._failure)

    def _work(self) -> None:
        try:
            sink = self._make()
        except BaseException as error:  # third-party trackers raise anything, and no tracker is worth a training run
            self._failure = f"no {self.name} log: {type(error).__name__}: {error}"
            return
        try:
            while (item := self._queue.get()) is not None:
                sink.write(*item)
            sink.close()
        except BaseException as error:  # as above: a full disk or a lost server
            self._failure = f"the {self.name} log stopped: {type(error).__name__}: {error}"


def close_all(trackers: Sequence[Tracker]) -> None:
    """Wait for all of them together no longer than `CLOSING_SECONDS`."""
    deadline = time.monotonic() + CLOSING_SECONDS
    for tracker in trackers:
        tracker.close(deadline)


def left(deadline: float) -> float:
    """Seconds until then, 0 afterwards."""
    return max(deadline - time.monotonic(), 0.0)
