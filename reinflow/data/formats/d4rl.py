"""D4RL's HDF5 files: all steps in a line, `observations`, `actions`, `rewards`, `terminals` and mostly `timeouts`.

Differs from D4RL: without `timeouts` an episode also ends where the next observation isn't the following one, or, where
next observations are missing too, after its time limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jaxtyping import Bool
from torch import Tensor

from reinflow.data.formats.base import Recording, assembled, refuse_pictures
from reinflow.data.hdf5 import numbers, opened, top_level
from reinflow.data.trajectories import Trajectory
from reinflow.errors import UserError

LIMIT = 1000
"""env steps of an episode in D4RL's locomotion tasks"""
COLUMNS = ("observations", "actions", "rewards", "terminals")


class D4RLFormat:
    """What D4RL's datasets and their converters hold; the task's name and successes are not among it."""

    def recognises(self, path: Path) -> bool:
        """Whether its four columns lie at the root."""
        return set(COLUMNS) <= set(top_level(path))

    def describe(self, path: Path) -> Recording:
        """States, of a task that the file doesn't name."""
        return Recording(obs_mode="state", marks_success=False)

    def read(self, path: Path, pictures: bool) -> Iterator[Trajectory]:
        """Episodes in their order; an unfinished one at the end counts as truncated."""
        if pictures:
            refuse_pictures(path, "D4RL")
        with opened(path) as file:
            states, actions, rewards, terminals = (numbers(file, name, str(path)) for name in COLUMNS)
            following = numbers(file, "next_observations", str(path)) if "next_observations" in file else None
            timeouts = numbers(file, "timeouts", str(path)).bool() if "timeouts" in file else None
        columns = [states, actions, rewards, terminals, *(c for c in (following, timeouts) if c is not None)]
        if len({len(column) for column in columns}) > 1 or states.dim() != 2:
            raise UserError(f"{path} has columns of {sorted({len(c) for c in columns})} steps: copy it again")
        terminals, first = terminals.bool(), 0
        for number, end in enumerate(ends(states, terminals, timeouts, following)):
            rows = slice(first, end)
            yield assembled(
                f"episode {number}",
                states[rows],
                actions[rows],
                rewards[rows],
                terminals[rows],
                successor=None if following is None else following[end - 1],
            )
            first = end


def ends(
    states: Tensor, terminals: Bool[Tensor, "t"], timeouts: Bool[Tensor, "t"] | None, following: Tensor | None
) -> list[int]:
    """One past the last step of every episode."""
    if not len(states):
        return []
    last = terminals.clone()
    if timeouts is not None:
        last |= timeouts
    elif following is not None:
        last[:-1] |= (following[:-1] != states[1:]).any(dim=1)
    last[-1] = True
    found: list[int] = []
    first = 0
    for end in (last.nonzero().flatten() + 1).tolist():
        if timeouts is None and following is None:
            found += range(first + LIMIT, end, LIMIT)
        found.append(end)
        first = end
    return found
