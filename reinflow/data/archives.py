"""Reading .npz archives that others made: nothing in them runs, and nothing is larger in memory than it says."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from reinflow.data.hdf5 import MOST_COMPRESSION
from reinflow.errors import UserError

DAMAGES = (OSError, ValueError, KeyError, EOFError, TypeError, SyntaxError, NotImplementedError, RuntimeError,
           MemoryError, OverflowError, RecursionError, zipfile.BadZipFile, zlib.error)  # fmt: skip
"""what zipfile, zlib and numpy's parser of headers raise"""


def read_arrays(path: Path, wanted: Iterable[str]) -> dict[str, Tensor]:
    """Those of the wanted arrays that there are, by name; UserError for a damaged archive or what is no number."""
    found: dict[str, Tensor] = {}
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            for name in wanted:
                if f"{name}.npy" in names:
                    found[name] = torch.from_numpy(read_array(archive, f"{name}.npy", size))
    except DAMAGES as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"{path} is damaged or no archive of numbers ({reason}): copy it again") from None
    return found


def read_array(archive: zipfile.ZipFile, name: str, size: int) -> np.ndarray:
    """One array of an archive of `size` bytes; ValueError where it claims more than that can hold, or is no number."""
    member = archive.getinfo(name)
    with archive.open(member) as stream:
        version = npy.read_magic(stream)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(stream)
    if dtype.kind not in "fiub":
        raise ValueError(f"{name} holds {dtype}, not numbers")
    claimed = int(np.prod([int(n) for n in shape], dtype=object)) * dtype.itemsize
    if claimed > min(member.file_size, MOST_COMPRESSION * size):
        raise ValueError(f"{name} claims {claimed:,} bytes in a file of {size:,}")
    with archive.open(member) as stream:
        array = npy.read_array(stream, allow_pickle=False)
    return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("="))
