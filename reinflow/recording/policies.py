"""Episodes of a trained policy as demonstrations: whole ones, as an evaluation plays them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from reinflow.data.trajectories import Trajectory
from reinflow.types import BatchedEnv, Seed, StepResult


class Notebook:
    """A `BatchedEnv` that notes every step of the first episode of each env since the last reset of all."""

    def __init__(self, env: BatchedEnv):
        self.env = env
        self.num_envs, self.device, self.spec = env.num_envs, env.device, env.spec
        self._start = torch.empty(0)
        self._steps: list[tuple[Tensor, StepResult]] = []

    def reset(self, seed: Seed = None, env_idx: Int[Tensor, "m"] | None = None) -> dict[str, Tensor]:
        """A reset of all envs starts a new page; of some envs it goes unnoted."""
        obs = self.env.reset(seed=seed, env_idx=env_idx)
        if env_idx is None:
            self._start, self._steps = obs["state"].cpu().clone(), []
        return obs

    def rebuild(self, seeds: list[int] | None = None) -> None:
        """Pass the seeds on; the reset that has to follow starts a new page."""
        self.env.rebuild(seeds)

    def step(self, action: Tensor, render: bool = True) -> StepResult:
        """Step the env and note it."""
        result = self.env.step(action, render)
        kept = StepResult(
            {"state": result.obs["state"].cpu().clone()},
            result.reward.cpu().clone(),
            result.success.cpu().clone(),
            result.terminated.cpu().clone(),
            None if result.truncated is None else result.truncated.cpu().clone(),
        )
        self._steps.append((action.cpu().clone(), kept))
        return result

    def state(self) -> None:
        """Notes are not resumed."""

    def restore(self, state: None) -> bool:
        """Always refused, since no state has notes."""
        return False

    def close(self) -> None:
        """Close the env below."""
        self.env.close()

    def episodes(self, first_seed: int) -> Iterator[Trajectory]:
        """The first episode of every env, until it ended or its time was up; seeds count up from the first."""
        actions = torch.stack([action for action, _ in self._steps])
        results = [result for _, result in self._steps]
        states = torch.stack([self._start, *(result.obs["state"] for result in results)])
        table = {
            name: torch.stack([getattr(one, name) for one in results]) for name in ("success", "terminated", "reward")
        }
        over = torch.stack([one.ended for one in results])
        for env in range(self.num_envs):
            terminated, ended = table["terminated"][:, env], over[:, env]
            limit = min(self.spec.max_episode_steps, len(actions))
            end = min(int(ended.int().argmax()) + 1, limit) if ended[:limit].any() else limit
            truncated = torch.zeros(end, dtype=torch.bool)
            truncated[-1] = not terminated[end - 1]
            yield Trajectory(
                obs=states[: end + 1, env],
                actions=actions[:end, env],
                success=table["success"][:end, env],
                terminated=terminated[:end],
                truncated=truncated,
                rewards=table["reward"][:end, env].float(),
                name=f"episode {first_seed + env}",
                seed=first_seed + env,
            )
