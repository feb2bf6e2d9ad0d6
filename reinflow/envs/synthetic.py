"""`SyntheticChunk-v0`:
an env of any size and cost whose numbers mean nothing, for measuring everything but the simulator.
"""

from __future__ import annotations

import time

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reinflow.types import EnvSpec, StepResult


class SyntheticEnv:
    """A `BatchedEnv`: the state is a random walk driven by the action; each step may take a given time."""

    def __init__(
        self,
        num_envs: int,
        device: torch.device | str = "cpu",
        state_dim: int = 42,
        action_dim: int = 7,
        max_episode_steps: int = 48,
        step_seconds: float = 0.0,
    ):
        """`step_seconds` of sleep per step stand for a simulator that keeps no core of this process busy."""
        self.num_envs = num_envs
        self.device = torch.device(device)
        self.step_seconds = step_seconds
        self.generator = torch.Generator(self.device).manual_seed(0)
        self.mix = torch.randn(action_dim, state_dim, generator=self.generator, device=self.device) / action_dim
        self.state = torch.zeros(num_envs, state_dim, device=self.device)
        self.spec = EnvSpec(
            env_id="SyntheticChunk-v0",
            obs_mode="state",
            control_mode="synthetic",
            sim_backend="torch",
            reward_mode="normalized_dense",
            state_dim=state_dim,
            action_low=(-1.0,) * action_dim,
            action_high=(1.0,) * action_dim,
            max_episode_steps=max_episode_steps,
        )

    def reset(self, seed: int | None = None, env_idx: Int[Tensor, "m"] | None = None) -> dict[str, Tensor]:
        if seed is not None:
            self.generator.manual_seed(seed)
        fresh = torch.randn(self.state.shape, generator=self.generator, device=self.device)
        if env_idx is None:
            self.state = fresh
        else:
            self.state = self.state.index_copy(0, env_idx, fresh[: len(env_idx)])
        return {"state": self.state}

    def step(self, action: Float[Tensor, "n a"]) -> StepResult:
        if self.step_seconds:
            time.sleep(self.step_seconds)
        self.state = torch.addmm(0.9 * self.state, action, self.mix)
        reward = (-self.state.square().mean(1)).exp()
        return StepResult({"state": self.state}, reward, reward > 0.9, torch.zeros_like(reward, dtype=torch.bool))

    def close(self) -> None:
        pass
