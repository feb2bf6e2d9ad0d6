"""Brings a fresh env to where another one was: by living through its running episodes again.

A simulator's own state can't be saved whole: PhysX keeps contacts and friction between steps and shows them to nobody.
But a reset forgets everything, so an env is where it is because of its episode's start and the actions since. The log
holds both for the last episode lengths, which is at most two of them to repeat.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reinflow.types import BatchedEnv


@dataclass
class Section:
    """What happened since a moment of known random state."""

    random: Any
    """the env's random state at that moment"""
    fresh: bool = False
    """whether it began with an unseeded reset of all envs"""
    seed: int | None = None
    """of the reset that it began with, where it was a seeded one"""
    actions: list[Float[Tensor, "n e a"]] = field(default_factory=list)
    restarted: list[Bool[Tensor, "n"]] = field(default_factory=list)
    """envs that were reset after each chunk"""

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {"actions": list(self.actions), "restarted": list(self.restarted)}


class EpisodeLog:
    """Two sections that cover the running episode of every env."""

    def __init__(self, act_horizon: int, max_episode_steps: int):
        self.act_horizon = act_horizon
        self.span = math.ceil(max_episode_steps / act_horizon)
        """chunks of the longest episode"""
        self.sections: list[Section] = []

    def begin(self, env: BatchedEnv, seed: int | None) -> None:
        """Before a reset of all envs."""
        self.sections = [Section(env.random_state(), fresh=seed is None, seed=seed)]

    def add(self, env: BatchedEnv, actions: Float[Tensor, "n e a"], restarted: Bool[Tensor, "n"]) -> None:
        """After a chunk, before the reset of the envs in `restarted`."""
        section = self.sections[-1]
        section.actions.append(actions)
        section.restarted.append(restarted)

    def turn(self, env: BatchedEnv) -> None:
        """After those resets: start a new section, and forget the oldest, once the last one is long enough."""
        if len(self.sections[-1].actions) >= self.span:
            self.sections = [self.sections[-1], Section(env.random_state())]

    def state(self) -> list[dict[str, Any]] | None:
        """As data; None where the env has no random state to give."""
        if not self.sections or any(section.random is None for section in self.sections):
            return None
        return [section.to_dict() for section in self.sections]

    def replay(self, env: BatchedEnv, state: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Live through a `state` of an equal env, and log it; returns the newest frame of every env.

        Pictures are not rendered again; a frame may lack them.
        """
        self.sections = [Section(**section) for section in state]
        first = self.sections[0]
        env.set_random_state(first.random)
        frame = env.reset(seed=first.seed) if first.fresh or first.seed is not None else {}
        for section in self.sections:
            for actions, restarted in zip(section.actions, section.restarted, strict=True):
                frame = repeat(env, actions, restarted)
        return frame


def repeat(env: BatchedEnv, actions: Float[Tensor, "n e a"], restarted: Bool[Tensor, "n"]) -> dict[str, Tensor]:
    """One chunk and the resets after it; the newest frames."""
    for action in actions.unbind(1):
        frame = env.step(action, render=False).obs
    chosen = restarted.nonzero().squeeze(1)
    if len(chosen) == 0:
        return frame
    after = env.reset(env_idx=chosen)
    return {
        name: torch.where(restarted.view(-1, *(1,) * (value.dim() - 1)), after[name], value)
        for name, value in frame.items()
    }
