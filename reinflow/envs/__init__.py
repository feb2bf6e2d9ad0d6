"""Environments: `make_env` turns an `EnvConfig` into a `ChunkEnv`, whatever simulates it."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from reinflow import distributed
from reinflow.envs.config import CompleteEnvConfig, EnvConfig
from reinflow.envs.seeding import Builds
from reinflow.errors import UserError
from reinflow.types import BatchedEnv, ChunkEnv, ImageSpec, Seed

if TYPE_CHECKING:
    from reinflow.envs.recorder import Recorder

TORCH_ENVS = ("Toy-v0", "SyntheticChunk-v0")
"""env ids that need no simulator"""


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

    `builds` is the geometry of tasks that draw it; `privileged` adds the full state to the observations of a ManiSkill
    task. UserError says what is wrong.
    """
    complete = config.completed()
    device = torch.device(device)
    chunk: dict[str, Any] = {"act_horizon": act_horizon, "obs_horizon": obs_horizon, "gamma": gamma}
    if complete.env_id in TORCH_ENVS:
        return chunked(torch_env(complete, num_envs, device), **chunk)
    backend = choose_backend(complete)
    make = partial(simulated, complete, backend, chunk, builds or Builds(), privileged)
    if backend == "physx_cuda":
        return on_device(make(num_envs, 0), device)
    from reinflow.envs.workers import WorkerChunkEnv

    cores = max((os.cpu_count() or 1) // distributed.processes_here(), 1)
    workers = cores if complete.num_workers is None else complete.num_workers
    env = WorkerChunkEnv(make, num_envs, workers, act_horizon) if workers else make(num_envs, 0)
    return on_device(env, device)


def make_filmed_env(
    config: CompleteEnvConfig, num_envs: int, act_horizon: int, obs_horizon: int, device: torch.device | str = "cpu"
) -> tuple[ChunkEnv, Recorder]:
    """Envs of this process and the recorder that films them. UserError where there is nothing to film with."""
    from reinflow.envs.recorder import Recorder

    if config.env_id in TORCH_ENVS:
        raise UserError(f"{config.env_id} has no camera: leave --capture_video out")
    from reinflow.envs.maniskill import ManiSkillEnv
    from reinflow.envs.sequence import Sequence

    backend = choose_backend(config)
    if backend == "physx_cpu":
        recorder = Recorder(Sequence([ManiSkillEnv(config, 1, backend, filmed=True) for _ in range(num_envs)]))
    else:
        recorder = Recorder(ManiSkillEnv(config, num_envs, backend, filmed=True))
    return on_device(chunked(recorder, act_horizon, obs_horizon, gamma=1.0), torch.device(device)), recorder


def torch_env(config: CompleteEnvConfig, num_envs: int, device: torch.device):
    from reinflow.envs.synthetic import SyntheticEnv
    from reinflow.envs.toy import ToyEnv

    limit = {} if config.max_episode_steps is None else {"max_episode_steps": config.max_episode_steps}
    parts = config.obs_mode.split("+")
    modes = ("normalized_dense", "sparse") if config.env_id == "Toy-v0" else ("normalized_dense",)
    if config.reward_mode not in modes:
        raise UserError(f"{config.env_id} does not take --reward_mode {config.reward_mode}: use {' or '.join(modes)}")
    if config.env_id == "Toy-v0":
        if parts != ["state"]:
            raise UserError(f"Toy-v0 has no pictures: use --obs_mode state instead of {config.obs_mode}")
        return ToyEnv(num_envs, device, config.terminate_on_success, config.reward_mode, **limit)
    image = None if parts == ["state"] else ImageSpec(("camera",), 128, 128, "rgb" in parts, "depth" in parts)
    return SyntheticEnv(num_envs, device, image=image, **limit)


def chunked(env, act_horizon: int, obs_horizon: int, gamma: float, rebuild_every: int = 0) -> ChunkEnv:
    from reinflow.envs.wrappers import ActionChunk

    return ActionChunk(env, act_horizon, obs_horizon, gamma, rebuild_every)


def simulated(
    config: CompleteEnvConfig,
    backend: str,
    chunk: dict[str, Any],
    builds: Builds,
    privileged: bool,
    num_envs: int,
    first: int,
) -> ChunkEnv:
    """The envs of one process; `first` is the place of the first one among those of all workers."""
    from reinflow.envs.maniskill import ManiSkillEnv
    from reinflow.envs.sequence import Sequence

    def part(count: int, index: int) -> BatchedEnv:
        mine = replace(builds, first=builds.first + first + index)
        return ManiSkillEnv(config, count, backend, builds=mine, privileged=privileged)

    if backend == "physx_cpu":  # builds its scenes anew by itself
        return chunked(Sequence([part(1, index) for index in range(num_envs)]), **chunk)
    return chunked(part(num_envs, 0), **chunk, rebuild_every=builds.every or 0)


def choose_backend(config: CompleteEnvConfig) -> str:
    """The simulation backend for a ManiSkill task; prints a sentence where the batched one has to be left."""
    from reinflow.envs import cpu_batch
    from reinflow.envs.maniskill import task_spec

    task_spec(config.env_id)
    from reinflow.envs.cpu_batch.patches import NEEDS_RENDERER
    from reinflow.envs.headless import render_device_available

    backend: str = config.sim_backend
    if backend == "auto":
        backend = "physx_cuda" if torch.cuda.is_available() else cpu_batch.BACKEND
    if backend == "physx_cuda" and not torch.cuda.is_available():
        raise UserError(
            "--sim_backend physx_cuda needs a CUDA GPU and none is visible: use --sim_backend physx_cpu_batched, "
            "or check nvidia-smi and CUDA_VISIBLE_DEVICES"
        )
    if config.env_id in NEEDS_RENDERER and not render_device_available():
        raise UserError(
            f"--env_id {config.env_id} reads render shapes and no Vulkan driver was found: choose another task, "
            f"or install the driver with the line that `python -m reinflow.doctor` prints"
        )
    if backend == cpu_batch.BACKEND and (reason := cpu_batch.unsupported_reason(config.env_id)):
        print(f"{reason}; using stock physx_cpu envs, which are several times slower")
        return "physx_cpu"
    return backend


def on_device(env: ChunkEnv, device: torch.device) -> ChunkEnv:
    return env if env.device.type == device.type else OnDevice(env, device)


class OnDevice:
    """A `ChunkEnv` whose tensors a learner on another device sees as its own."""

    def __init__(self, env: ChunkEnv, device: torch.device):
        self.env = env
        self.device = device
        self.num_envs = env.num_envs
        self.spec = env.spec
        self.obs_horizon = env.obs_horizon

    def reset(self, seed: Seed = None):
        return moved(self.env.reset(seed=seed), self.device)

    def rebuild(self, seeds: list[int]) -> None:
        self.env.rebuild(seeds)

    def step_chunk(self, actions: torch.Tensor):
        return moved(self.env.step_chunk(actions.to(self.env.device)), self.device)

    def state(self):
        return self.env.state()

    def restore(self, state):
        obs = self.env.restore(state)
        return None if obs is None else moved(obs, self.device)

    def close(self) -> None:
        self.env.close()


def moved(value, device: torch.device):
    """A tensor, or a dict or dataclass of tensors, on `device`."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {name: moved(inner, device) for name, inner in value.items()}
    return type(value)(**{name: moved(inner, device) for name, inner in vars(value).items()})


__all__ = ["Builds", "EnvConfig", "make_env"]
