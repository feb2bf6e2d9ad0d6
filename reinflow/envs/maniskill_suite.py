"""ManiSkill's tasks, on whichever of its simulators this machine has."""

from __future__ import annotations

from dataclasses import replace

import torch

from reinflow.envs.config import DEFAULTS, CompleteEnvConfig
from reinflow.envs.suite import EnvSuite, Setup, Task, Wishes
from reinflow.errors import UserError
from reinflow.runtime.gpu import hidden_gpu
from reinflow.types import BatchedEnv


class ManiSkillSuite(EnvSuite):
    """All tasks that ManiSkill registers; it is asked for every name that no other suite owns."""

    def owns(self, env_id: str) -> bool:
        """Every name, known or not."""
        return True  # only importing it, which takes seconds, tells its tasks; `setup` refuses others with near names

    def task(self, env_id: str) -> Task:
        """The same for all tasks: the default control mode, cameras for people, and a full state to show."""
        control_mode = DEFAULTS["control_mode"]
        return Task(control_mode, reward_modes=None, cameras=None, filmed=True, privileged=True, takes_kwargs=True)

    def setup(self, config: CompleteEnvConfig) -> Setup:
        """The simulator for this machine and task; one on the GPU stays in a single process."""
        backend = choose_backend(config)
        return Setup(
            replace(config, sim_backend=backend),
            spread=not backend.startswith("physx_cuda"),
            rebuilt=backend != "physx_cpu",  # stock single envs build their scenes anew by themselves
        )

    def make(self, config: CompleteEnvConfig, num_envs: int, wishes: Wishes) -> BatchedEnv:
        """One batched env, or as many single ones in a row where the simulator is stock physx_cpu."""
        from reinflow.envs.maniskill import ManiSkillEnv
        from reinflow.envs.sequence import Sequence

        def part(count: int, index: int) -> ManiSkillEnv:
            mine = replace(wishes.builds, first=wishes.builds.first + index)
            extras = {"privileged": wishes.privileged, "filmed": wishes.filmed}
            return ManiSkillEnv(config, count, config.sim_backend, builds=mine, **extras)

        if config.sim_backend == "physx_cpu":
            return Sequence([part(1, index) for index in range(num_envs)])
        return part(num_envs, 0)


def choose_backend(config: CompleteEnvConfig) -> str:
    """The simulation backend for a ManiSkill task; prints a sentence where the batched one has to be left."""
    from reinflow.envs import cpu_batch, gpu_library
    from reinflow.envs.maniskill import task_spec

    task_spec(config.env_id)
    from reinflow.envs.cpu_batch.patches import NEEDS_RENDERER
    from reinflow.envs.headless import render_device_available

    backend: str = config.sim_backend
    if backend == "auto":
        backend = "physx_cuda" if torch.cuda.is_available() else cpu_batch.BACKEND
    if backend.startswith("physx_cuda"):
        refuse_missing_gpu(backend)
        gpu_library.enable()
    if config.env_id in NEEDS_RENDERER and not render_device_available():
        raise UserError(
            f"--env_id {config.env_id} reads render shapes and no Vulkan driver was found: choose another task, "
            f"or install the driver with the line that `python -m reinflow.doctor` prints"
        )
    if backend == cpu_batch.BACKEND and (reason := cpu_batch.unsupported_reason(config.env_id)):
        print(f"{reason}; using stock physx_cpu envs, which are several times slower")
        return "physx_cpu"
    if backend == cpu_batch.BACKEND and config.arguments.env_module:
        from reinflow.envs.cpu_batch.trial import what_fails

        if reason := what_fails(config):
            print(f"{config.env_id} {reason}; using stock physx_cpu envs, which are several times slower")
            return "physx_cpu"
    return backend


def refuse_missing_gpu(backend: str) -> None:
    """UserError where the GPU of `physx_cuda` or `physx_cuda:1` isn't there."""
    index = int(backend.partition(":")[2] or 0)
    if index >= torch.cuda.device_count():
        there = f"only {torch.cuda.device_count()} is" if torch.cuda.is_available() else "none is"
        raise UserError(
            f"--sim_backend {backend} needs a CUDA GPU and {there} visible: use --sim_backend physx_cpu_batched; "
            f"{hidden_gpu() or 'or check nvidia-smi and CUDA_VISIBLE_DEVICES'}"
        )
