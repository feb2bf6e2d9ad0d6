"""The demonstrations of a stage, in any format of `reinflow.data.formats`; bad ones are refused before training."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reinflow.data.config import DemoConfig, collect_command, demo_file_name, replay_command
from reinflow.data.formats import DataFormat, Recording, format_of
from reinflow.data.places import located
from reinflow.data.tempo import faster
from reinflow.data.trajectories import Demos, Trajectory
from reinflow.errors import UserError
from reinflow.specs import EnvSpec

UNCHANGED = frozenset({"Hopper", "Walker2d", "HalfCheetah", "Ant", "Humanoid"})
"""tasks of gymnasium whose versions have the same actions and, but for forces (`Demos.fit_`), the same states"""
OTHER_VERSIONS = {"Pusher-v5": "v2 to v4 are another task", "FrankaKitchen-v1": "older ones observe other numbers"}


def default_demo_path(env_id: str, obs_mode: str = "state", control_mode: str = "pd_ee_delta_pose") -> Path:
    """Where collect_demos.py writes unless told otherwise."""
    return Path("demos") / env_id / demo_file_name(obs_mode, control_mode)


def open_demos(config: DemoConfig, env: Any, need_rewards: bool = False, reward_mode: str | None = None) -> Demos:
    """The demonstrations of a stage; `env` is its completed EnvConfig.

    `reward_mode` is the one that Stage 2 is asked for; None takes what the file holds.
    """
    default = default_demo_path(env.env_id, env.obs_mode, env.control_mode)
    sparse = wants_sparse(config, reward_mode)
    demos = load_demos(
        config.demo_path or (default,),
        num_demos=config.num_demos,
        env_id=env.env_id,
        control_mode=env.control_mode,
        obs_mode=env.obs_mode,
        need_rewards=need_rewards and not sparse,
        env_kwargs=env.arguments.kwargs,
        only_success=leaves_failures_out(config, env.task.headline, cloning=not need_rewards),
    )
    if need_rewards:
        (reward_successes_ if sparse else refuse_other_rewards)(demos, reward_mode)
    rules = env.terminate_on_success, env.task.terminates_on
    demos.trajectories = [trajectory.under_rules(*rules) for trajectory in demos.trajectories]
    if config.as_recorded:
        warn_of_length(demos, env.max_episode_steps or env.task.limit or demos.max_episode_steps)
    return demos


def hasten_(demos: Demos, env: EnvSpec, config: DemoConfig) -> None:
    """Merge steps as the flags ask, in place, once the actions are inside the task's bounds; says what that came to."""
    if config.as_recorded:
        return
    before = demos.length_percentile(50)
    demos.trajectories = [faster(one, env, config.speed_up, config.drop_pauses) for one in demos.trajectories]
    print(f"note: the demonstrations take {demos.length_percentile(50):.0f} env steps instead of {before:.0f} (median)")
    warn_of_length(demos, env.max_episode_steps)


def warn_of_length(demos: Demos, limit: int | None) -> None:
    """Say where a policy will have less time than the demonstrations took."""
    if warning := demos.length_warning(limit):
        print(f"warning: {warning}")


def leaves_failures_out(config: DemoConfig, headline: str, cloning: bool) -> bool | None:
    """Whether episodes that never succeed are left out; None leaves them out unless none succeeds."""
    if config.only_success is not None:
        return config.only_success
    return None if cloning and headline == "success_once" else False


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


def reward_successes_(demos: Demos, reward_mode: str | None) -> None:
    """Give every step ManiSkill's sparse reward: 1 where it succeeds; UserError where none does.

    Recorded sparse rewards stay, since tasks that can fail take 1 off where they do.
    """
    if not any(trajectory.success.any() for trajectory in demos.trajectories):
        raise UserError(
            f"{demos.source} marks no step as a success, so that all sparse rewards would be 0: "
            "collect successful demonstrations, or leave --reward_mode sparse and --reward_source out"
        )
    for trajectory in demos.trajectories:
        if demos.reward_mode != "sparse" or trajectory.rewards is None:
            trajectory.rewards = trajectory.success.float()
    demos.reward_mode = "sparse"


def refuse_other_rewards(demos: Demos, reward_mode: str | None) -> None:
    """UserError where the file holds rewards of another mode than the one that is asked for."""
    if None not in (reward_mode, demos.reward_mode) and reward_mode != demos.reward_mode:
        made = "without --reward_source, which makes them from successes" if reward_mode == "sparse" else "or sparse"
        raise UserError(
            f"{demos.source} holds {demos.reward_mode} rewards, not {reward_mode}: "
            f"pass --reward_mode {demos.reward_mode}, {made}, or replay the demonstrations with --record-rewards"
        )


def load_demos(
    path: str | Path | Sequence[str | Path],
    *,
    num_demos: int | None = None,
    env_id: str | None = None,
    control_mode: str | None = None,
    obs_mode: str = "state",
    need_rewards: bool = False,
    only_success: bool | None = False,
    env_kwargs: dict[str, Any] | None = None,
) -> Demos:
    """Read and validate, in whatever format; what is None is not compared. UserError names what is wrong and the fix.

    `terminated` is as recorded, on every step that succeeds: see `Trajectory.under_rules`. `only_success` leaves out
    episodes that never succeed; None does so unless all fail. Prints what is left out and what is worth knowing.
    """
    paths = located([path] if isinstance(path, (str, Path)) else path)
    names = " and ".join(map(str, paths))
    wanted = {"env_id": env_id, "control_mode": control_mode, "obs_mode": obs_mode}
    sources = [described(path, wanted) for path in paths]
    about = agreed(sources)
    for source in sources if env_kwargs is not None else ():
        compare_arguments(source.about.env_kwargs, env_kwargs or {}, source.path)
    trajectories = list(sound(sources, pictures=obs_mode != "state", need_rewards=need_rewards))
    if not trajectories:
        raise UserError(f"{names} holds no episode with steps: collect the demonstrations again")
    refuse_mixed(trajectories, names)
    if about.marks_success:
        trajectories = chosen(trajectories, names, only_success)
    if num_demos is not None and num_demos > len(trajectories):
        raise UserError(
            f"{names} holds {len(trajectories)} trajectories, not the {num_demos} of --num_demos: collect more"
        )
    return Demos(
        trajectories[:num_demos],
        env_id=about.env_id or env_id or "",
        control_mode=about.control_mode or control_mode or "",
        max_episode_steps=about.max_episode_steps,
        reward_mode=about.reward_mode,
        sim_backend=about.sim_backend,
        robot=about.robot,
        marks_success=about.marks_success,
        source=names,
    )


@dataclass(frozen=True)
class Source:
    """One recording, and who reads it."""

    path: Path
    reader: DataFormat
    about: Recording


def described(path: Path, wanted: dict[str, str | None]) -> Source:
    """A recording that was made for what is wanted; UserError where there is none, or one for something else."""
    if not path.exists():
        command = collect_command(wanted["env_id"] or "PickCube-v1", wanted["obs_mode"] or "state")
        raise UserError(f"there are no demonstrations at {path}: collect some with {command}")
    reader = format_of(path)
    about = reader.describe(path)
    refuse_another(about, path, wanted)
    for note in about.notes:
        print(f"note: {note}")
    return Source(path, reader, about)


def refuse_another(about: Recording, path: Path, wanted: dict[str, str | None]) -> None:
    """UserError where a recording says that it is of another task or mode."""
    differing = {name: getattr(about, name) for name, value in wanted.items() if value is not None}
    differing = {name: found for name, found in differing.items() if found is not None and found != wanted[name]}
    if same_task(differing.get("env_id"), wanted["env_id"]):
        del differing["env_id"]
    if not differing:
        return
    name, found = next(iter(differing.items()))
    fix = f"pass --{name} {found} or collect other demos"
    if name == "env_id" and (reason := OTHER_VERSIONS.get(str(wanted["env_id"]))):
        fix = f"{reason}; {fix}"
    if name != "env_id" and about.replayable:
        fix = f"replay it with {replay_command(str(path), wanted['obs_mode'] or 'state', wanted['control_mode'])}"
        if about.obs_mode != "none":
            fix = f"pass --{name} {found}, or {fix}"
    raise UserError(f"{path} was recorded with {name} {found}, not {wanted[name]}: {fix}")


def compare_arguments(recorded: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    """UserError where a task was recorded with another argument; a warning where only one side says something."""
    for name in dict.fromkeys((*recorded, *wanted)):
        # pictures say themselves what they are, and the robot is looked at in `Demos.fit_`
        if name == "sensor_configs" or (name == "robot_uids" and name not in wanted):
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


def same_task(found: str | None, wanted: str | None) -> bool:
    """Whether these are versions of a task whose states and actions never changed."""
    names = [name.rsplit("-v", 1)[0] for name in (found, wanted) if name]
    return len(names) == 2 and names[0] == names[1] and names[0] in UNCHANGED


def agreed(sources: Sequence[Source]) -> Recording:
    """What all recordings say of themselves; UserError where they contradict each other in what they mean."""
    first = sources[0].about
    longest = max((one.about.max_episode_steps or 0 for one in sources), default=0)
    for one in sources[1:]:
        for name in ("env_id", "control_mode", "reward_mode", "marks_success", "sim_backend", "robot"):
            own, theirs = getattr(first, name), getattr(one.about, name)
            sentence = f"{one.path} was recorded with {name} {theirs}, and {sources[0].path} with {own}"
            if own != theirs and name in ("sim_backend", "robot"):
                print(f"note: {sentence}")
            elif own != theirs:
                raise UserError(f"{sentence}: train on one kind")
    return replace(first, max_episode_steps=longest or None)


def sound(sources: Sequence[Source], pictures: bool, need_rewards: bool) -> Iterator[Trajectory]:
    """Every episode with steps, checked; the others are named."""
    for source in sources:
        for trajectory in source.reader.read(source.path, pictures):
            if not len(trajectory):
                print(f"note: {source.path}, {trajectory.name} has no steps and is left out")
                continue
            if need_rewards and trajectory.rewards is None:
                fix = replay_command(str(source.path), "state", source.about.control_mode)
                raise UserError(
                    f"{source.path}, {trajectory.name} has no rewards, which Stage 2 needs: "
                    f"{f'replay it with {fix}' if source.about.replayable else 'record them'}, or pass "
                    "--reward_mode sparse"
                )
            trajectory.check(str(source.path))
            if len(sources) > 1:
                trajectory.name = f"{source.path.name} {trajectory.name}"
            yield trajectory


def chosen(trajectories: list[Trajectory], names: str, only_success: bool | None) -> list[Trajectory]:
    """Those to train on; says how many never succeed. UserError where all that are wanted are missing."""
    successful = [one for one in trajectories if one.success.any()]
    failures = len(trajectories) - len(successful)
    if not failures:
        return trajectories
    if only_success and not successful:
        raise UserError(f"none of the {failures} episodes of {names} succeeds: pass --no-only_success to use them")
    leave_out = only_success is not False and bool(successful)
    what = "are left out (--no-only_success uses them)" if leave_out else "are used, too"
    print(f"note: {failures} of the {len(trajectories)} episodes of {names} never succeed and {what}")
    return successful if leave_out else trajectories


def refuse_mixed(trajectories: list[Trajectory], names: str) -> None:
    """UserError where episodes are of several robots or sets of cameras."""
    first = trajectories[0]
    for one in trajectories:
        if (one.obs.shape[1], one.actions.shape[1]) != (first.obs.shape[1], first.actions.shape[1]):
            raise UserError(
                f"{names}, {one.name} has other dimensions than {first.name}: keep one task and robot in it"
            )
        if (one.pictures and one.pictures.spec) != (first.pictures and first.pictures.spec):
            raise UserError(f"{names}, {one.name} has other pictures than {first.name}: keep one set of cameras")
