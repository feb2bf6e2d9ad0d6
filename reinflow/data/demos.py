"""The demonstrations of a stage, in any format of `reinflow.data.formats`; bad ones are refused before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reinflow.data.config import DemoConfig, collect_command, demo_file_name
from reinflow.data.formats import Recording, format_of
from reinflow.data.trajectories import Demos, Trajectory
from reinflow.errors import UserError


def default_demo_path(env_id: str, obs_mode: str = "state", control_mode: str = "pd_ee_delta_pose") -> Path:
    """Where collect_demos.py writes unless told otherwise."""
    return Path("demos") / env_id / demo_file_name(obs_mode, control_mode)


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
        env_kwargs=env.arguments.kwargs,
    )
    if need_rewards:
        (reward_successes_ if sparse else refuse_other_rewards)(demos, path, reward_mode)
    rules = env.terminate_on_success, env.task.terminates_on
    demos.trajectories = [trajectory.under_rules(*rules) for trajectory in demos.trajectories]
    if warning := demos.length_warning(env.max_episode_steps or env.task.limit or demos.max_episode_steps):
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
    env_kwargs: dict[str, Any] | None = None,
) -> Demos:
    """Read and validate, in whatever format; what is None is not compared. UserError names what is wrong and the fix.

    `terminated` is as recorded, on every step that succeeds: see `Trajectory.under_rules`.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"there are no demonstrations at {path}: collect some with "
            f"{collect_command(env_id or 'PickCube-v1', obs_mode)}"
        )
    reader = format_of(path)
    about = reader.describe(path)
    refuse_another(about, path, {"env_id": env_id, "control_mode": control_mode, "obs_mode": obs_mode})
    if env_kwargs is not None:
        compare_arguments(about.env_kwargs, env_kwargs, path)
    trajectories = reader.read(path, num_demos, pictures=obs_mode != "state")
    for trajectory in trajectories:
        if need_rewards and trajectory.rewards is None:
            raise UserError(
                f"{path}, {trajectory.name} has no rewards, which Stage 2 needs: re-collect with collect_demos.py, "
                "replay with --record-rewards, or pass --reward_mode sparse"
            )
        trajectory.check(str(path))
    refuse_mixed(trajectories, path)
    return Demos(
        trajectories,
        env_id=about.env_id or env_id or "",
        control_mode=about.control_mode or control_mode or "",
        max_episode_steps=about.max_episode_steps,
        reward_mode=about.reward_mode,
    )


def refuse_another(about: Recording, path: Path, wanted: dict[str, str | None]) -> None:
    """UserError where a recording says that it is of another task or mode."""
    for name, value in wanted.items():
        found = getattr(about, name)
        if None in (value, found) or value == found:
            continue
        fix = f"pass --{name} {found} or collect other demos"
        if name == "obs_mode":
            fix += f", or see them again with collect_demos.py --render_from {path} --obs_mode {value}"
        raise UserError(f"{path} was recorded with {name} {found}, not {value}: {fix}")


def compare_arguments(recorded: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    """UserError where a task was recorded with another argument; a warning where only one side says something."""
    for name in dict.fromkeys((*recorded, *wanted)):
        if name == "sensor_configs":  # pictures say themselves what they are
            continue
        if name not in recorded:
            print(
                f"warning: {path} does not say that it was recorded with {name} {json.dumps(wanted[name])}", flush=True
            )
        elif name not in wanted:
            given = json.dumps({name: recorded[name]})
            print(f"warning: {path} was recorded with {name}: pass --env_kwargs '{given}' for the same", flush=True)
        elif recorded[name] != wanted[name]:
            raise UserError(
                f"{path} was recorded with {name} {json.dumps(recorded[name])}, not {json.dumps(wanted[name])}: "
                "pass that, or collect other demos"
            )


def refuse_mixed(trajectories: list[Trajectory], path: Path) -> None:
    """UserError where episodes of one file are of several robots or sets of cameras."""
    first = trajectories[0]
    for one in trajectories:
        if (one.obs.shape[1], one.actions.shape[1]) != (first.obs.shape[1], first.actions.shape[1]):
            raise UserError(f"{path}, {one.name} has other dimensions than {first.name}: keep one task and robot in it")
        if (one.pictures and one.pictures.spec) != (first.pictures and first.pictures.spec):
            raise UserError(f"{path}, {one.name} has other pictures than {first.name}: keep one set of cameras in it")
