"""A replay buffer on disk: files of a fixed number of decisions, each written once, beside the training.

A checkpoint then holds only what no file has yet, so that it costs the same whatever the buffer holds.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from reinflow.errors import UserError
from reinflow.runtime.files import flush_folder, replace
from reinflow.runtime.trees import copied, join, split
from reinflow.storage.sealed import Damaged, seal, unseal

ROWS = 1_024
"""decisions of a file: half a megabyte of states, some tens of megabytes of pictures"""
RESUMABLE = 3
"""states whose decisions stay on disk: the two that a run keeps, and the one that is being written"""


class Rows(Protocol):
    """A ring of rows, numbered from the first that was ever added."""

    count: int
    capacity: int

    def rows(self, start: int, stop: int) -> dict[str, Any]:
        """The rows of these numbers, as a tree of tensors."""
        ...

    def refill(self, count: int, parts: list[tuple[int, dict[str, Any]]]) -> None:
        """Hold what these rows are, each part with the number of its first, after `count` were added."""
        ...


class Journal:
    """Writes the rows of a ring to `folder`, in a thread of its own; a number of rows is `written` once durable."""

    def __init__(self, folder: Path, size: int = ROWS):
        self.folder = folder
        self.size = size
        self.written = 0
        """rows from the first on that files hold, or held until they were too old"""
        self._offered = 0
        self._saved: deque[int] = deque(maxlen=RESUMABLE)
        self._pending: deque[Future[None]] = deque()
        self._writer: ThreadPoolExecutor | None = None

    def offer(self, ring: Rows) -> None:
        """Begin to write the files that have become full.

        A ring of hardly more than a file has none, and neither has one that went round while the disk refused: their
        rows are in the checkpoints.
        """
        if ring.capacity < 2 * self.size or self._offered < ring.count - ring.capacity:
            return
        while self._offered + self.size <= ring.count:
            rows = copied(ring.rows(self._offered, self._offered + self.size))
            self._writer = self._writer or ThreadPoolExecutor(max_workers=1, thread_name_prefix="replay")
            self._pending.append(self._writer.submit(self._write, self._offered, rows))
            self._offered += self.size

    def settle(self) -> OSError | None:
        """Wait until all that was offered is durable; gives what the disk said where it refused.

        What it refused stays in the next checkpoints, and is offered again.
        """
        error: OSError | None = None
        while self._pending:
            try:
                self._pending.popleft().result()
                if error is None:
                    self.written += self.size
            except OSError as problem:
                error = error or problem
        self._offered = self.written
        return error

    def state(self, ring: Rows) -> dict[str, Any]:
        """What a checkpoint holds of a ring whose offered rows are settled; files that no state needs are deleted."""
        self._saved.append(ring.count)
        self._forget(self._saved[0] - ring.capacity)
        start = max(self.written, ring.count - ring.capacity)
        return {"count": ring.count, "capacity": ring.capacity, "start": start, "rows": ring.rows(start, ring.count)}

    def restore(self, ring: Rows, state: dict[str, Any]) -> None:
        """Fill a ring from files and a `state`; later files go.

        UserError for a file that is missing or damaged, ValueError for a ring of another size.
        """
        self.settle()
        count, start, capacity = state["count"], state["start"], state["capacity"]
        self.written = self._offered = start - start % self.size
        for path, first in self._files():
            if first >= self.written:
                path.unlink()
        oldest = max(count - capacity, 0)
        firsts = range(oldest - oldest % self.size, self.written, self.size)
        parts = [(first, self._read(first)) for first in firsts]
        ring.refill(count, [*parts, (start, state["rows"])])
        if ring.capacity != capacity:
            raise ValueError(f"the replay buffer held {capacity} decisions, this one holds {ring.capacity}")

    def _write(self, first: int, rows: dict[str, Any]) -> None:
        plain, tensors = split(rows)
        self.folder.mkdir(parents=True, exist_ok=True)
        replace(self._path(first), seal(tensors, {"first": first, "rows": plain}))
        flush_folder(self.folder)

    def _read(self, first: int) -> dict[str, Any]:
        path = self._path(first)
        try:
            tensors, description = unseal(path.read_bytes())
            return join(description["rows"], tensors)
        except OSError as error:
            raise UserError(f"{path} can't be read ({error.strerror}): a resume needs it") from None
        except (Damaged, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}): a resume needs it") from None

    def _forget(self, before: int) -> None:
        for path, first in self._files():
            if first + self.size <= before:
                path.unlink(missing_ok=True)

    def _files(self) -> list[tuple[Path, int]]:
        return [(path, int(path.stem.split("_")[1])) for path in sorted(self.folder.glob("rows_*.safetensors"))]

    def _path(self, first: int) -> Path:
        return self.folder / f"rows_{first:012d}.safetensors"
