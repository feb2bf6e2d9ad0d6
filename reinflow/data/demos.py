"""Reads demonstrations in ManiSkill's trajectory format (.h5 beside .json) and refuses bad ones before anything trains."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reinflow.data.config import DemoConfig
from reinflow.errors import UserError


@dataclass
class Trajectory:
    """One episode; `obs` has a row more than there are actions."""

    obs: Float[Tensor, "t1 s"]
    actions: Float[Tensor, "t a"]
    success: Bool[Tensor, "t"]
    terminated: Bool[Tensor, "t"]
    truncated: Bool[Tensor, "t"]
    rewards: Float[Tensor, "t"] | None = None

    def __len__(self) -> int:
        return len(self.actions)


@dataclass
class Demos:
    """Trajectories of one task."""

    trajectories: list[Trajectory]
    env_id: str
    control_mode: str
    max_episode_steps: int | None = None

    def length_percentile(self, percent: float) -> float:
        """Env steps that `percent` of the episodes do not exceed."""
        return float(np.percentile([len(trajectory) for trajectory in self.trajectories], percent))


def default_demo_path(env_id: str, obs_mode: str = "state", control_mode: str = "pd_ee_delta_pose") -> Path:
    """Where collect_demos.py writes unless told otherwise."""
    return Path("demos") / env_id / f"trajectory.{obs_mode}.{control_mode}.h5"


def collect_command(env_id: str) -> str:
    return f"python collect_demos.py --env_id {env_id}"


def open_demos(config: DemoConfig, env: Any, need_rewards: bool = False) -> Demos:
    """The demonstrations of a stage; `env` is its completed EnvConfig."""
    path = Path(config.demo_path) if config.demo_path else default_demo_path(env.env_id, env.obs_mode, env.control_mode)
    demos = load_demos(
        path,
        num_demos=config.num_demos,
        env_id=env.env_id,
        control_mode=env.control_mode,
        obs_mode=env.obs_mode,
        need_rewards=need_rewards and config.reward_source == "recorded",
    )
    if config.reward_source == "sparse_success":
        for trajectory in demos.trajectories:
            trajectory.rewards = trajectory.success.float()
    return demos


def load_demos(
    path: str | Path,
    *,
    num_demos: int | None = None,
    env_id: str | None = None,
    control_mode: str | None = None,
    obs_mode: str = "state",
    need_rewards: bool = False,
) -> Demos:
    """Read and validate; what is None is not compared. UserError names file, trajectory, key and fix."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there are no demonstrations at {path}: collect some with {collect_command(env_id or 'PickCube-v1')}")
    info = read_description(path)
    settings = info["env_info"]["env_kwargs"]
    checks = {
        "env_id": (env_id, info["env_info"]["env_id"]),
        "control_mode": (control_mode, settings.get("control_mode")),
        "obs_mode": (obs_mode, settings.get("obs_mode")),
    }
    for name, (wanted, found) in checks.items():
        if wanted is not None and wanted != found:
            raise UserError(f"{path} was recorded with {name} {found}, not {wanted}: pass --{name} {found} or collect other demos")
    return Demos(
        trajectories=read_trajectories(path, num_demos, need_rewards),
        env_id=info["env_info"]["env_id"],
        control_mode=settings.get("control_mode"),
        max_episode_steps=info["env_info"].get("max_episode_steps"),
    )


def read_description(path: Path) -> dict[str, Any]:
    """The .json that ManiSkill writes beside the .h5."""
    beside = path.with_suffix(".json")
    try:
        info = json.loads(beside.read_text())
        info["env_info"]["env_id"], info["env_info"]["env_kwargs"]
    except FileNotFoundError:
        raise UserError(f"{path} has no {beside.name} beside it: copy both files of the recording") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{beside} is not a trajectory description of ManiSkill: copy it again or collect the demos again") from None
    return info


def read_trajectories(path: Path, num_demos: int | None, need_rewards: bool) -> list[Trajectory]:
    """The first `num_demos` trajectories, in the order of their numbers."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            names = sorted((n for n in file if n.startswith("traj_")), key=lambda n: int(n.removeprefix("traj_")))
            if not names:
                raise UserError(f"{path} holds no trajectory: collect the demonstrations again")
            if num_demos is not None and num_demos > len(names):
                raise UserError(f"{path} holds {len(names)} trajectories, not the {num_demos} of --num_demos: collect more")
            return [read_trajectory(file[name], f"{path}, {name}", need_rewards) for name in names[:num_demos]]
    except OSError as error:
        raise UserError(f"{path} is cut short or not an HDF5 file ({error}): copy it again or collect it again") from None


def read_trajectory(group: Any, where: str, need_rewards: bool) -> Trajectory:
    """One validated trajectory; `where` names it in errors."""

    def column(name: str, dtype: type) -> Tensor:
        if name not in group or not hasattr(group[name], "shape"):
            raise UserError(f"{where} has no {name} of state observations: record it with obs_mode state")
        return torch.from_numpy(np.asarray(group[name]).astype(dtype))

    obs, actions = column("obs", np.float32), column("actions", np.float32)
    steps = len(actions)
    if obs.dim() != 2 or actions.dim() != 2 or steps == 0 or len(obs) != steps + 1:
        raise UserError(
            f"{where} has obs {tuple(obs.shape)} and actions {tuple(actions.shape)}: obs needs one row more than actions"
        )
    flags = {name: column(name, bool) for name in ("success", "terminated", "truncated")}
    rewards = column("rewards", np.float32) if "rewards" in group else None
    if need_rewards and rewards is None:
        raise UserError(
            f"{where} has no rewards, which Stage 2 needs: collect demos with collect_demos.py or replay with --record-rewards, "
            f"or pass --reward_source sparse_success"
        )
    for name, value in {"obs": obs, "actions": actions, "rewards": rewards, **flags}.items():
        if value is None:
            continue
        if name not in ("obs", "actions") and value.shape != (steps,):
            raise UserError(f"{where}, {name} has shape {tuple(value.shape)} for {steps} steps: the file is inconsistent")
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{where}, {name} holds NaN or infinite numbers: remove the trajectory or collect it again")
    return Trajectory(obs=obs, actions=actions, rewards=rewards, **flags)
