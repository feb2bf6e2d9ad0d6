"""Reading HDF5 files that others made: what the library says of a damaged one becomes one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reinflow.errors import UserError

MOST_COMPRESSION = 1032
"""no deflated data is larger than so many times its file"""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """UserError instead of what h5py raises for damaged files, of which there is no list."""
    try:
        yield
    except UserError:
        raise
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(
            f"{path} is cut short, damaged or not an HDF5 file ({reason}): copy it again or collect it again"
        ) from None


def refuse_impossible_size(stored: Any, where: str, size: int) -> None:
    """UserError for a dataset that its file of `size` bytes can't hold, before memory is taken for it."""
    if stored.nbytes > MOST_COMPRESSION * size:
        raise UserError(f"{where} claims {stored.nbytes:,} bytes in a file of {size:,}: the file is damaged")


def top_level(path: Path) -> list[str]:
    """Names at the root of a file; none where it can't be read."""
    import h5py

    try:
        with reading(path), h5py.File(path, "r") as file:
            return list(file)
    except UserError:
        return []
