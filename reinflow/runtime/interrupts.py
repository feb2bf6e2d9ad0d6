"""Being told to stop: inside `deferred` a signal is only noted, and acted on where nothing is half done.

    with listening(last_words), deferred():
        for batch in batches:
            check()        # raises Interrupted if a signal came since
            update(batch)

Outside of `deferred` there is nothing to finish and the signal raises at once. A second one ends the process.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

T = TypeVar("T")

EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129, signal.SIGUSR1: 85}
"""85 asks a scheduler to queue the job again"""


class Interrupted(SystemExit):
    """Asked to stop; its code is the exit code of the process."""

    def __init__(self, number: int):
        super().__init__(EXIT_CODES[signal.Signals(number)])
        self.signal = signal.Signals(number).name


@dataclass
class _Noted:
    """Signals belong to the process, and so does this."""

    number: int | None = None
    """the signal that came"""
    deferred: bool = False


_noted = _Noted()


def check() -> None:
    """Raise Interrupted if a signal came; call it between minibatches, decisions and evaluation steps."""
    if _noted.number is not None:
        raise Interrupted(_noted.number)


def between(items: Iterable[T]) -> Iterator[T]:
    """The items, with a `check` before each is used."""
    for item in items:
        check()
        yield item


@contextmanager
def deferred() -> Iterator[None]:
    """While the block runs, signals wait for `check`."""
    _noted.deferred = True
    try:
        yield
    finally:
        _noted.deferred = False


@contextmanager
def listening(last_words: Callable[[], None]) -> Iterator[None]:
    """Handle signals while the block runs, in the main thread; `last_words()` runs before a second one exits.

    A signal that is ignored stays ignored: nohup asks for that.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner = os.getpid()

    def note(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # inherited by a forked worker: die as if it had no handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if _noted.number is not None:
            last_words()
            os._exit(EXIT_CODES[signal.Signals(number)])
        _noted.number = number
        if not _noted.deferred:
            raise Interrupted(number)

    wanted = [number for number in EXIT_CODES if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in wanted}
    try:
        yield
    finally:
        if os.getpid() == owner:
            for number, handler in before.items():
                signal.signal(number, handler)
            _noted.number = None
