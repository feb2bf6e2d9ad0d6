"""Envs that a learner on a GPU takes for simulated there, though a CPU does: no GPU simulator is needed to test."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from reinflow.envs import EnvConfig
from reinflow.envs.config import CompleteEnvConfig
from reinflow.envs.suite import Wishes, made, suite_of
from reinflow.envs.wrappers import ActionChunk
from reinflow.types import BatchedEnv, Seed, StepResult
from tests.gpu.accelerator import Accelerator


class Double:
    """A `BatchedEnv` on the CPU whose tensors are the GPU's."""

    def __init__(self, env: BatchedEnv, gpu: Accelerator):
        self.env, self.gpu = env, gpu
        self.num_envs, self.device = env.num_envs, gpu.device
        self.spec = replace(env.spec, sim_backend="physx_cuda")
        self.ends_early = getattr(env, "ends_early", True)

    def reset(self, seed: Seed = None, env_idx: Int[Tensor, "m"] | None = None) -> dict[str, Tensor]:
        with self.gpu.paused_():
            return self.gpu.moved(self.env.reset(seed=seed, env_idx=self.gpu.taken(env_idx)))

    def step(self, action: Float[Tensor, "n a"], render: bool = True) -> StepResult:
        with self.gpu.paused_():
            return self.gpu.moved(self.env.step(self.gpu.taken(action), render=render))

    def rebuild(self, seeds: list[int] | None = None) -> None:
        with self.gpu.paused_():
            self.env.rebuild(seeds)

    def state(self) -> None:
        """Nothing, as on a GPU."""

    def restore(self, state: Any) -> bool:
        return False

    def close(self) -> None:
        self.env.close()


def batched(config: CompleteEnvConfig, num_envs: int) -> BatchedEnv:
    """Envs of this process, on the CPU."""
    suite = suite_of(config.env_id)
    return made(suite, suite.setup(config).config, num_envs, Wishes())


def double_env(
    gpu: Accelerator, config: EnvConfig, num_envs: int, act_horizon: int, obs_horizon: int, gamma: float = 0.97
) -> ActionChunk:
    """Decisions of envs behind the GPU's tensors."""
    with gpu.paused_():
        env = batched(replace(config, sim_backend="physx_cpu_batched").completed(), num_envs)
    chunk = ActionChunk(Double(env, gpu), act_horizon, obs_horizon, gamma)
    chunk.looks = False
    return chunk
