"""Minari's HDF5 datasets: a folder with `data/main_data.hdf5`, groups `episode_0`, `episode_1`, ..., and metadata.json.

Read without the minari package. Observations that are dicts are flattened in the order of their names, as
`gymnasium.spaces.flatten` does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reinflow.data.formats.base import Recording, refuse_pictures
from reinflow.data.hdf5 import as_rows, leaves, numbers, opened, top_level
from reinflow.data.trajectories import Trajectory
from reinflow.errors import UserError
from reinflow.runtime.files import read_json

FILE = "main_data.hdf5"


class MinariFormat:
    """A dataset of the Farama Foundation's store, or one that was made with its tools."""

    def recognises(self, path: Path) -> bool:
        """Whether there are groups named `episode_<number>` in its file, or its metadata say that it is Minari's."""
        file = data_file(path)
        return bool(episode_names(top_level(file))) or "minari_version" in metadata(file)

    def describe(self, path: Path) -> Recording:
        """Task and time limit, from the env's spec in the metadata."""
        about = metadata(data_file(path))
        if about.get("data_format", "hdf5") != "hdf5":
            raise UserError(
                f"{path} is a Minari dataset in the {about['data_format']} format: write it again with "
                'data_format="hdf5"'
            )
        spec = about.get("env_spec")
        try:
            spec = json.loads(spec) if isinstance(spec, str) else spec
        except (ValueError, RecursionError):
            spec = None
        spec = spec if isinstance(spec, dict) else {}
        env_id, limit = spec.get("id"), spec.get("max_episode_steps")
        return Recording(
            env_id=env_id if isinstance(env_id, str) else None,
            obs_mode="state",
            max_episode_steps=limit if isinstance(limit, int) else None,
            marks_success=marks_success(data_file(path)),
        )

    def read(self, path: Path, pictures: bool) -> Iterator[Trajectory]:
        """The episodes in the order of their numbers."""
        if pictures:
            refuse_pictures(path, "Minari")
        with opened(data_file(path)) as file:
            for name in episode_names(file):
                yield read_episode(file[name], name, f"{path}, {name}")


def data_file(path: Path) -> Path:
    """The HDF5 file of a dataset that is named by its folder, its data folder or that file."""
    for place in (path / "data" / FILE, path / FILE):
        if place.is_file():
            return place
    return path


def metadata(file: Path) -> dict[str, Any]:
    """What lies beside the data; empty where nothing does."""
    try:
        found = read_json((file if file.is_dir() else file.parent) / "metadata.json")
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def episode_names(names: Any) -> list[str]:
    """Names of episodes, in the order of their numbers."""
    found = (name for name in names if re.fullmatch(r"episode_\d{1,9}", name))
    return sorted(found, key=lambda name: int(name[len("episode_") :]))


def marks_success(file: Path) -> bool:
    """Whether its episodes note successes among their infos."""
    with opened(file) as data:
        return any("infos/success" in data[name] for name in episode_names(data)[:1])


def read_episode(group: Any, name: str, where: str) -> Trajectory:
    """One episode; Minari keeps an observation more than actions, as this project does."""
    if "observations" not in group or "actions" not in group:
        raise UserError(f"{where} lacks observations or actions: download the dataset again")
    if hasattr(group["actions"], "keys") or group["actions"].dtype.kind in "iu":
        raise UserError(f"{where} has discrete actions or a dict of them: only continuous ones can be learned here")
    actions = as_rows(numbers(group, "actions", where))
    success = torch.zeros(len(actions), dtype=torch.bool)
    if "infos/success" in group:
        marks = numbers(group, "infos/success", where).bool().flatten()
        success = marks[len(marks) - len(actions) :]  # infos of a reset are recorded too
    return Trajectory(
        obs=flat_observations(group, where),
        actions=actions,
        success=success,
        terminated=numbers(group, "terminations", where).bool(),
        truncated=numbers(group, "truncations", where).bool(),
        rewards=numbers(group, "rewards", where) if "rewards" in group else None,
        name=name,
    )


def flat_observations(group: Any, where: str) -> Tensor:
    """(t+1 s), of a dict's entries in the order of their names."""
    names = sorted(leaves(group["observations"], "observations"), key=lambda name: name.split("/"))
    columns = [numbers(group, name, where) for name in names]
    if not columns:
        raise UserError(f"{where} has no observations: download the dataset again")
    return torch.cat([column.reshape(len(column), -1) for column in columns], dim=1)
