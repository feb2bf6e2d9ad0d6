"""Host memory with the interface of `sapien.CudaArray`, plus a record of what the simulator last saw."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class HostBuffer:
    """A float32 array that ManiSkill reads and writes as a tensor.

    `seen` holds the values last exchanged with the simulator. Only entries that differ from it are written back:
    writing an unchanged pose wakes bodies and refreshes contacts, so a partial reset would disturb the other envs.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.array: Float[np.ndarray, "rows cols"] = np.zeros(shape, np.float32)
        self.seen = self.array.copy()
        self._tensor = torch.from_numpy(self.array)

    def torch(self) -> Float[Tensor, "rows cols"]:
        """The buffer itself, not a copy."""
        return self._tensor

    def changed(self) -> Bool[np.ndarray, "rows cols"]:
        """Entries that were written since the last exchange with the simulator."""
        return self.array != self.seen

    def changed_rows(self, rows: slice, columns: slice) -> Int[np.ndarray, "m"]:
        """Indices, counted from the start of `rows`, of rows that were written since the last exchange."""
        return (self.array[rows, columns] != self.seen[rows, columns]).any(1).nonzero()[0]

    def mark_seen(self, rows: slice = slice(None), columns: slice = slice(None)) -> None:
        """Take what is in these rows and columns for what the simulator holds."""
        self.seen[rows, columns] = self.array[rows, columns]

    def force(self, rows: Bool[np.ndarray, "rows"] | slice) -> None:
        """Have these rows written back whatever they hold (NaN differs from everything)."""
        self.seen[rows] = np.nan
