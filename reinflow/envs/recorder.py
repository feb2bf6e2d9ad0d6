"""Films what a batch of envs does, from the camera that ManiSkill points at the task for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from reinflow.types import BatchedEnv, Seed, StepResult


@dataclass(frozen=True)
class Film:
    """One episode of every env."""

    frames: UInt8[Tensor, "t n y x 3"]
    success: Bool[Tensor, "t n"]
    """whether the task was solved in that very frame"""


class Filmable(BatchedEnv, Protocol):
    """An env with a camera for people."""

    def picture(self) -> UInt8[Tensor, "n y x 3"]:
        """What that camera sees of every env now."""
        ...


class Recorder:
    """A `BatchedEnv` that keeps a picture of every step; where an episode ended its last one stands still."""

    def __init__(self, env: Filmable):
        self.env = env
        self.num_envs, self.device, self.spec = env.num_envs, env.device, env.spec
        self._frames: list[Tensor] = []
        self._success: list[Tensor] = []
        self._over = torch.zeros(self.num_envs, dtype=torch.bool)
        self._steps = torch.zeros(self.num_envs, dtype=torch.long)

    def reset(self, seed: Seed = None, env_idx: Int[Tensor, "m"] | None = None) -> dict[str, Tensor]:
        """A reset of all envs starts a new film; one of some envs is not shown."""
        obs = self.env.reset(seed=seed, env_idx=env_idx)
        if env_idx is None:
            self._frames, self._success = [self._picture()], [torch.zeros_like(self._over)]
            self._over, self._steps = torch.zeros_like(self._over), torch.zeros_like(self._steps)
        return obs

    def rebuild(self, seeds: list[int] | None = None) -> None:
        """Pass the seeds on; the reset that has to follow starts a new film."""
        self.env.rebuild(seeds)

    def step(self, action: Tensor, render: bool = True) -> StepResult:
        """Step the env, and add a picture and the success of each episode that still runs."""
        result = self.env.step(action, render)
        still = self._over
        before = self._frames[-1], self._success[-1]
        self._frames.append(torch.where(still.view(-1, 1, 1, 1), before[0], self._picture()))
        self._success.append(torch.where(still, before[1], result.success.cpu()))
        self._steps += 1
        self._over = still | result.terminated.cpu() | (self._steps >= self.spec.max_episode_steps)
        return result

    def state(self) -> None:
        """A film is not resumed."""

    def restore(self, state: None) -> bool:
        """Always refused, since no state has a film."""
        return False

    def close(self) -> None:
        """Close the env that is filmed."""
        self.env.close()

    def film(self) -> Film:
        """What happened since the last reset of all envs."""
        return Film(torch.stack(self._frames), torch.stack(self._success))

    def _picture(self) -> UInt8[Tensor, "n y x 3"]:
        return self.env.picture().cpu().clone()
