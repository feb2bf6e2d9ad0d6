"""Acting in envs: one rollout of an on-policy learner, and what happened to its episodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from reinflow.runtime import distributed, interrupts
from reinflow.training.learner import Metrics, OnPolicyLearner
from reinflow.types import ChunkEnv, ChunkStep, Obs


@dataclass
class RolloutStats:
    """What happened to the episodes that ended while decisions were made; tensors until they are logged."""

    env_steps: Tensor | int = 0
    decisions: int = 0
    episodes: Tensor | int = 0
    broken: Tensor | int = 0
    """decisions that are left out because an observation, reward, action or value was not usable"""
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, step: ChunkStep) -> None:
        """Count the outcome of one decision of every env."""
        self.env_steps = self.env_steps + step.executed.sum()
        self.decisions += len(step.executed)
        ended = step.ended
        self.episodes = self.episodes + ended.sum()
        for name, value in vars(step.episode).items():
            total = (value.float() * ended).sum()
            self.sums[name] = self.sums.get(name, 0) + total

    def of_all_processes(self) -> RolloutStats:
        """The sums over all of them."""
        if not distributed.active():
            return self
        own = [self.env_steps, self.decisions, self.episodes, self.broken, *self.sums.values()]
        numbers = torch.stack([torch.as_tensor(value).double().cpu() for value in own])
        steps, decisions, episodes, broken, *sums = distributed.total(numbers)
        return RolloutStats(steps, int(decisions), episodes, broken, dict(zip(self.sums, sums, strict=True)))

    def metrics(self) -> Metrics:
        """Means over the ended episodes; success while exploring, not the evaluated success."""
        if int(self.episodes) == 0:
            return {"rollout/broken": self.broken}
        means = {f"rollout/{name.rstrip('_')}": total / self.episodes for name, total in self.sums.items()}
        return means | {"rollout/broken": self.broken}

    def state_dict(self) -> dict[str, Any]:
        """As data."""
        return vars(self) | {"sums": dict(self.sums)}


@torch.no_grad()
def collect(learner: OnPolicyLearner, env: ChunkEnv, obs: Obs, generator: torch.Generator) -> tuple[Obs, RolloutStats]:
    """Fill the learner's rollout, continuing from `obs`; gives what it would see next, and statistics."""
    stats = RolloutStats()
    while not learner.full:
        interrupts.check()
        decision = learner.act(obs, generator)
        step = env.step_chunk(decision.actions)
        learner.store(decision, step)
        stats.add(step)
        obs = step.obs
    stats.broken = learner.finish(obs)
    return obs, stats
