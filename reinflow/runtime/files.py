"""Files that are either complete or absent: written beside their place, flushed to disk, then renamed over it.

Every change of the disk that a checkpoint needs goes through the functions here, one system call of `os` each.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).resolve().parents[2]
"""the folder that `reinflow`, `nets` and the scripts lie in"""


@contextmanager
def replaced_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that becomes `path` when the block succeeds and vanishes when it fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace(path: Path, data: bytes | bytearray) -> None:
    """Write a file so that a kill at any moment leaves the old one or the new one; OSError leaves the old one."""
    with replaced_atomically(path) as temporary:
        write_durably(temporary, data)


def write_durably(path: Path, data: bytes | bytearray) -> None:
    """Write a new file and wait until the disk has it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(path: Path) -> None:
    """Wait until the disk has the names in a folder: a rename alone may be lost in a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any) -> None:
    """Replace a file by the indented JSON of `plain(value)`."""
    replace(path, (json.dumps(plain(value), indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """What a JSON file holds; OSError if it can't be read, ValueError if it is no JSON, however deep."""
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None


def plain(value: Any) -> Any:
    """What JSON can hold: paths and unknown objects as text, tuples as lists, numbers that aren't finite as null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)
