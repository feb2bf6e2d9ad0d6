"""ManiSkill's trajectory format: an .h5 of groups `traj_0`, `traj_1`, ... beside a .json that describes it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from reinflow.data.config import replay_command
from reinflow.data.formats.base import Recording
from reinflow.data.hdf5 import as_rows, leaves, numbers, opened, top_level
from reinflow.data.pictures import DTYPES, find_pictures
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
BACKENDS = {"cpu": "physx_cpu", "physx_cpu": "physx_cpu", "gpu": "physx_cuda", "cuda": "physx_cuda",
            "physx_gpu": "physx_cuda", "physx_cuda": "physx_cuda"}  # fmt: skip
"""ManiSkill's names of simulators"""
UNUSED = {"segmentation", "position", "normal", "albedo"}
"""what ManiSkill's cameras give beside the pictures that a policy sees"""


class ManiSkillFormat:
    """What ManiSkill's own tools and collect_demos.py write."""

    def recognises(self, path: Path) -> bool:
        """Whether the file holds groups named `traj_<number>`."""
        return bool(episode_names(top_level(path)))

    def describe(self, path: Path) -> Recording:
        """What the .json beside the file says of the env, and where that says nothing, its episodes and the file."""
        about = read_description(path)
        settings = about["env_info"]["env_kwargs"]
        robots = settings.get("robot_uids")
        return Recording(
            env_id=about["env_info"]["env_id"] or None,
            obs_mode=recorded_mode(settings.get("obs_mode"), path),
            control_mode=settings.get("control_mode") or control_mode_of(about, path),
            reward_mode=settings.get("reward_mode"),
            max_episode_steps=about["env_info"].get("max_episode_steps"),
            sim_backend=BACKENDS.get(str(settings.get("sim_backend")).split(":")[0]),
            robot=robots if isinstance(robots, (str, type(None))) else "+".join(map(str, robots)),
            env_kwargs=own_kwargs(settings),
            replayable=True,
        )

    def read(self, path: Path, pictures: bool) -> Iterator[Trajectory]:
        """The groups `traj_0`, `traj_1`, ... in that order; pictures are located, and read by those who train."""
        size = path.stat().st_size
        with opened(path) as file:
            for name in episode_names(file):
                where = f"{path}, {name}"
                trajectory = read_trajectory(file[name], name, path)
                if pictures:
                    trajectory.pictures = find_pictures(path, file[name], where, len(trajectory.obs), size)
                yield trajectory


def episode_names(names: Iterable[str]) -> list[str]:
    """Those of episodes, in the order of their numbers."""
    return sorted((n for n in names if re.fullmatch(r"traj_\d{1,9}", n)), key=lambda n: int(n[len("traj_") :]))


def own_kwargs(settings: dict[str, Any]) -> dict[str, Any]:
    """The arguments that say something of the task itself, such as its robot."""
    return {name: value for name, value in settings.items() if name not in HOW_IT_WAS_RECORDED}


def recorded_mode(named: Any, path: Path) -> str:
    """The observation mode of a recording in the project's spelling; `none` without observations.

    What isn't used beside pictures is left out of it. Where no mode is named, or one that names no contents, those of
    the first trajectory count.
    """
    if named == "state_dict":
        return "state"
    if named in (None, "sensor_data"):
        return mode_of_contents(path)
    parts = str(named).split("+")
    used = [part for part in parts if part not in UNUSED] or parts
    try:
        return canonical_obs_mode("+".join(used))
    except ValueError:
        return str(named)


def mode_of_contents(path: Path) -> str:
    """What the first trajectory shows."""
    with opened(path) as file:
        obs = file[episode_names(file)[0]].get("obs")
        if obs is None:
            return "none"
        if hasattr(obs, "shape") or "sensor_data" not in obs:
            return "state"
        seen = {name for camera in obs["sensor_data"].values() for name in camera if name in DTYPES}
        return canonical_obs_mode("+".join([*seen, *(["state"] if "state" in obs else [])])) if seen else "none"


def control_mode_of(about: dict[str, Any], path: Path) -> str | None:
    """The control mode that all episodes name; UserError where they name several."""
    episodes = [episode for episode in about.get("episodes") or [] if isinstance(episode, dict)]
    named = {str(episode["control_mode"]) for episode in episodes if episode.get("control_mode")}
    if len(named) > 1:
        raise UserError(f"{path} has episodes of {' and '.join(sorted(named))}: replay them to one control mode")
    return named.pop() if named else None


def read_description(path: Path) -> dict[str, Any]:
    """The .json that ManiSkill writes beside the .h5."""
    beside = path.with_suffix(".json")
    try:
        info = read_json(beside)
        about = info["env_info"]
        sound = isinstance(about["env_id"], str) and isinstance(about["env_kwargs"], dict)
        sound = sound and isinstance(info.get("episodes", []), list)
        if not sound or not isinstance(about.get("max_episode_steps"), (int, type(None))):
            raise TypeError("fields of other kinds")
    except FileNotFoundError:
        raise UserError(f"{path} has no {beside.name} beside it: copy both files of the recording") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{beside} is not a trajectory description of ManiSkill: copy it again or collect the demos again"
        ) from None
    return info


def read_trajectory(group: Any, name: str, path: Path) -> Trajectory:
    """One trajectory of the file at `path`."""
    where = f"{path}, {name}"
    obs = torch.cat([as_rows(numbers(group, key, where)) for key in state_columns(group, where, path)], dim=1)
    actions = numbers(group, "actions", where)
    success, terminated, truncated = (
        numbers(group, key, where).bool() for key in ("success", "terminated", "truncated")
    )
    rewards = numbers(group, "rewards", where) if "rewards" in group else None
    return Trajectory(obs, actions, success, terminated, truncated, rewards, name=name)


def state_columns(group: Any, where: str, path: Path) -> list[str]:
    """The datasets that make up a state: one, or those of the robot and the task, as ManiSkill flattens them."""
    obs = group.get("obs")
    if obs is None:
        raise UserError(f"{where} has no observations: replay the file with {replay_command(str(path))}")
    if hasattr(obs, "shape"):
        return ["obs"]
    if "state" in obs:
        return ["obs/state"]
    found = [name for part in ("agent", "extra") if part in obs for name in leaves(obs[part], f"obs/{part}")]
    if not found:
        raise UserError(f"{where} has no states of the robot: replay the file with {replay_command(str(path))}")
    return found
