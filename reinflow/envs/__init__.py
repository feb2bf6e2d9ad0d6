"""Environments: `make_env` turns an `EnvConfig` into a `ChunkEnv`, whatever simulates it.

A suite (suite.py) makes the envs of its tasks; wrappers.py and workers.py chunk and spread them. Scripts, evaluation,
videos and the checks of a machine import this package; algorithms, families and training loops are given a `ChunkEnv`.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from reinflow.envs.builds import Builds
from reinflow.envs.config import CompleteEnvConfig, EnvConfig
from reinflow.envs.suite import SUITES, EnvSuite, Setup, Wishes, made, suite_of
from reinflow.registry import Entry, later

if TYPE_CHECKING:
    import torch

    from reinflow.envs.recorder import Recorder
    from reinflow.types import BatchedEnv, ChunkEnv

SUITES.add("maniskill", Entry(later("reinflow.envs.maniskill_suite:ManiSkillSuite")))
SUITES.add("absent", Entry(later("reinflow.envs.absent:AbsentSuite")))
SUITES.add("gymnasium", Entry(later("reinflow.envs.gymnasium_suite:GymnasiumSuite")))
SUITES.add("toy", Entry(later("reinflow.envs.toy:ToySuite")))
SUITES.add("synthetic", Entry(later("reinflow.envs.synthetic:SyntheticSuite")))
SUITES.add("mujoco", Entry(later("reinflow.envs.mujoco:MujocoSuite")))
SUITES.add("robosuite", Entry(later("reinflow.envs.robosuite_suite:RobosuiteSuite")))


def make_env(
    config: EnvConfig,
    num_envs: int,
    act_horizon: int,
    obs_horizon: int,
    gamma: float,
    device: torch.device | str = "cpu",
    *,
    builds: Builds | None = None,
    privileged: bool = False,
) -> ChunkEnv:
    """`num_envs` envs whose tensors are on `device`; `gamma` discounts rewards inside a chunk.

    `builds` is the geometry of tasks that draw it; `privileged` adds the full state to the observations of tasks that
    have one. UserError says what is wrong.
    """
    import torch

    device = torch.device(device)
    chunk = {"act_horizon": act_horizon, "obs_horizon": obs_horizon, "gamma": gamma}
    wishes = Wishes(device, builds or Builds(), privileged)
    suite, setup = settled(config.completed(), wishes)
    make = partial(simulated, suite, setup, wishes, chunk)
    workers = num_workers(setup)
    if not workers:
        return on_device(make(num_envs, 0), device)
    from reinflow.envs.workers import WorkerChunkEnv

    return on_device(WorkerChunkEnv(make, num_envs, workers, act_horizon), device)


def make_filmed_env(
    config: CompleteEnvConfig, num_envs: int, act_horizon: int, obs_horizon: int, device: torch.device | str = "cpu"
) -> tuple[ChunkEnv, Recorder]:
    """Envs of this process and the recorder that films them. UserError where there is nothing to film with."""
    import torch

    from reinflow.envs.recorder import Recorder

    wishes = Wishes(torch.device(device), filmed=True)
    suite, setup = settled(config, wishes)
    recorder = Recorder(made(suite, setup.config, num_envs, wishes))  # type: ignore[arg-type]
    return on_device(chunked(recorder, act_horizon, obs_horizon, gamma=1.0), torch.device(device)), recorder


def settled(config: CompleteEnvConfig, wishes: Wishes) -> tuple[EnvSuite, Setup]:
    """The suite of a task and how it will simulate it; UserError for what it doesn't."""
    suite = suite_of(config.env_id)
    suite.refuse(config, wishes)
    return suite, suite.setup(config)


def num_workers(setup: Setup) -> int:
    """Simulator processes; 0 simulates in this one."""
    if not setup.spread:
        return 0
    return usable_cores() if setup.config.num_workers is None else setup.config.num_workers


def usable_cores() -> int:
    """Cores of this machine for each process of the run."""
    from reinflow.runtime import distributed

    return max((os.cpu_count() or 1) // distributed.processes_here(), 1)


def simulated(
    suite: EnvSuite, setup: Setup, wishes: Wishes, chunk: dict[str, Any], num_envs: int, first: int
) -> ChunkEnv:
    """The envs of one process; `first` is the place of the first one among those of all workers."""
    builds = replace(wishes.builds, first=wishes.builds.first + first)
    env = made(suite, setup.config, num_envs, replace(wishes, builds=builds))
    return chunked(env, **chunk, rebuild_every=(builds.every or 0) if setup.rebuilt else 0)


def chunked(env: BatchedEnv, act_horizon: int, obs_horizon: int, gamma: float, rebuild_every: int = 0) -> ChunkEnv:
    """Decisions of several env steps."""
    from reinflow.envs.wrappers import ActionChunk

    return ActionChunk(env, act_horizon, obs_horizon, gamma, rebuild_every)


def on_device(env: ChunkEnv, device: torch.device) -> ChunkEnv:
    """The env itself, or what hands its tensors to a learner elsewhere."""
    from reinflow.envs.elsewhere import OnDevice, same

    return env if same(env.device, device) else OnDevice(env, device)


__all__ = ["Builds", "EnvConfig", "make_env", "usable_cores"]
