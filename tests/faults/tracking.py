"""F11: trackers that stall, raise, or never start."""

from __future__ import annotations

import json
import statistics
import threading
import time
from pathlib import Path
from unittest import mock

from reinflow.run import trackers
from reinflow.run.metrics import MetricsLog
from tests.waiting import HANGS

ITERATION = 0.02
"""seconds of an iteration; real ones take longer"""
network = threading.Event()
"""never comes back"""


class Stalling:
    name = "stalling"

    def write(self, metrics: dict[str, float], step: int) -> None:
        network.wait(HANGS)

    def close(self) -> None: ...


class Raising(Stalling):
    def write(self, metrics: dict[str, float], step: int) -> None:
        raise ConnectionError("network is unreachable")


def never() -> Stalling:
    network.wait(HANGS)
    return Stalling()


TRACKERS = {"none": None, "stalling": Stalling, "raising": Raising, "never starting": never}


def tracking(folder: Path, full: bool) -> str:
    """F11: CPU time of a logged step with each tracker, beside an iteration's; no wait for one; every line is there."""
    steps = 2000 if full else 200
    costs, began = {}, time.monotonic()
    with (
        mock.patch.object(trackers, "CLOSING_SECONDS", 0.05),
        mock.patch.object(trackers, "QUEUED", steps // 2),  # so that a queue is full, too
    ):
        for name, make in TRACKERS.items():
            path = folder / f"{name}.jsonl"
            log = MetricsLog(lambda line: None, failed=lambda what, error: None)
            log.open(path)
            if make is not None:
                log.track(name, make)
            seconds = []
            for step in range(steps):
                before = time.thread_time()
                log.write({f"losses/{index}": 0.5 for index in range(20)}, step)
                seconds.append(time.thread_time() - before)
            log.close()
            costs[name] = statistics.median(seconds)
            lines = [json.loads(line)["step"] for line in path.read_text().splitlines()]
            assert lines == list(range(steps)), f"{name}: metrics were lost"
    assert time.monotonic() - began < HANGS, "a tracker was waited for"
    worst = max(cost - costs["none"] for cost in costs.values()) / ITERATION
    assert worst <= 0.01, f"a tracker costs {worst:.1%} of a 20 ms iteration"
    return f"{worst:+.2%} of a 20 ms iteration at worst; {steps} of {steps} lines each"
