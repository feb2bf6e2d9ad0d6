"""Envs on one device, their learner on another."""

from __future__ import annotations

from typing import Any

import torch

from reinflow.types import ChunkEnv, ChunkStep, Obs, Seed


class OnDevice:
    """A `ChunkEnv` whose tensors a learner on another device sees as its own."""

    def __init__(self, env: ChunkEnv, device: torch.device):
        self.env = env
        self.device = device
        self.num_envs = env.num_envs
        self.spec = env.spec
        self.obs_horizon = env.obs_horizon

    def reset(self, seed: Seed = None) -> Obs:
        """As the env's, moved to the learner's device."""
        return moved(self.env.reset(seed=seed), self.device)

    def rebuild(self, seeds: list[int]) -> None:
        """As the env's."""
        self.env.rebuild(seeds)

    def step_chunk(self, actions: torch.Tensor) -> ChunkStep:
        """As the env's, with the tensors of both on their own side."""
        return moved(self.env.step_chunk(actions.to(self.env.device)), self.device)

    def state(self) -> Any:
        """As the env's."""
        return self.env.state()

    def restore(self, state: Any) -> Obs | None:
        """As the env's, moved to the learner's device."""
        obs = self.env.restore(state)
        return None if obs is None else moved(obs, self.device)

    def close(self) -> None:
        """Close the env."""
        self.env.close()


def same(one: torch.device, other: torch.device) -> bool:
    """Whether tensors of both can meet; a GPU without an index is the current one."""
    if one.type != "cuda" or other.type != "cuda":
        return one.type == other.type
    current = torch.cuda.current_device()
    return (current if one.index is None else one.index) == (current if other.index is None else other.index)


def moved(value: Any, device: torch.device) -> Any:
    """A tensor, or a dict or dataclass of tensors, on `device`; what the host knows stays there."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, bool):
        return value
    if isinstance(value, dict):
        return {name: moved(inner, device) for name, inner in value.items()}
    return type(value)(**{name: moved(inner, device) for name, inner in vars(value).items()})
