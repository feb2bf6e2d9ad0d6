"""The .npz of DPPO, ReinFlow and DMPO: all steps in a line, `states`, `actions`, `traj_lengths` and perhaps `rewards`
and `terminals`, scaled to -1..1 by the bounds of the `normalization.npz` beside it.

Their converters left out episodes whose rewards sum to 0 or less, and no last observation is recorded.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from reinflow.data.archives import read_arrays
from reinflow.data.formats.base import Recording, assembled, refuse_pictures
from reinflow.data.trajectories import Trajectory
from reinflow.errors import UserError

BOUNDS = "normalization.npz"
WIDENED = 1e-6
"""added to each range by those who scaled, so that constant columns are no division by 0"""


class NpzFormat:
    """Also takes a folder that holds train.npz."""

    def recognises(self, path: Path) -> bool:
        """Whether it is a zip of `states`, `actions` and `traj_lengths`."""
        try:
            with zipfile.ZipFile(archive_of(path)) as archive:
                names = set(archive.namelist())
        except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
            return False
        return {"states.npy", "actions.npy", "traj_lengths.npy"} <= names

    def describe(self, path: Path) -> Recording:
        """States, of a task that the file doesn't name."""
        beside = archive_of(path).with_name(BOUNDS)
        note = f"{archive_of(path)} has no {BOUNDS} beside it, so its numbers are taken as they are"
        return Recording(obs_mode="state", marks_success=False, notes=() if beside.is_file() else (note,))

    def read(self, path: Path, pictures: bool) -> Iterator[Trajectory]:
        """The episodes in their order, in env units."""
        path = archive_of(path)
        if pictures:
            refuse_pictures(path, "npz")
        arrays = read_arrays(path, ("states", "actions", "rewards", "terminals", "traj_lengths"))
        states, actions = arrays["states"].float(), arrays["actions"].float()
        if path.with_name(BOUNDS).is_file():
            bounds = read_arrays(path.with_name(BOUNDS), ("obs_min", "obs_max", "action_min", "action_max"))
            states = unscaled(states, bounds, "obs", path)
            actions = unscaled(actions, bounds, "action", path)
        rewards = arrays["rewards"].float().flatten() if "rewards" in arrays else None
        terminals = arrays.get("terminals", torch.zeros(len(actions))).bool().flatten()
        lengths = arrays["traj_lengths"].long().flatten().tolist()
        columns = [states, actions, terminals, *([] if rewards is None else [rewards])]
        if min(lengths, default=0) < 0 or any(sum(lengths) != len(column) for column in columns):
            raise UserError(f"{path}: traj_lengths sum to {sum(lengths)} and there are {len(actions)} steps")
        first = 0
        for number, length in enumerate(lengths):
            rows = slice(first, first + length)
            mine = None if rewards is None else rewards[rows]
            yield assembled(f"episode {number}", states[rows], actions[rows], mine, terminals[rows])
            first += length


def archive_of(path: Path) -> Path:
    """The .npz that a path names, itself or as its folder's train.npz."""
    return path / "train.npz" if path.is_dir() else path


def unscaled(values: Tensor, bounds: dict[str, Tensor], name: str, path: Path) -> Tensor:
    """Back from -1..1 to the units of the env."""
    try:
        low, high = bounds[f"{name}_min"].float(), bounds[f"{name}_max"].float()
        return (values + 1) / 2 * (high - low + WIDENED) + low
    except (KeyError, RuntimeError):
        where = path.with_name(BOUNDS)
        raise UserError(f"{where} has no {name}_min and {name}_max for {path.name}: copy both files again") from None
