"""What a data format is: a small file that recognises its recordings by what is in them, and reads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reinflow.data.trajectories import Trajectory
from reinflow.errors import UserError
from reinflow.registry import Registry


@dataclass(frozen=True)
class Recording:
    """What a recording says of itself; None where it doesn't."""

    env_id: str | None = None
    obs_mode: str | None = None
    """in the project's spelling"""
    control_mode: str | None = None
    reward_mode: str | None = None
    max_episode_steps: int | None = None
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """what its envs were made with beside these, where that says something of the task"""
    sim_backend: str | None = None
    """simulator, in the project's spelling"""
    robot: str | None = None
    replayable: bool = False
    """whether collect_demos.py --replay can give it other observations or actions"""
    marks_success: bool = True
    """whether successes are recorded; where not, no step succeeds"""
    notes: tuple[str, ...] = ()
    """sentences for whoever trains on it"""


class DataFormat(Protocol):
    """Reads recordings; UserError names file, episode, key and fix."""

    def recognises(self, path: Path) -> bool:
        """By its content; False for what can't be read."""
        ...

    def describe(self, path: Path) -> Recording:
        """Before anything large is read."""
        ...

    def read(self, path: Path, pictures: bool) -> Iterator[Trajectory]:
        """Episode after episode, in their order; `terminated` as recorded (`Trajectory.under_rules`).

        Lengths and numbers are checked afterwards (`Trajectory.check`).
        """
        ...


FORMATS: Registry[DataFormat] = Registry("data format", flag="demo_path")


def format_of(path: Path) -> DataFormat:
    """The format of a recording; UserError where it is in none."""
    for entry in FORMATS.values():
        found = entry.build()
        if found.recognises(path):
            return found
    raise UserError(
        f"{path} holds no trajectory that can be read: it is cut short, damaged, or in another format than "
        f"{', '.join(FORMATS)}; copy it again or collect it again"
    )


def refuse_pictures(path: Path, name: str) -> None:
    """UserError of a format whose pictures aren't read."""
    raise UserError(f"{path}: pictures of {name} recordings are not read, only states: pass --obs_mode state")


def assembled(
    name: str,
    states: Float[Tensor, "t s"],
    actions: Float[Tensor, "t a"],
    rewards: Float[Tensor, "t"] | None,
    terminated: Bool[Tensor, "t"],
    *,
    successor: Float[Tensor, "s"] | None = None,
    success: Bool[Tensor, "t"] | None = None,
) -> Trajectory:
    """An episode of a format with one observation per action, and perhaps the `successor` of the last one.

    Where that is missing, a terminated episode repeats its last observation, which is never looked at, and any other
    gives its last step up.
    """
    steps = len(actions)
    success = torch.zeros(steps, dtype=torch.bool) if success is None else success
    if successor is None and not terminated[-1:].any():
        steps = max(steps - 1, 0)
        obs = states
    else:
        obs = torch.cat((states, states[-1:] if successor is None else successor[None]))
    truncated = torch.zeros(steps, dtype=torch.bool)
    if steps:
        truncated[-1] = not terminated[steps - 1]
    rows = slice(steps)
    kept = None if rewards is None else rewards[rows]
    return Trajectory(obs, actions[rows], success[rows], terminated[rows], truncated, kept, name=name)
