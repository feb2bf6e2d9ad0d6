"""Stage 0: record demonstrations of a task in ManiSkill's trajectory format, with rewards.

    python collect_demos.py --env_id PickCube-v1 --num_demos 100

Writes `demos/<env_id>/trajectory.state.pd_ee_delta_pose.h5` and the .json beside it, which Stages 1 and 2 find by
themselves.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reinflow.cli import run_script
from reinflow.data.config import demo_file_name
from reinflow.envs.config import EnvConfig
from reinflow.errors import UserError

MAX_ENVS = 64


@dataclass(frozen=True)
class Config:
    """Stage 0: collect demonstrations."""

    env_id: str = "PickCube-v1"
    """task; scripted experts exist for PickCube, PushCube, PullCube, StackCube and LiftPegUpright"""
    num_demos: int = 100
    """episodes to keep"""
    source: Literal["scripted", "motionplanning"] = "scripted"
    """scripted: closed-loop expert, short episodes; motionplanning: ManiSkill's planner, replayed in control_mode"""
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
    sim_backend: Literal["auto", "physx_cuda", "physx_cpu_batched", "physx_cpu"] = "auto"
    """simulator; evaluate on the same kind as you collect on"""
    output: str | None = None
    """the .h5 file to write; None takes <record_dir>/<env_id>/trajectory.state.<control_mode>.h5"""
    record_dir: str = "demos"
    """folder of all demonstrations"""
    overwrite: bool = False
    """replace existing demonstrations"""
    num_attempts: int | None = None
    """only measure the scripted expert: run this many attempts, print the success rate, write nothing"""

    @property
    def path(self) -> Path:
        default = Path(self.record_dir) / self.env_id / demo_file_name("state", self.control_mode)
        return Path(self.output) if self.output else default


def main(config: Config) -> None:
    from reinflow.data.writer import refuse_existing

    check(config)
    if config.num_attempts is None:
        refuse_existing(config.path, config.overwrite)
    if config.source == "motionplanning":
        collect_planned(config)
    else:
        collect_scripted(config)


def check(config: Config) -> None:
    """UserError for flags that can't be, before anything starts."""
    from reinflow.data.experts import CONTROL_MODE

    least = {"num_demos": 1, "num_envs": 1, "num_attempts": 1, "max_episode_steps": 1}
    least |= {"hold_steps": 0, "action_noise": 0}
    for name, bound in least.items():
        value = getattr(config, name)
        if value is not None and value < bound:
            raise UserError(f"--{name} {value} is too small: pass at least {bound}")
    if config.source == "scripted" and config.control_mode != CONTROL_MODE:
        raise UserError(
            f"scripted experts act in {CONTROL_MODE}, not {config.control_mode}: "
            f"leave --control_mode out or use --source motionplanning"
        )
    if config.source == "motionplanning" and (config.seed or config.action_noise or config.num_attempts):
        raise UserError("--source motionplanning takes neither --seed, --action_noise nor --num_attempts")


def collect_scripted(config: Config) -> None:
    from reinflow.data.collect import attempts, collect, measure
    from reinflow.data.experts import make_expert
    from reinflow.envs import choose_backend
    from reinflow.envs.maniskill import make, task_spec

    limit = config.max_episode_steps or task_spec(config.env_id).max_episode_steps
    make_expert(config.env_id, num_envs=1)
    settings = EnvConfig(config.env_id, sim_backend=config.sim_backend, control_mode=config.control_mode).completed()
    backend = choose_backend(settings)
    num_envs = config.num_envs or min(MAX_ENVS, config.num_attempts or config.num_demos)
    started = time.perf_counter()
    with closing(make(settings, 1 if backend == "physx_cpu" else num_envs, backend)) as env:
        episodes = attempts(env, config.env_id, config.seed, limit, config.hold_steps, config.action_noise)
        if config.num_attempts:
            tally = measure(episodes, config.num_attempts)
        else:
            source = {"source_type": "scripted", "source_desc": f"scripted expert, action noise {config.action_noise}"}
            info = env_info(config, "physx_cuda" if backend == "physx_cuda" else "physx_cpu", limit)
            with new_writer(config, info, source) as writer:
                tally = collect(
                    progress(episodes),
                    config.num_demos,
                    config.only_success,
                    keep=lambda episode: writer.add(episode.data, episode.seed, config.control_mode),
                )
    print(
        f"{config.env_id}: {tally.successes} of {tally.attempts} attempts succeeded ({tally.rate:.1%}), "
        f"seeds {config.seed} to {config.seed + tally.attempts - 1}, "
        f"{median(tally.first_success)} steps to success (median), {time.perf_counter() - started:.1f} s"
    )
    if config.num_attempts is None:
        print(f"wrote {config.num_demos} demonstrations to {config.path}")


def collect_planned(config: Config) -> None:
    from reinflow.envs.maniskill import task_spec
    from reinflow.planner import plan_demos, refuse_without_planner

    refuse_without_planner()
    limit = config.max_episode_steps or task_spec(config.env_id).max_episode_steps
    source = {"source_type": "motionplanning", "source_desc": "ManiSkill's motion planner, replayed"}
    print(f"planning and replaying {config.num_demos} episodes of {config.env_id}", flush=True)
    with new_writer(config, env_info(config, "physx_cpu", limit), source) as writer:
        plan_demos(config.env_id, config.num_demos, config.control_mode, writer)
    print(f"wrote {config.num_demos} demonstrations to {config.path}")


def new_writer(config: Config, info: dict[str, Any], source: dict[str, str]) -> Any:
    from reinflow.data.writer import TrajectoryWriter

    return TrajectoryWriter(config.path, info, source, config.overwrite)


def env_info(config: Config, backend: str, limit: int) -> dict[str, Any]:
    """How a single stock env replays these episodes; the batched CPU backend equals `physx_cpu`."""
    kwargs = {
        "obs_mode": "state",
        "control_mode": config.control_mode,
        "reward_mode": "normalized_dense",
        "sim_backend": backend,
        "num_envs": 1,
    }
    return {"env_id": config.env_id, "env_kwargs": kwargs, "max_episode_steps": limit}


def progress(episodes: Iterator[Any]) -> Iterator[Any]:
    """Count attempts on a terminal."""
    for count, episode in enumerate(episodes, start=1):
        if sys.stdout.isatty():
            print(f"\r{count} attempts", end="\r", flush=True)
        yield episode


def median(values: list[int]) -> str:
    return str(sorted(values)[len(values) // 2]) if values else "no"


if __name__ == "__main__":
    run_script(main, Config)
