"""Writes demonstrations in ManiSkill's own trajectory format, so that its replay and dataset tools read them.

Differs from ManiSkill's RecordEpisode: both files appear at their place only when complete, and every episode of a
batch has the seed that reproduces it alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from reinflow.errors import UserError
from reinflow.runtime.files import plain

Tree = Mapping[str, Any]
"""arrays by name, nested"""


PICTURE_DIMS = 4
"""of a camera's frames (t y x c), which are compressed one by one, so that any of them is quickly read"""


class TrajectoryWriter:
    """Collects episodes into `path` and the .json beside it; use it as a context manager.

    The files are written as `*.partial` and renamed when the block ends well; when it fails they vanish.
    """

    def __init__(
        self,
        path: str | Path,
        env_info: Mapping[str, Any],
        source: Mapping[str, str],
        overwrite: bool = False,
        see: Callable[[dict[str, Any]], Tree] | None = None,
    ):
        """`env_info` holds env_id, env_kwargs and max_episode_steps; `source` source_type and source_desc.

        `see` changes every episode before it is written. Raises UserError where a file is in the way and `overwrite` is
        off.
        """
        import h5py

        self.path = Path(path)
        self._see = see
        refuse_existing(self.path, overwrite)
        self.description: dict[str, Any] = {"env_info": dict(env_info), "commit_info": None, "episodes": [], **source}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        suffix = f".{os.getpid()}.partial"
        self._partial = self.path.with_name(self.path.name + suffix)
        self._partial_json = self.path.with_name(description_path(self.path).name + suffix)
        self._file = h5py.File(self._partial, "w")

    def __enter__(self) -> TrajectoryWriter:
        return self

    def __exit__(self, error: type[BaseException] | None, *details: object) -> None:
        self._file.close()
        try:
            if error is None:
                self._publish()
        finally:
            self._partial.unlink(missing_ok=True)
            self._partial_json.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self.description["episodes"])

    def add(self, data: Tree, seed: int | None, control_mode: str) -> None:
        """Append an episode of T steps.

        Args:
            data: `obs` and every leaf of `env_states` with T+1 rows; `actions`, `rewards`, `success`, `terminated` and
                `truncated` with T.
            seed: `env.reset(seed=seed)` on a single env starts this episode; None where that isn't known.
        """
        number = len(self)
        write_tree(self._file, f"traj_{number}", self._see(dict(data)) if self._see else data)
        self.description["episodes"].append(
            {
                "episode_id": number,
                "episode_seed": seed,
                "control_mode": control_mode,
                "elapsed_steps": len(data["actions"]),
                "reset_kwargs": {"options": None, "seed": seed},
                "success": bool(data["success"][-1]),
            }
        )

    def _publish(self) -> None:
        self._partial_json.write_text(json.dumps(plain(self.description), indent=2) + "\n")
        for partial in (self._partial, self._partial_json):
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(self._partial_json, description_path(self.path))
        os.replace(self._partial, self.path)


def description_path(path: Path) -> Path:
    """The .json that belongs to an .h5."""
    return path.with_suffix(".json")


def refuse_existing(path: Path, overwrite: bool) -> None:
    """UserError where demonstrations would be written over others, or the name isn't that of an .h5 file."""
    if path.suffix != ".h5":
        raise UserError(f"--output {path} must end in .h5: a .json of the same name is written beside it")
    for taken in (path, description_path(path)):
        if taken.exists() and not overwrite:
            raise UserError(f"{taken} exists: pass --overwrite to replace it or another --output")


def write_tree(group: Any, name: str, value: Any) -> None:
    """Nested arrays as nested HDF5 groups, in their order."""
    if isinstance(value, Mapping):
        child = group.create_group(name, track_order=True)
        for key, item in value.items():
            write_tree(child, key, item)
    else:
        array = value.cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        pictures = {"chunks": (1, *array.shape[1:]), "compression": "gzip", "compression_opts": 1}
        group.create_dataset(name, data=array, **(pictures if array.ndim == PICTURE_DIMS else {}))
