"""A suite of one task that is ranked by its return and ends with a fall: staying on a ridge."""

from __future__ import annotations

import torch
from torch import Tensor

from reinflow.envs.config import CompleteEnvConfig
from reinflow.envs.seeding import drawn
from reinflow.envs.suite import EnvSuite, Task, Wishes
from reinflow.registry import Entry
from reinflow.types import EnvSpec, Seed, StepResult

LIMIT, EDGE = 20, 1.0
"""env steps, and the distance from the ridge at which it is over"""
PUSH, SLIP = 0.2, 1.05
"""what a full action moves, and how much further a place slides in a step"""


class RidgeEnv:
    """A `BatchedEnv`: the state is the distance from the ridge, left or right, and an action pushes."""

    def __init__(self, num_envs: int, limit: int = LIMIT):
        self.num_envs = num_envs
        self.device = torch.device("cpu")
        self.generator = torch.Generator().manual_seed(0)
        self.place = torch.zeros(num_envs, 1)
        self.spec = EnvSpec(
            env_id="Ridge-v0",
            obs_mode="state",
            control_mode="push",
            sim_backend="torch",
            reward_mode="native",
            state_dim=1,
            action_low=(-2.0,),
            action_high=(2.0,),
            max_episode_steps=limit,
            still=(0.0,),
        )

    def reset(self, seed: Seed = None, env_idx: Tensor | None = None) -> dict[str, Tensor]:
        rows = self.num_envs if env_idx is None else len(env_idx)
        fresh = 0.2 * drawn(torch.rand, (rows, 1), self.generator, seed) - 0.1
        self.place = fresh if env_idx is None else self.place.index_copy(0, env_idx, fresh)
        return {"state": self.place}

    def rebuild(self, seeds: list[int] | None = None) -> None:
        pass

    def step(self, action: Tensor, render: bool = True) -> StepResult:
        self.place = SLIP * self.place + PUSH * action / 2
        distance = self.place.abs().squeeze(1)
        never = torch.zeros(self.num_envs, dtype=torch.bool)
        return StepResult({"state": self.place}, 2 * (EDGE - distance), never, distance > EDGE)

    def state(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state(), "place": self.place}

    def restore(self, state: dict[str, Tensor]) -> bool:
        self.generator.set_state(state["generator"].cpu())
        self.place = state["place"].cpu()
        return True

    def close(self) -> None:
        pass


class RidgeSuite(EnvSuite):
    """That task alone."""

    def owns(self, env_id: str) -> bool:
        return env_id == "Ridge-v0"

    def task(self, env_id: str) -> Task:
        return Task("push", limit=LIMIT, headline="return", terminates_on="failure", reward_modes=("native",))

    def make(self, config: CompleteEnvConfig, num_envs: int, wishes: Wishes) -> RidgeEnv:
        return RidgeEnv(num_envs, config.max_episode_steps or LIMIT)


ENTRY = Entry(RidgeSuite)
