"""Single envs as a batch: how stock physx_cpu, which holds one env, serves any number."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from reinflow.envs.seeding import single_seeds
from reinflow.types import BatchedEnv, Seed, StepResult


class Sequence:
    """Several one-env `BatchedEnv`s stepped in turn."""

    def __init__(self, envs: list[BatchedEnv]):
        self.envs = envs
        self.num_envs = len(envs)
        self.device = envs[0].device
        self.spec = envs[0].spec
        self._frames: list[dict[str, Tensor]] = [{} for _ in envs]

    def reset(self, seed: Seed = None, env_idx: Tensor | None = None) -> dict[str, Tensor]:
        """Env i draws its start state from its own of the `single_seeds`."""
        seeds = single_seeds(seed, self.num_envs)
        for index in range(self.num_envs) if env_idx is None else env_idx.tolist():
            self._frames[index] = self.envs[index].reset(seed=seeds[index])
        return stacked(self._frames)

    def rebuild(self, seeds: list[int] | None = None) -> None:
        """Give env i the i-th seed, or let each take the next of its own."""
        for index, env in enumerate(self.envs):
            env.rebuild(None if seeds is None else seeds[index : index + 1])

    def step(self, action: Float[Tensor, "n a"], render: bool = True) -> StepResult:
        """Step one env after another and concatenate what they return."""
        steps = [env.step(action[index : index + 1], render) for index, env in enumerate(self.envs)]
        # a partial reset returns a whole frame of everyone: pictures that were not rendered stay the last ones
        self._frames = [{**old, **step.obs} for old, step in zip(self._frames, steps, strict=True)]
        return StepResult(
            stacked([step.obs for step in steps]),
            *(torch.cat([getattr(s, n) for s in steps]) for n in ("reward", "success", "terminated")),
        )

    def picture(self) -> UInt8[Tensor, "n y x 3"]:
        """Of envs that can be filmed."""
        return torch.cat([env.picture() for env in self.envs])  # type: ignore[attr-defined]

    def state(self) -> list[Any] | None:
        """States of all envs in their order; None where one of them has none."""
        states = [env.state() for env in self.envs]
        return None if any(state is None for state in states) else states

    def restore(self, state: list[Any]) -> bool:
        """Restore one env after another, up to the first that fails."""
        return all(env.restore(own) for env, own in zip(self.envs, state, strict=True))

    def close(self) -> None:
        """Close every env."""
        for env in self.envs:
            env.close()


def stacked(frames: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Frames of single envs as one frame of them all, name by name."""
    return {name: torch.cat([frame[name] for frame in frames]) for name in frames[0]}
