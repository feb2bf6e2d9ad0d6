"""robomimic's HDF5 files: groups `data/demo_0`, `data/demo_1`, ... and the env's arguments beside them.

A state is the robots' end-effector position, orientation and gripper, then the object, as robomimic and DPPO train.
`dones` may mark success or the end of the recording, so successes are read from the rewards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reinflow.data.formats.base import Recording, assembled, refuse_pictures
from reinflow.data.hdf5 import numbers, opened, top_level
from reinflow.data.trajectories import Trajectory
from reinflow.errors import UserError

TASKS = {"PickPlaceCan": "Can", "NutAssemblySquare": "Square", "TwoArmTransport": "Transport"}
"""what this project calls some of robosuite's tasks; the others keep their names"""
ROBOT = ("eef_pos", "eef_quat", "gripper_qpos")
SOLVED = 1 - 1e-6
"""reward of a step that succeeds, where rewards are shaped; a sparse one is 0 elsewhere"""


class RobomimicFormat:
    """Demonstrations of people and machines in robosuite."""

    def recognises(self, path: Path) -> bool:
        """Whether its group `data` holds demonstrations."""
        if "data" not in top_level(path):
            return False
        try:
            with opened(path) as file:
                return hasattr(file["data"], "keys") and bool(demo_names(file["data"]))
        except UserError:
            return False

    def describe(self, path: Path) -> Recording:
        """The task, as the env's arguments name it."""
        name = env_args(path).get("env_name")
        return Recording(env_id=TASKS.get(name, name) if isinstance(name, str) else None, obs_mode="state")

    def read(self, path: Path, pictures: bool) -> Iterator[Trajectory]:
        """The demonstrations in the order of their numbers."""
        if pictures:
            refuse_pictures(path, "robomimic")
        settings = env_args(path).get("env_kwargs")
        shaped = isinstance(settings, dict) and bool(settings.get("reward_shaping"))
        with opened(path) as file:
            for name in demo_names(file["data"]):
                yield read_demo(file["data"][name], name, f"{path}, {name}", shaped)


def demo_names(group: Any) -> list[str]:
    """Names of demonstrations, in the order of their numbers: 10 comes after 9."""
    found = (name for name in group if re.fullmatch(r"demo_\d{1,9}", name))
    return sorted(found, key=lambda name: int(name[len("demo_") :]))


def env_args(path: Path) -> dict[str, Any]:
    """The arguments that its env was made with; empty where they aren't recorded."""
    with opened(path) as file:
        text = file["data"].attrs.get("env_args", "{}")
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path}, env_args of data is no JSON object: copy the file again")
    return found


def read_demo(group: Any, name: str, where: str, shaped: bool) -> Trajectory:
    """One demonstration; its last observation comes from `next_obs`, where there is one."""
    actions = numbers(group, "actions", where)
    rewards = numbers(group, "rewards", where) if "rewards" in group else None
    solved = torch.zeros(len(actions), dtype=torch.bool)
    if rewards is not None:
        solved = rewards >= SOLVED if shaped else rewards > 0
    successor = low_dim_state(group, "next_obs", where)[-1] if "next_obs" in group and len(actions) else None
    states = low_dim_state(group, "obs", where)
    return assembled(name, states, actions, rewards, solved, successor=successor, success=solved)


def low_dim_state(group: Any, part: str, where: str) -> Tensor:
    """(t s) of one or several robots and the object."""
    if part not in group or not hasattr(group[part], "keys"):
        raise UserError(f"{where} has no {part}: extract observations with robomimic's dataset_states_to_obs.py")
    robots = sorted({found[0] for key in group[part] if (found := re.match(r"robot\d+", key))})
    keys = [f"{robot}_{name}" for robot in robots for name in ROBOT] + ["object"]
    if missing := [key for key in keys if key not in group[part]] or ([] if robots else ["robot0_eef_pos"]):
        raise UserError(f"{where}, {part} has no {missing[0]}: extract low-dimensional observations with robomimic")
    columns = [numbers(group[part], key, where) for key in keys]
    return torch.cat([column.reshape(len(column), -1) for column in columns], dim=1)
