"""ManiSkill's trajectory format: an .h5 of groups `traj_0`, `traj_1`, ... beside a .json that describes it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reinflow.data.formats.base import Recording, refuse_too_few
from reinflow.data.hdf5 import reading, refuse_impossible_size, top_level
from reinflow.data.pictures import find_pictures
from reinflow.data.trajectories import Trajectory
from reinflow.errors import UserError
from reinflow.runtime.files import read_json
from reinflow.types import canonical_obs_mode

HOW_IT_WAS_RECORDED = {
    "num_envs", "obs_mode", "control_mode", "reward_mode", "sim_backend", "render_backend", "render_mode",
    "max_episode_steps", "reconfiguration_freq", "sensor_configs", "human_render_camera_configs",
    "viewer_camera_configs", "shader_dir", "enable_shadow", "parallel_in_single_scene", "sim_config",
}  # fmt: skip
"""arguments of an env that have a field of their own, show in the data, or change nothing in the task"""


class ManiSkillFormat:
    """What ManiSkill's own tools and collect_demos.py write."""

    def recognises(self, path: Path) -> bool:
        """Whether the file holds groups named `traj_<number>`."""
        return bool(episode_names(top_level(path)))

    def describe(self, path: Path) -> Recording:
        """What the .json beside the file says of the env."""
        about = read_description(path)["env_info"]
        settings = about["env_kwargs"]
        return Recording(
            env_id=about["env_id"],
            obs_mode=recorded_mode(settings),
            control_mode=settings.get("control_mode"),
            reward_mode=settings.get("reward_mode"),
            max_episode_steps=about.get("max_episode_steps"),
            env_kwargs=own_kwargs(settings),
        )

    def read(self, path: Path, num_demos: int | None, pictures: bool) -> list[Trajectory]:
        """The groups `traj_0`, `traj_1`, ... in that order; pictures are located, and read by those who train."""
        import h5py

        size = path.stat().st_size
        with reading(path), h5py.File(path, "r") as file:
            names = episode_names(file)
            refuse_too_few(path, len(names), num_demos)
            trajectories = []
            for name in names[:num_demos]:
                where = f"{path}, {name}"
                trajectory = read_trajectory(file[name], name, where, size)
                if pictures:
                    trajectory.pictures = find_pictures(path, file[name], where, len(trajectory.obs), size)
                trajectories.append(trajectory)
        return trajectories


def episode_names(names: Iterable[str]) -> list[str]:
    """Those of episodes, in the order of their numbers."""
    return sorted((n for n in names if re.fullmatch(r"traj_\d{1,9}", n)), key=lambda n: int(n[len("traj_") :]))


def own_kwargs(settings: dict[str, Any]) -> dict[str, Any]:
    """The arguments that say something of the task itself, such as its robot."""
    return {name: value for name, value in settings.items() if name not in HOW_IT_WAS_RECORDED}


def recorded_mode(settings: dict[str, Any]) -> str | None:
    """The observation mode of a recording in the project's spelling, where it has one."""
    mode = settings.get("obs_mode")
    try:
        return None if mode is None else canonical_obs_mode(mode)
    except (ValueError, AttributeError):
        return str(mode)


def read_description(path: Path) -> dict[str, Any]:
    """The .json that ManiSkill writes beside the .h5."""
    beside = path.with_suffix(".json")
    try:
        info = read_json(beside)
        about = info["env_info"]
        sound = isinstance(about["env_id"], str) and isinstance(about["env_kwargs"], dict)
        if not sound or not isinstance(about.get("max_episode_steps"), (int, type(None))):
            raise TypeError("fields of other kinds")
    except FileNotFoundError:
        raise UserError(f"{path} has no {beside.name} beside it: copy both files of the recording") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{beside} is not a trajectory description of ManiSkill: copy it again or collect the demos again"
        ) from None
    return info


def read_trajectory(group: Any, name: str, where: str, size: int) -> Trajectory:
    """One trajectory; `where` names it in errors, `size` is that of its file in bytes."""

    def column(key: str, dtype: type) -> Tensor:
        if key not in group or not hasattr(group[key], "shape"):
            raise UserError(f"{where} has no {key}: collect the demonstrations again")
        stored = group[key]
        if stored.dtype.kind not in "fiub":
            raise UserError(f"{where}, {key} holds {stored.dtype}, not numbers: collect the demonstrations again")
        refuse_impossible_size(stored, f"{where}, {key}", size)
        value = np.asarray(stored)
        return torch.from_numpy(value.astype(dtype))

    obs = torch.cat([as_rows(column(key, np.float32)) for key in state_columns(group, where)], dim=1)
    actions = column("actions", np.float32)
    success, terminated, truncated = (column(key, bool) for key in ("success", "terminated", "truncated"))
    rewards = column("rewards", np.float32) if "rewards" in group else None
    return Trajectory(obs, actions, success, terminated, truncated, rewards, name=name)


def state_columns(group: Any, where: str) -> list[str]:
    """The datasets that make up a state: one, or beside pictures those of `agent` and `extra`, as ManiSkill does."""
    obs = group.get("obs")
    if obs is not None and hasattr(obs, "shape"):
        return ["obs"]
    if obs is None or "sensor_data" not in obs:
        raise UserError(f"{where} has no obs of state or image observations: record it with obs_mode state or rgb")
    if "state" in obs:
        return ["obs/state"]
    found = [name for part in ("agent", "extra") if part in obs for name in leaves(obs[part], f"obs/{part}")]
    if not found:
        raise UserError(f"{where} has pictures but no states of the robot: record the file again")
    return found


def leaves(group: Any, name: str) -> list[str]:
    """Names of the datasets below a group in the order in which they were recorded."""
    if hasattr(group, "shape"):
        return [name]
    return [leaf for key, item in group.items() for leaf in leaves(item, f"{name}/{key}")]


def as_rows(value: Tensor) -> Tensor:
    """(t) or (t d) as (t d)."""
    return value.unsqueeze(1) if value.dim() == 1 else value
