"""Reading HDF5 files that others made: what the library says of a damaged one becomes one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reinflow.errors import UserError

MOST_COMPRESSION = 1032
"""no deflated data is larger than so many times its file"""


class HeldOpen(UserError):
    """Another process has the file open for writing."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """UserError instead of what h5py raises for damaged files, of which there is no list."""
    try:
        yield
    except UserError:
        raise
    except BlockingIOError:
        raise HeldOpen(
            f"{path} is held open by another process, which may still be writing it: wait until that is done, or end it"
        ) from None
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(
            f"{path} is cut short, damaged or not an HDF5 file ({reason}): copy it again or collect it again"
        ) from None


def refuse_impossible_size(stored: Any, where: str, size: int) -> None:
    """UserError for a dataset that its file of `size` bytes can't hold, before memory is taken for it."""
    if stored.nbytes > MOST_COMPRESSION * size:
        raise UserError(f"{where} claims {stored.nbytes:,} bytes in a file of {size:,}: the file is damaged")


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file for reading; UserError for whatever is wrong with it while it is read."""
    import h5py

    with reading(path), h5py.File(path, "r") as file:
        yield file


def top_level(path: Path) -> list[str]:
    """Names at the root of a file; none where it can't be read. UserError where another process writes it."""
    try:
        with opened(path) as file:
            return list(file)
    except HeldOpen:
        raise
    except UserError:
        return []


def numbers(group: Any, key: str, where: str) -> Tensor:
    """A dataset as float32; UserError where it is missing, no numbers or larger than its file. `where` names the group.

    A group without it, such as a soft link to nowhere, has none.
    """
    if key not in group or not hasattr(group[key], "shape"):
        raise UserError(f"{where} has no {key}: collect the demonstrations again")
    stored = group[key]
    if stored.dtype.kind not in "fiub":
        raise UserError(f"{where}, {key} holds {stored.dtype}, not numbers: collect the demonstrations again")
    refuse_impossible_size(stored, f"{where}, {key}", Path(group.file.filename).stat().st_size)
    return torch.from_numpy(np.asarray(stored).astype(np.float32))


def leaves(group: Any, name: str) -> list[str]:
    """Names of the datasets below a group in the order in which they were recorded."""
    if hasattr(group, "shape"):
        return [name]
    return [leaf for key, item in group.items() for leaf in leaves(item, f"{name}/{key}")]


def as_rows(value: Tensor) -> Tensor:
    """(t) or (t d) as (t d)."""
    return value.unsqueeze(1) if value.dim() == 1 else value
