"""LeRobot's datasets, states only: `meta/info.json` and parquet files under `data/`, of versions 2 and 3.

A frame holds the observation before its action and the reward after it; what follows an episode's last action is not
recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reinflow.data.formats.base import Recording, assembled, refuse_pictures
from reinflow.data.hdf5 import as_rows
from reinflow.data.trajectories import Trajectory
from reinflow.errors import UserError
from reinflow.runtime.files import read_json

STATES = ("observation.state", "observation.environment_state")
ACTION, REWARD, SUCCESS = "action", "next.reward", "next.success"
EPISODE, FRAME = "episode_index", "frame_index"


class LeRobotFormat:
    """A dataset's folder; it needs pyarrow, the extra `lerobot`."""

    def recognises(self, path: Path) -> bool:
        """Whether `meta/info.json` names the version of a LeRobot dataset."""
        return "codebase_version" in information(path)

    def describe(self, path: Path) -> Recording:
        """States of a task and robot that the folder doesn't name in this project's words."""
        features = information(path).get("features")
        return Recording(obs_mode="state", marks_success=isinstance(features, dict) and SUCCESS in features)

    def read(self, path: Path, pictures: bool) -> Iterator[Trajectory]:
        """The episodes in the order of their numbers."""
        if pictures:
            refuse_pictures(path, "LeRobot")
        table = read_table(path)
        episode, frame = (column(table, name, path).flatten().long() for name in (EPISODE, FRAME))
        order = torch.from_numpy(np.lexsort((frame.numpy(), episode.numpy())))
        states = torch.cat([column(table, name, path) for name in STATES if name in table], dim=1)[order]
        actions = column(table, ACTION, path)[order]
        rewards, success = (column(table, n, path).flatten()[order] if n in table else None for n in (REWARD, SUCCESS))
        solved = torch.zeros(len(actions), dtype=torch.bool) if success is None else success.bool()
        episode = episode[order]
        for number in episode.unique().tolist():
            mine = episode == number
            mine_rewards = None if rewards is None else rewards[mine]
            steps = states[mine], actions[mine], mine_rewards, solved[mine]
            yield assembled(f"episode {number}", *steps, success=solved[mine])


def information(path: Path) -> dict[str, Any]:
    """The dataset's own description; empty where there is none."""
    try:
        found = read_json(path / "meta" / "info.json")
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def read_table(path: Path) -> dict[str, np.ndarray]:
    """The wanted columns of all its parquet files by name; UserError where one is missing, damaged or unreadable."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise UserError(f"{path} is a LeRobot dataset, which pyarrow reads: pip install 'reinflow[lerobot]'") from None
    files = sorted((path / "data").rglob("*.parquet"))
    wanted = {*STATES, ACTION, REWARD, SUCCESS, EPISODE, FRAME}
    try:
        found = [parquet.ParquetFile(file) for file in files]
        tables = [one.read(columns=[name for name in one.schema_arrow.names if name in wanted]) for one in found]
        table = pyarrow.concat_tables(tables)
        columns = {name: stacked(table[name]) for name in table.column_names}
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, LookupError, MemoryError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"{path}/data holds no whole parquet files ({reason}): copy the dataset again") from None
    return columns


def stacked(chunks: Any) -> np.ndarray:
    """A column as one array, lists of equal length as its rows."""
    rows = chunks.to_numpy()
    return np.stack(rows) if rows.dtype == object else rows


def column(table: dict[str, np.ndarray], name: str, path: Path) -> Tensor:
    """(t d) numbers; UserError where the dataset lacks them."""
    if name not in table:
        raise UserError(f"{path} has no {name}: only datasets with states and actions can be read")
    if table[name].dtype.kind not in "fiub":
        raise UserError(f"{path}, {name} holds {table[name].dtype}, not numbers: copy the dataset again")
    return as_rows(torch.from_numpy(table[name].astype(np.float32)))
