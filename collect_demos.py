"""Stage 0: record demonstrations of a task in ManiSkill's trajectory format, with rewards.

    python collect_demos.py --env_id PickCube-v1 --num_demos 100

    python collect_demos.py --obs_mode rgb --render_from demos/PickCube-v1/trajectory.state.pd_ee_delta_pose.h5

    python collect_demos.py --replay trajectory.h5 --obs_mode state --control_mode pd_ee_delta_pose

    python collect_demos.py --checkpoint runs/reinflow-PickCube-v1-seed0 --num_demos 200 --format npz

Writes `demos/<env_id>/trajectory.<obs_mode>.<control_mode>.h5` and the .json beside it, which Stages 1 and 2 find by
themselves. Pictures are taken afterwards, of the recorded states of the episodes that are kept.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from reinflow.cli import Flat, run_script
from reinflow.data.config import demo_file_name
from reinflow.envs.arguments import EnvArguments
from reinflow.envs.config import CompleteEnvConfig, EnvConfig
from reinflow.errors import UserError

if TYPE_CHECKING:
    from reinflow.data.trajectories import Trajectory
    from reinflow.policies.base import Policy
    from reinflow.recording.writer import TrajectoryWriter

DEMOS = 100
SUFFIXES = {"maniskill": ".h5", "d4rl": ".hdf5", "robomimic": ".hdf5", "npz": ".npz", "minari": ""}
MAX_ENVS = 64
CAMERA_ENVS = 16
"""scenes that are photographed at once"""


@dataclass(frozen=True)
class Config:
    """Stage 0: collect demonstrations."""

    env_id: str = "PickCube-v1"
    """task; scripted experts exist for PickCube, PushCube, PullCube, StackCube and LiftPegUpright, and for those that
    `--env_module` adds (docs/own_tasks.md)"""
    num_demos: int | None = None
    """episodes to keep; None is 100, and with --replay all of the file"""
    source: Literal["scripted", "motionplanning"] = "scripted"
    """scripted: closed-loop expert, short episodes; motionplanning: ManiSkill's planner, replayed in control_mode"""
    obs_mode: str = "state"
    """observations: `state`, `rgb`, `depth`, or several joined by +"""
    render_from: str | None = None
    """demonstrations with state observations to see again in obs_mode, instead of collecting new ones"""
    replay: str | None = None
    """a ManiSkill recording, such as those of its hub, to play again: it gets obs_mode, control_mode and rewards"""
    checkpoint: str | None = None
    """file or run directory of a policy of states whose own episodes to record, without exploration noise"""
    format: Literal["maniskill", "d4rl", "robomimic", "npz", "minari"] = "maniskill"
    """--checkpoint: what to write; python -m reinflow.convert writes any recording in any of them"""
    control_mode: str = "pd_ee_delta_pose"
    """what an action means; scripted experts only act in pd_ee_delta_pose, Toy-v0 has its own"""
    seed: int = 0
    """seed of the first attempt; attempt i starts from seed + i (the planner always starts from 0)"""
    action_noise: float = 0.0
    """std added to a scripted expert's translation while it travels, in normalised action units; .2 is moderate"""
    hold_steps: int = 3
    """env steps kept after the first success of a scripted episode"""
    only_success: bool = True
    """keep only episodes whose last step succeeds"""
    max_episode_steps: int | None = None
    """env steps after which an attempt ends; None takes the task's own limit"""
    num_envs: int | None = None
    """envs simulated at once; None takes as many as there are demos, at most 64"""
    sim_backend: str = "auto"
    """simulator, as in the other stages; evaluate on the same kind as you collect on"""
    arguments: Flat[EnvArguments] = field(default_factory=EnvArguments)
    output: str | None = None
    """the .h5 file to write; None takes <record_dir>/<env_id>/trajectory.<obs_mode>.<control_mode>.h5"""
    record_dir: str = "demos"
    """folder of all demonstrations"""
    overwrite: bool = False
    """replace existing demonstrations"""
    num_attempts: int | None = None
    """only measure the scripted expert: run this many attempts, print the success rate, write nothing"""

    @property
    def wanted(self) -> int:
        """Episodes to keep of those that are made here."""
        return DEMOS if self.num_demos is None else self.num_demos

    @property
    def path(self) -> Path:
        """The .h5 file to write: `--output`, or the task's own file below `--record_dir`."""
        default = Path(self.record_dir) / self.env_id / demo_file_name(self.obs_mode, self.control_mode)
        if self.checkpoint:
            default = default.with_name(f"policy{SUFFIXES[self.format]}")
        return Path(self.output) if self.output else default


def main(config: Config) -> None:
    """Record demonstrations from the chosen source, or render those of an existing file again."""
    from reinflow.recording.writer import refuse_existing

    if config.checkpoint:
        record_policy(config, config.checkpoint)
        return
    if config.format != "maniskill":
        raise UserError("--format is for --checkpoint: convert other recordings with python -m reinflow.convert")
    if config.replay:
        from reinflow.recording.replay import recorded

        config = replace(recorded_task(config, recorded(Path(config.replay)).info), control_mode=config.control_mode)
    task = env_config(config)
    config = replace(config, env_id=task.env_id, obs_mode=task.obs_mode, arguments=task.arguments)
    check(config)
    if config.num_attempts is None:
        refuse_existing(config.path, config.overwrite)
    if config.render_from:
        render_again(config, Path(config.render_from))
    elif config.replay:
        replay_again(config, Path(config.replay))
    elif config.source == "motionplanning":
        collect_planned(config)
    else:
        collect_scripted(config)


def check(config: Config) -> None:
    """UserError for flags that can't be, before anything starts."""
    from reinflow.recording.experts import CONTROL_MODE

    least = {"num_demos": 1, "num_envs": 1, "num_attempts": 1, "max_episode_steps": 1}
    least |= {"hold_steps": 0, "action_noise": 0}
    for name, bound in least.items():
        value = getattr(config, name)
        if value is not None and value < bound:
            raise UserError(f"--{name} {value} is too small: pass at least {bound}")
    if config.obs_mode != "state":
        from reinflow.envs.headless import refuse_without_renderer

        refuse_without_renderer(f"--obs_mode {config.obs_mode}")
    if config.render_from and config.obs_mode == "state":
        raise UserError("--render_from takes pictures of recorded states: pass --obs_mode rgb, depth or rgb+depth")
    if config.render_from and config.replay:
        raise UserError("--render_from and --replay are two ways to see a file again: pass one of them")
    if (
        config.source == "scripted"
        and not (config.render_from or config.replay)
        and config.control_mode != CONTROL_MODE
    ):
        raise UserError(
            f"scripted experts act in {CONTROL_MODE}, not {config.control_mode}: "
            f"leave --control_mode out or use --source motionplanning"
        )
    if config.source == "motionplanning" and (config.arguments.env_module or config.arguments.kwargs):
        raise UserError("--source motionplanning plans ManiSkill's own tasks as they are: leave --env_* flags out")
    if config.source == "motionplanning" and (config.seed or config.action_noise or config.num_attempts):
        raise UserError("--source motionplanning takes neither --seed, --action_noise nor --num_attempts")


def env_config(config: Config, obs_mode: str | None = None) -> CompleteEnvConfig:
    """The task of the flags; scripted experts act in it with state observations whatever is recorded."""
    mode = config.obs_mode if obs_mode is None else obs_mode
    settings = {"sim_backend": config.sim_backend, "control_mode": config.control_mode}
    return EnvConfig(config.env_id, mode, **settings, arguments=config.arguments).completed()


def collect_scripted(config: Config) -> None:
    """Run the scripted expert and write its episodes, or with `--num_attempts` only count its successes."""
    from reinflow.envs.maniskill import make, task_spec
    from reinflow.envs.maniskill_suite import choose_backend
    from reinflow.recording.collect import attempts, collect, measure
    from reinflow.recording.experts import make_expert

    limit = config.max_episode_steps or task_spec(config.env_id).max_episode_steps
    make_expert(config.env_id, num_envs=1)
    settings = env_config(config, obs_mode="state")
    backend = choose_backend(settings)
    num_envs = config.num_envs or min(MAX_ENVS, config.num_attempts or config.wanted)
    started = time.perf_counter()
    with closing(make(settings, 1 if backend == "physx_cpu" else num_envs, backend)) as env:
        episodes = attempts(env, config.env_id, config.seed, limit, config.hold_steps, config.action_noise)
        if config.num_attempts:
            tally = measure(episodes, config.num_attempts)
        else:
            source = {"source_type": "scripted", "source_desc": f"scripted expert, action noise {config.action_noise}"}
            info = env_info(config, "physx_cuda" if backend.startswith("physx_cuda") else "physx_cpu", limit)
            with new_writer(config, info, source) as writer:
                tally = collect(
                    progress(episodes),
                    config.wanted,
                    config.only_success,
                    keep=lambda episode: writer.add(episode.data, episode.seed, config.control_mode),
                )
    print(
        f"{config.env_id}: {tally.successes} of {tally.attempts} attempts succeeded ({tally.rate:.1%}), "
        f"seeds {config.seed} to {config.seed + tally.attempts - 1}, "
        f"{median(tally.first_success)} steps to success (median), {time.perf_counter() - started:.1f} s"
    )
    if config.num_attempts is None:
        print(f"wrote {config.wanted} demonstrations to {config.path}")


def collect_planned(config: Config) -> None:
    """Write demonstrations of ManiSkill's motion planner, replayed to the control mode asked for."""
    from reinflow.envs.maniskill import task_spec
    from reinflow.recording.planner import plan_demos, refuse_without_planner

    refuse_without_planner()
    limit = config.max_episode_steps or task_spec(config.env_id).max_episode_steps
    source = {"source_type": "motionplanning", "source_desc": "ManiSkill's motion planner, replayed"}
    print(f"planning and replaying {config.wanted} episodes of {config.env_id}", flush=True)
    with new_writer(config, env_info(config, "physx_cpu", limit), source) as writer:
        plan_demos(config.env_id, config.wanted, config.control_mode, writer)
    print(f"wrote {config.wanted} demonstrations to {config.path}")


def render_again(config: Config, source: Path) -> None:
    """Copy recorded episodes with pictures of their states; UserError where they hold no full states."""
    from reinflow.data.demos import load_demos
    from reinflow.data.formats.maniskill import ManiSkillFormat, read_description
    from reinflow.data.hdf5 import opened
    from reinflow.recording.planner import as_arrays

    said, about = ManiSkillFormat().describe(source), read_description(source)
    settings = about["env_info"]["env_kwargs"]
    config = recorded_task(config, about["env_info"])
    config = replace(config, control_mode=said.control_mode or config.control_mode)
    load_demos(source)  # names whatever is wrong with the file, or that it is not one of state observations
    info = about["env_info"] | {"env_kwargs": settings | {"obs_mode": config.obs_mode} | config.arguments.kwargs}
    origin = {name: about[name] for name in ("source_type", "source_desc") if name in about}
    with new_writer(config, info, origin) as writer, opened(source) as file:
        for episode in progress(iter(about["episodes"])):
            data = as_arrays(file[f"traj_{episode['episode_id']}"])
            if len(data["actions"]):
                writer.add(data, episode.get("episode_seed"), config.control_mode)
        count = len(writer)
    print(f"wrote {count} demonstrations to {config.path}")


def record_policy(config: Config, checkpoint: str) -> None:
    """Let a trained policy act and write its episodes: those that succeed, where its task is ranked by success."""
    from reinflow.data.trajectories import Demos
    from reinflow.recording.collect import PATIENCE
    from reinflow.recording.writers import WRITERS, refuse_taken
    from reinflow.storage.checkpoint import load_policy, resolve_checkpoint

    path = resolve_checkpoint(checkpoint)
    policy, saved = load_policy(path, "cpu")
    task = saved.env_spec
    refuse_taken(replace(config, env_id=task.env_id).path, config.overwrite)
    if task.image is not None:
        raise UserError(f"{path} is a policy of pictures, whose episodes are not recorded here: take one of states")
    config = replace(config, env_id=task.env_id, obs_mode=task.obs_mode, control_mode=task.control_mode)
    choosy = config.only_success and task.headline == "success_once"
    kept, attempts = [], 0
    settings = EnvConfig(sim_backend=config.sim_backend, max_episode_steps=config.max_episode_steps).completed(task)
    for episode in policy_episodes(policy, settings, config.num_envs or min(MAX_ENVS, config.wanted), config.seed):
        attempts += 1
        if not choosy or episode.success.any():
            kept.append(episode)
        if len(kept) == config.wanted:
            break
        if not kept and attempts >= PATIENCE:
            raise UserError(f"none of {attempts} episodes of {path} succeeded: pass --no-only_success, or train it on")
    reward_mode, limit = settings.reward_mode, settings.max_episode_steps or task.max_episode_steps
    backend = task.sim_backend if task.sim_backend.startswith("physx") else None
    demos = Demos(kept, task.env_id, task.control_mode, limit, reward_mode, backend, task.robot, source=str(path))
    WRITERS[config.format](config.path, demos, config.overwrite)
    print(f"{task.env_id}: {len(kept)} of {attempts} episodes are kept, seeds {config.seed} and up")
    print(f"wrote {len(kept)} demonstrations to {config.path}")


def policy_episodes(policy: Policy, settings: CompleteEnvConfig, num_envs: int, seed: int) -> Iterator[Trajectory]:
    """Episodes in the order of their seeds, without end."""
    from reinflow.envs import chunked, made, settled
    from reinflow.envs.suite import Wishes
    from reinflow.recording.policies import Notebook
    from reinflow.training.evaluation import evaluate

    wishes = Wishes(policy.device)
    suite, setup = settled(settings, wishes)
    num_envs = 1 if setup.config.sim_backend == "physx_cpu" else num_envs
    notebook = Notebook(made(suite, setup.config, num_envs, wishes))
    with closing(chunked(notebook, policy.spec.act_horizon, policy.spec.obs_horizon, gamma=1.0)) as env:
        policy.spec.check_fits(env.spec)
        while True:
            evaluate(policy, env, episodes=num_envs, seed=seed)
            yield from notebook.episodes(seed)
            seed += num_envs


def replay_again(config: Config, source: Path) -> None:
    """Play recorded episodes again and write those that succeed, or all with `--no-only_success`."""
    from reinflow.recording.collect import Tally
    from reinflow.recording.replay import recorded, replays, reward_mode_of

    file, tally, kept = recorded(source), Tally(), 0
    wanted = len(file.episodes) if config.num_demos is None else config.num_demos
    if wanted > len(file.episodes):
        raise UserError(f"{source} holds {len(file.episodes)} trajectories, not the {wanted} of --num_demos")
    limit = config.max_episode_steps or file.max_episode_steps
    info = env_info(config, "physx_cpu", limit, reward_mode_of(file.env_id))
    with new_writer(config, info, file.source) as writer:
        for episode in progress(replays(file, config.control_mode, config.arguments)):
            tally.count(episode)
            if episode.success or not config.only_success:
                writer.add(episode.data, episode.seed, config.control_mode)
                kept += 1
            if kept == wanted:
                break
        if not kept:
            raise UserError(
                f"none of the {tally.attempts} replayed episodes ends in success: their physics or version is another, "
                "or --control_mode can't follow them; --no-only_success keeps them all the same"
            )
    print(f"{tally.successes} of {tally.attempts} replayed episodes succeeded ({tally.rate:.1%})")
    print(f"wrote {kept} demonstrations to {config.path}")


def recorded_task(config: Config, info: dict[str, Any]) -> Config:
    """The flags for the task of a recording, whose arguments count where the flags say nothing."""
    from reinflow.data.formats.maniskill import own_kwargs

    settings = info["env_kwargs"]
    kwargs = own_kwargs(settings) | config.arguments.kwargs
    module = config.arguments.env_module or info.get("env_module")
    arguments = EnvArguments(module, json.dumps(kwargs) if kwargs else None)
    return replace(
        config,
        env_id=info["env_id"],
        control_mode=settings.get("control_mode") or config.control_mode,
        arguments=arguments,
    )


@contextmanager
def new_writer(config: Config, info: dict[str, Any], source: dict[str, str]) -> Iterator[TrajectoryWriter]:
    """Where episodes go; in an image mode each of them is seen again on the way."""
    from reinflow.recording.writer import TrajectoryWriter

    with ExitStack() as stack:
        see = None
        if config.obs_mode != "state":
            see = stack.enter_context(camera(config))
        yield stack.enter_context(TrajectoryWriter(config.path, info, source, config.overwrite, see))


@contextmanager
def camera(config: Config) -> Iterator[Callable[[dict[str, Any]], dict[str, Any]]]:
    """A function that gives an episode with states the observations of the flags' mode."""
    from reinflow.envs.maniskill import make
    from reinflow.envs.maniskill_suite import choose_backend
    from reinflow.recording.rerender import Projector

    settings = env_config(config)
    backend = choose_backend(settings)
    with closing(make(settings, 1 if backend == "physx_cpu" else CAMERA_ENVS, backend)) as env:
        projector = Projector(env)
        import torch

        yield lambda data: {**data, "obs": projector.observations(data["env_states"], torch.as_tensor(data["obs"]))}


def env_info(config: Config, backend: str, limit: int, reward_mode: str = "normalized_dense") -> dict[str, Any]:
    """How a single stock env replays these episodes; the batched CPU backend equals `physx_cpu`."""
    kwargs = {
        "obs_mode": config.obs_mode,
        "control_mode": config.control_mode,
        "reward_mode": reward_mode,
        "sim_backend": backend,
        "num_envs": 1,
    }
    info = {"env_id": config.env_id, "env_kwargs": kwargs | config.arguments.kwargs, "max_episode_steps": limit}
    return info if config.arguments.env_module is None else {**info, "env_module": config.arguments.env_module}


def progress(episodes: Iterator[Any]) -> Iterator[Any]:
    """Count attempts on a terminal."""
    for count, episode in enumerate(episodes, start=1):
        if sys.stdout.isatty():
            print(f"\r{count} attempts", end="\r", flush=True)
        yield episode


def median(values: list[int]) -> str:
    """The middle value as text, the upper one of two; `no` where there are none."""
    return str(sorted(values)[len(values) // 2]) if values else "no"


if __name__ == "__main__":
    run_script(main, Config, loads="torch and the simulator")
