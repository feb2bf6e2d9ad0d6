"""Demonstrations in ManiSkill's trajectory format (.h5 beside .json); bad ones are refused before anything trains."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reinflow.data.config import DemoConfig, demo_file_name
from reinflow.data.hdf5 import reading, refuse_impossible_size
from reinflow.data.pictures import PictureFile, find_pictures
from reinflow.errors import UserError
from reinflow.files import read_json
from reinflow.types import EnvSpec, ImageSpec, canonical_obs_mode

LENGTH_PERCENTILE = 95
UNIT_MODES = ("pd_ee_delta_pose", "pd_ee_delta_pos", "pd_joint_delta_pos")
"""control modes whose actions lie in [-1, 1]"""
ACTION_SLACK = 1e-4


@dataclass
class Trajectory:
    """One episode; `obs` has a row more than there are actions."""

    obs: Float[Tensor, "t1 s"]
    """states"""
    actions: Float[Tensor, "t a"]
    success: Bool[Tensor, "t"]
    terminated: Bool[Tensor, "t"]
    truncated: Bool[Tensor, "t"]
    rewards: Float[Tensor, "t"] | None = None
    pictures: PictureFile | None = None
    """where those of every frame lie"""

    def __len__(self) -> int:
        return len(self.actions)

    def under_rules(self, terminate_on_success: bool) -> Trajectory:
        """The same episode in an env that does, or does not, end at success or failure.

        A recording goes on after either and may mark such a step as terminated or not. `terminate_on_success` cuts it
        after the first one; otherwise nothing terminates, and the value of its last frame counts.
        """
        if not terminate_on_success:
            return replace(self, terminated=torch.zeros_like(self.terminated))
        ended = self.success | self.terminated
        end = int(ended.nonzero()[0]) + 1 if ended.any() else len(self)
        return Trajectory(
            obs=self.obs[: end + 1],
            actions=self.actions[:end],
            success=self.success[:end],
            terminated=ended[:end],
            truncated=self.truncated[:end],
            rewards=None if self.rewards is None else self.rewards[:end],
            pictures=None if self.pictures is None else replace(self.pictures, frames=end + 1),
        )


@dataclass
class Demos:
    """Trajectories of one task."""

    trajectories: list[Trajectory]
    env_id: str
    control_mode: str
    max_episode_steps: int | None = None
    reward_mode: str | None = None
    """of `rewards`, where the recording says it"""

    def length_percentile(self, percent: float) -> float:
        """Env steps that `percent` of the episodes do not exceed."""
        return float(np.percentile([len(trajectory) for trajectory in self.trajectories], percent))

    def length_warning(self, max_episode_steps: int | None) -> str | None:
        """A sentence where the policy will have less time than the demonstrations took, else None."""
        longest = self.length_percentile(LENGTH_PERCENTILE)
        if max_episode_steps is None or longest <= max_episode_steps:
            return None
        return (
            f"{LENGTH_PERCENTILE}% of the demonstrations take up to {longest:.0f} env steps but an episode ends after "
            f"{max_episode_steps}: pass --max_episode_steps {round(longest * 1.2)} in every stage"
        )

    def check_fit(self, env: EnvSpec) -> None:
        """UserError where the task's observations or actions differ from the recorded ones in size or cameras."""
        first = self.trajectories[0]
        fix = f"collect them again with {collect_command(self.env_id, env.obs_mode)}"
        for name, wanted, found in (
            ("state", env.state_dim, first.obs.shape[1]),
            ("action", env.action_dim, first.actions.shape[1]),
        ):
            if wanted != found:
                raise UserError(
                    f"the demonstrations have {found} {name} dimensions but {self.env_id} has {wanted}: {fix}"
                )
        recorded = first.pictures.spec if first.pictures else None
        if recorded != env.image:
            raise UserError(
                f"the demonstrations show {described(recorded)} but {self.env_id} shows {described(env.image)}: {fix}"
            )


def default_demo_path(env_id: str, obs_mode: str = "state", control_mode: str = "pd_ee_delta_pose") -> Path:
    """Where collect_demos.py writes unless told otherwise."""
    return Path("demos") / env_id / demo_file_name(obs_mode, control_mode)


def collect_command(env_id: str, obs_mode: str = "state") -> str:
    mode = "" if obs_mode == "state" else f" --obs_mode {obs_mode}"
    return f"python collect_demos.py --env_id {env_id}{mode}"


def described(image: ImageSpec | None) -> str:
    """Pictures in words."""
    if image is None:
        return "no pictures"
    return f"{'+'.join(image.names)} of {image.height}x{image.width} from {', '.join(image.cameras)}"


def open_demos(config: DemoConfig, env: Any, need_rewards: bool = False, reward_mode: str | None = None) -> Demos:
    """The demonstrations of a stage; `env` is its completed EnvConfig.

    `reward_mode` is the one that Stage 2 is asked for; None takes what the file holds.
    """
    path = Path(config.demo_path) if config.demo_path else default_demo_path(env.env_id, env.obs_mode, env.control_mode)
    sparse = wants_sparse(config, reward_mode)
    demos = load_demos(
        path,
        num_demos=config.num_demos,
        env_id=env.env_id,
        control_mode=env.control_mode,
        obs_mode=env.obs_mode,
        need_rewards=need_rewards and not sparse,
    )
    if need_rewards:
        (reward_successes_ if sparse else refuse_other_rewards)(demos, path, reward_mode)
    demos.trajectories = [trajectory.under_rules(env.terminate_on_success) for trajectory in demos.trajectories]
    if warning := demos.length_warning(env.max_episode_steps or demos.max_episode_steps):
        print(f"warning: {warning}")
    return demos


def wants_sparse(config: DemoConfig, reward_mode: str | None) -> bool:
    """Whether rewards are made from successes; UserError where that contradicts `reward_mode`."""
    if config.reward_source is None:
        return reward_mode == "sparse"
    made = config.reward_source == "sparse_success"
    if made and reward_mode not in (None, "sparse"):
        raise UserError(
            f"--reward_source sparse_success contradicts --reward_mode {reward_mode}: leave one of the two out"
        )
    return made


def reward_successes_(demos: Demos, path: Path, reward_mode: str | None) -> None:
    """Give every step ManiSkill's sparse reward: 1 where it succeeds; UserError where none does.

    Recorded sparse rewards stay, since tasks that can fail take 1 off where they do.
    """
    if not any(trajectory.success.any() for trajectory in demos.trajectories):
        raise UserError(
            f"{path} marks no step as a success, so that all sparse rewards would be 0: "
            "collect successful demonstrations, or leave --reward_mode sparse and --reward_source out"
        )
    for trajectory in demos.trajectories:
        if demos.reward_mode != "sparse" or trajectory.rewards is None:
            trajectory.rewards = trajectory.success.float()
    demos.reward_mode = "sparse"


def refuse_other_rewards(demos: Demos, path: Path, reward_mode: str | None) -> None:
    """UserError where the file holds rewards of another mode than the one that is asked for."""
    if None not in (reward_mode, demos.reward_mode) and reward_mode != demos.reward_mode:
        made = "without --reward_source, which makes them from successes" if reward_mode == "sparse" else "or sparse"
        raise UserError(
            f"{path} holds {demos.reward_mode} rewards, not {reward_mode}: pass --reward_mode {demos.reward_mode}, "
            f"{made}, or replay the demonstrations with --record-rewards"
        )


def load_demos(
    path: str | Path,
    *,
    num_demos: int | None = None,
    env_id: str | None = None,
    control_mode: str | None = None,
    obs_mode: str = "state",
    need_rewards: bool = False,
) -> Demos:
    """Read and validate; what is None is not compared. UserError names file, trajectory, key and fix.

    `terminated` is as recorded, on every step that succeeds: see `Trajectory.under_rules`.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"there are no demonstrations at {path}: collect some with "
            f"{collect_command(env_id or 'PickCube-v1', obs_mode)}"
        )
    info = read_description(path)
    settings = info["env_info"]["env_kwargs"]
    checks = {
        "env_id": (env_id, info["env_info"]["env_id"]),
        "control_mode": (control_mode, settings.get("control_mode")),
        "obs_mode": (obs_mode, recorded_mode(settings)),
    }
    for name, (wanted, found) in checks.items():
        if wanted is not None and wanted != found:
            fix = f"pass --{name} {found} or collect other demos"
            if name == "obs_mode":
                fix += f", or see them again with collect_demos.py --render_from {path} --obs_mode {wanted}"
            raise UserError(f"{path} was recorded with {name} {found}, not {wanted}: {fix}")
    return Demos(
        trajectories=read_trajectories(
            path, num_demos, need_rewards, settings.get("control_mode"), pictures=obs_mode != "state"
        ),
        env_id=info["env_info"]["env_id"],
        control_mode=settings.get("control_mode"),
        max_episode_steps=info["env_info"].get("max_episode_steps"),
        reward_mode=settings.get("reward_mode"),
    )


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


def read_trajectories(
    path: Path, num_demos: int | None, need_rewards: bool, control_mode: str, pictures: bool
) -> list[Trajectory]:
    """The first `num_demos` trajectories, in the order of their numbers."""
    import h5py

    size = path.stat().st_size
    with reading(path), h5py.File(path, "r") as file:
        names = sorted((n for n in file if re.fullmatch(r"traj_\d{1,9}", n)), key=lambda n: int(n[len("traj_") :]))
        if not names:
            raise UserError(f"{path} holds no trajectory: collect the demonstrations again")
        if num_demos is not None and num_demos > len(names):
            raise UserError(f"{path} holds {len(names)} trajectories, not the {num_demos} of --num_demos: collect more")
        trajectories = []
        for name in names[:num_demos]:
            where = f"{path}, {name}"
            trajectory = read_trajectory(file[name], where, need_rewards, control_mode, size)
            if pictures:
                trajectory.pictures = find_pictures(path, file[name], where, len(trajectory.obs), size)
            trajectories.append(trajectory)
    first = trajectories[0]
    for name, trajectory in zip(names, trajectories, strict=False):
        if (trajectory.obs.shape[1], trajectory.actions.shape[1]) != (first.obs.shape[1], first.actions.shape[1]):
            raise UserError(f"{path}, {name} has other dimensions than {names[0]}: keep one task and robot in a file")
        if (trajectory.pictures and trajectory.pictures.spec) != (first.pictures and first.pictures.spec):
            raise UserError(f"{path}, {name} has other pictures than {names[0]}: keep one set of cameras in a file")
    return trajectories


def read_trajectory(group: Any, where: str, need_rewards: bool, control_mode: str, size: int) -> Trajectory:
    """One validated trajectory; `where` names it in errors, `size` is that of its file in bytes."""

    def column(name: str, dtype: type) -> Tensor:
        if name not in group or not hasattr(group[name], "shape"):
            raise UserError(f"{where} has no {name}: collect the demonstrations again")
        stored = group[name]
        if stored.dtype.kind not in "fiub":
            raise UserError(f"{where}, {name} holds {stored.dtype}, not numbers: collect the demonstrations again")
        refuse_impossible_size(stored, f"{where}, {name}", size)
        value = np.asarray(stored)
        return torch.from_numpy(value.astype(dtype))

    obs = torch.cat([as_rows(column(name, np.float32)) for name in state_columns(group, where)], dim=1)
    actions = column("actions", np.float32)
    flags = {name: column(name, bool) for name in ("success", "terminated", "truncated")}
    rewards = column("rewards", np.float32) if "rewards" in group else None
    if need_rewards and rewards is None:
        raise UserError(
            f"{where} has no rewards, which Stage 2 needs: re-collect with collect_demos.py, replay with "
            f"--record-rewards, or pass --reward_mode sparse"
        )
    check_lengths(where, obs, actions, {**flags, "rewards": rewards} if rewards is not None else flags)
    check_numbers(where, {"obs": obs, "actions": actions, "rewards": rewards})
    if control_mode in UNIT_MODES and actions.abs().max() > 1 + ACTION_SLACK:
        raise UserError(
            f"{where}, actions reach {actions.abs().max():.2f}, outside the [-1, 1] of {control_mode}: "
            f"collect them again or clip them"
        )
    return Trajectory(obs, actions, flags["success"], flags["terminated"], flags["truncated"], rewards)


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


def check_lengths(where: str, obs: Tensor, actions: Tensor, columns: dict[str, Tensor]) -> None:
    steps = len(actions)
    if obs.dim() != 2 or actions.dim() != 2 or steps == 0 or len(obs) != steps + 1:
        raise UserError(
            f"{where} has obs {tuple(obs.shape)} and actions {tuple(actions.shape)}: "
            f"obs needs one row more than actions; collect it again"
        )
    for name, value in columns.items():
        if value.shape != (steps,):
            raise UserError(f"{where}, {name} has shape {tuple(value.shape)} for {steps} steps: collect it again")


def check_numbers(where: str, columns: dict[str, Tensor | None]) -> None:
    for name, value in columns.items():
        if value is not None and not value.isfinite().all():
            raise UserError(f"{where}, {name} holds NaN or infinite numbers: remove the trajectory or collect it again")
