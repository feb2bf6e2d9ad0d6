"""Signs of life between the processes of one run."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

import torch.distributed as dist

BEAT_SECONDS = 3.0
"""between two signs of life"""
LOST_SECONDS = 45.0
"""a process that gave no sign of life for so long is lost"""
MEETING_PLACE = "the meeting point (process 0 or torchrun)"


class Watch(threading.Thread):
    """Ends this process when another one shows no sign of life: a collective would wait for it for hours.

    torchrun sees a process that ended, and connections break then; it does not see one that hangs, or a machine that
    is gone.
    """

    current: Watch | None = None
    """the one of this process"""
    on_lost: Callable[[str], None] | None = None
    """told why, before the process ends"""

    def __init__(self, store: dist.Store, rank: int, world_size: int):
        """Gives the first sign of life; `start` it when everyone has."""
        super().__init__(name="watch", daemon=True)
        self.store = store
        self.rank = rank
        self.others = [number for number in range(world_size) if number != rank]
        self.stopped = threading.Event()
        self.beats = 0
        self.seen: dict[int, tuple[bytes, float]] = {}
        """last beat of every other process, and when it was new"""
        self.answered = time.monotonic()
        """when the store last answered; the process that holds it may hang, too, and calls to it then never return"""
        self.beat()

    def start(self) -> None:
        """Start to look for the others, and a second thread that looks after the store."""
        self.answered = time.monotonic()
        super().start()
        threading.Thread(target=self.watch_the_store, name="watch the store", daemon=True).start()

    def end(self) -> None:
        """Stop looking, and be the watch of this process no longer."""
        self.stopped.set()
        self.join(BEAT_SECONDS)
        Watch.current, Watch.on_lost = None, None

    def run(self) -> None:
        """Every `BEAT_SECONDS` give a sign of life and look for those of the others."""
        while not self.stopped.wait(BEAT_SECONDS):
            try:
                self.beat()
                lost = self.lost()
                self.answered = time.monotonic()
            except RuntimeError:
                lost = [MEETING_PLACE]
            self.give_up_on(lost)

    def watch_the_store(self) -> None:
        """Give up once the store has not answered for `LOST_SECONDS`, since calls to it may never return."""
        while not self.stopped.wait(BEAT_SECONDS):
            if time.monotonic() - self.answered > LOST_SECONDS:
                self.give_up_on([MEETING_PLACE])

    def give_up_on(self, lost: list[str]) -> None:
        """End this process and name the lost ones, unless there are none or the watch has ended."""
        if lost and not self.stopped.is_set():
            self.give_up(f"no sign of life from {', '.join(lost)} of this run: it ended, hangs or lost its network")

    def beat(self) -> None:
        """Raise this process's number in the store."""
        self.beats += 1
        self.store.set(str(self.rank), str(self.beats))

    def lost(self) -> list[str]:
        """The processes whose number has not changed for `LOST_SECONDS`."""
        now = time.monotonic()
        for number in self.others:
            beat = self.store.get(str(number))
            if beat != self.seen.get(number, (None, 0.0))[0]:
                self.seen[number] = (beat, now)
        return [f"process {number}" for number in self.others if now - self.seen[number][1] > LOST_SECONDS]

    def give_up(self, reason: str) -> None:
        """The main thread may never return from its collective, so no exception can end it."""
        try:
            print(f"error: {reason}", file=sys.stderr, flush=True)
            if Watch.on_lost is not None:
                Watch.on_lost(reason)
        finally:
            os._exit(1)
