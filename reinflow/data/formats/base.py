"""What a data format is: a small file that recognises its recordings by what is in them, and reads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

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


class DataFormat(Protocol):
    """Reads recordings; UserError names file, episode, key and fix."""

    def recognises(self, path: Path) -> bool:
        """By its content; False for what can't be read."""
        ...

    def describe(self, path: Path) -> Recording:
        """Before anything large is read."""
        ...

    def read(self, path: Path, num_demos: int | None, pictures: bool) -> list[Trajectory]:
        """The first `num_demos` episodes, or all; `terminated` as recorded (`Trajectory.under_rules`).

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


def refuse_too_few(path: Path, found: int, num_demos: int | None) -> None:
    """UserError where a recording holds fewer episodes than are asked for."""
    if num_demos is not None and num_demos > found:
        raise UserError(f"{path} holds {found} trajectories, not the {num_demos} of --num_demos: collect more")
