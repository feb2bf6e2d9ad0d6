"""Waiting for an event; a time only bounds what hangs. Imports nothing slow: small scripts of tests use it."""

from __future__ import annotations

import time
from collections.abc import Callable

HANGS = 400.0
"""seconds after which whatever a test still waits for hangs; on the busiest machine nothing else takes so long"""


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + HANGS
    while not condition():
        assert time.monotonic() < deadline, f"it did not come about within {HANGS:.0f} s"
        time.sleep(0.02)
