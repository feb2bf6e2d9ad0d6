"""Demonstrations written in the formats that `reinflow.data.formats` reads: states, actions, rewards and flags.

Each file appears only when it is complete. Pictures and simulator states stay in the recordings they came from.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reinflow.data.formats.minari import FILE
from reinflow.data.formats.npz import BOUNDS, WIDENED
from reinflow.data.formats.robomimic import ROBOT, TASKS
from reinflow.data.trajectories import Demos, Trajectory
from reinflow.errors import UserError
from reinflow.recording.writer import TrajectoryWriter
from reinflow.runtime.files import replaced_atomically

SIZES = (3, 4, 2)
"""numbers of an end effector's position, orientation and gripper"""
ARMS = {"Lift": 1, "Can": 1, "Square": 1, "Transport": 2}
"""robots of the tasks whose states have robomimic's layout"""


def write_maniskill(path: Path, demos: Demos, overwrite: bool) -> None:
    """ManiSkill's .h5 and .json, without simulator states."""
    refuse_suffix(path, ".h5")
    kwargs = {"obs_mode": "state", "control_mode": demos.control_mode, "reward_mode": demos.reward_mode,
              "sim_backend": demos.sim_backend, "robot_uids": demos.robot}  # fmt: skip
    info = {
        "env_id": demos.env_id,
        "env_kwargs": {name: value for name, value in kwargs.items() if value},
        "max_episode_steps": demos.max_episode_steps,
    }
    source = {"source_type": "converted", "source_desc": demos.source}
    with TrajectoryWriter(path, info, source, overwrite) as writer:
        for one in demos.trajectories:
            columns = {
                "obs": one.obs,
                "actions": one.actions,
                "terminated": one.terminated,
                "truncated": one.truncated,
                "success": one.success,
            }
            rewards = {} if one.rewards is None else {"rewards": one.rewards}
            writer.add(columns | rewards, one.seed, demos.control_mode)


def write_d4rl(path: Path, demos: Demos, overwrite: bool) -> None:
    """D4RL's columns with `next_observations`, so that nothing is lost but successes."""
    refuse_suffix(path, ".hdf5", ".h5")
    with new_hdf5(path, overwrite) as file:
        parts = [
            {
                "observations": one.obs[:-1],
                "next_observations": one.obs[1:],
                "actions": one.actions,
                "rewards": rewards_of(one),
                "terminals": last_only(one, one.terminated),
                "timeouts": last_only(one, ~one.terminated),
            }
            for one in demos.trajectories
        ]
        for name in parts[0]:
            file[name] = torch.cat([part[name] for part in parts]).numpy()


def write_robomimic(path: Path, demos: Demos, overwrite: bool) -> None:
    """robomimic's groups, for robosuite's tasks."""
    refuse_suffix(path, ".hdf5", ".h5")
    if demos.env_id not in ARMS:
        raise UserError(
            f"robomimic files hold the parts of a robosuite state, which {demos.env_id or 'this task'} has not: "
            "choose another --format"
        )
    names = {ours: theirs for theirs, ours in TASKS.items()}
    with new_hdf5(path, overwrite) as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": names.get(demos.env_id, demos.env_id), "env_kwargs": {}})
        for number, one in enumerate(demos.trajectories):
            group = data.create_group(f"demo_{number}")
            group.attrs["num_samples"] = len(one)
            group["actions"] = one.actions.numpy()
            group["rewards"] = one.success.float().numpy()
            group["dones"] = (one.success | last_only(one, torch.ones_like(one.success))).long().numpy()
            for part, states in {"obs": one.obs[:-1], "next_obs": one.obs[1:]}.items():
                for key, value in split_state(states, ARMS[demos.env_id]).items():
                    group[f"{part}/{key}"] = value.numpy()


def write_npz(path: Path, demos: Demos, overwrite: bool) -> None:
    """train.npz of DPPO, ReinFlow and DMPO, and the normalization.npz beside it; last observations are lost."""
    refuse_suffix(path, ".npz")
    beside = path.with_name(BOUNDS)
    refuse_taken(beside, overwrite)
    refuse_taken(path, overwrite)
    columns = {
        "states": torch.cat([one.obs[:-1] for one in demos.trajectories]).numpy(),
        "actions": torch.cat([one.actions for one in demos.trajectories]).numpy(),
        "rewards": torch.cat([rewards_of(one) for one in demos.trajectories]).numpy(),
        "terminals": torch.cat([last_only(one, one.terminated) for one in demos.trajectories]).numpy(),
        "traj_lengths": np.array([len(one) for one in demos.trajectories]),
    }
    bounds: dict[str, np.ndarray] = {}
    for name, short in {"states": "obs", "actions": "action"}.items():
        low, high = (edge(columns[name], axis=0) for edge in (np.min, np.max))
        columns[name] = 2 * (columns[name] - low) / (high - low + np.float32(WIDENED)) - 1
        bounds |= {f"{short}_min": low, f"{short}_max": high}
    path.parent.mkdir(parents=True, exist_ok=True)
    for place, arrays in ((beside, bounds), (path, columns)):
        with replaced_atomically(place) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **arrays)


def write_minari(path: Path, demos: Demos, overwrite: bool) -> None:
    """A folder in Minari's HDF5 layout, successes among the infos."""
    refuse_taken(path, overwrite)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "data").mkdir(parents=True)
    try:
        with new_hdf5(partial / "data" / FILE, overwrite=False) as file:
            for number, one in enumerate(demos.trajectories):
                group = file.create_group(f"episode_{number}")
                group.attrs["id"], group.attrs["total_steps"] = number, len(one)
                columns = {
                    "observations": one.obs,
                    "actions": one.actions,
                    "rewards": rewards_of(one).double(),
                    "terminations": last_only(one, one.terminated),
                    "truncations": last_only(one, ~one.terminated),
                }
                if demos.marks_success:
                    columns["infos/success"] = one.success
                for name, value in columns.items():
                    group[name] = value.numpy()
        spec = json.dumps({"id": demos.env_id or None, "max_episode_steps": demos.max_episode_steps})
        about = {
            "dataset_id": path.name,
            "data_format": "hdf5",
            "minari_version": "0.5.0",
            "env_spec": spec,
            "total_episodes": len(demos.trajectories),
            "total_steps": sum(map(len, demos.trajectories)),
        }
        (partial / "data" / "metadata.json").write_text(json.dumps(about, indent=2))
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


Writer = Callable[[Path, Demos, bool], None]
WRITERS: Mapping[str, Writer] = {
    "maniskill": write_maniskill,
    "d4rl": write_d4rl,
    "robomimic": write_robomimic,
    "npz": write_npz,
    "minari": write_minari,
}
"""by the name that the format has among those that are read"""


def refuse_suffix(path: Path, *suffixes: str) -> None:
    """UserError unless the name ends in one of these."""
    if path.suffix not in suffixes:
        raise UserError(f"{path} must end in {' or '.join(suffixes)} in this format: give it another name")


def refuse_taken(path: Path, overwrite: bool) -> None:
    """UserError where something is in the way."""
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: pass --overwrite to replace it, or another name")


@contextmanager
def new_hdf5(path: Path, overwrite: bool) -> Iterator[Any]:
    """A file that is complete or absent."""
    import h5py

    refuse_taken(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_atomically(path) as partial, h5py.File(partial, "w") as file:
        yield file


def rewards_of(one: Trajectory) -> torch.Tensor:
    """(t) those recorded, or 0."""
    return torch.zeros(len(one)) if one.rewards is None else one.rewards


def last_only(one: Trajectory, marks: torch.Tensor) -> torch.Tensor:
    """(t) the mark of an episode's last step; these formats end an episode at any other."""
    found = torch.zeros(len(one), dtype=torch.bool)
    found[-1] = marks[-1]
    return found


def split_state(states: torch.Tensor, arms: int) -> dict[str, torch.Tensor]:
    """The parts of a flat state by robomimic's names."""
    sizes = [*SIZES * arms]
    names = [f"robot{arm}_{name}" for arm in range(arms) for name in ROBOT] + ["object"]
    return dict(zip(names, states.split([*sizes, states.shape[1] - sum(sizes)], dim=1), strict=True))
