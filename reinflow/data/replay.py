"""A ring of transitions on the learner's device, for off-policy learners."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reinflow.data.chunks import TransitionBatch
from reinflow.errors import UserError
from reinflow.runtime.trees import mapped
from reinflow.types import ChunkStep, Obs


class ReplayBuffer:
    """The newest `capacity` decisions with their outcomes; a new one takes the place of the oldest.

    `sample` gives what `ChunkDataset.sample_transitions` gives, so that a learner can't tell them apart, but for
    chunks that hold the executed actions alone.
    """

    def __init__(self, capacity: int, gamma: float, device: torch.device | str = "cpu"):
        """`gamma` is the discount per env step. UserError for a capacity below 1."""
        if capacity < 1:
            raise UserError(f"a replay buffer needs room for at least one decision, not {capacity}")
        self.capacity = capacity
        self.gamma = gamma
        self.device = torch.device(device)
        self.data: dict[str, Any] = {}
        self.count = 0
        """decisions that were ever added"""

    def __len__(self) -> int:
        return min(self.count, self.capacity)

    @torch.no_grad()
    def add(self, obs: Obs, actions: Float[Tensor, "n e a"], step: ChunkStep) -> None:
        """Store what each env did at `obs` and what came of it; decisions without outcome are left out."""
        rows = {
            "obs": obs, "chunk": actions, "reward": step.reward, "discount": self.gamma**step.executed,
            "next_obs": step.final_obs, "terminated": step.terminated, "truncated": step.truncated,
        }  # fmt: skip
        kept = usable(step.broken)[-self.capacity :]
        if not self.data:
            self.data = mapped(rows, self._room)
        places = (self.count + torch.arange(len(kept), device=self.device)) % self.capacity
        write_(self.data, rows, places, kept)
        self.count += len(kept)

    def sample(self, batch: int, generator: torch.Generator | None = None) -> TransitionBatch:
        """Rows drawn with replacement, each as likely as any other."""
        index = torch.randint(len(self), (batch,), generator=generator, device=self.device)
        return TransitionBatch(**mapped(self.data, lambda column: column[index]))

    def state_dict(self) -> dict[str, Any]:
        """The ring as it lies; its tensors are live."""
        return {"data": self.data, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the ring of a buffer of equal capacity; ValueError for another one."""
        found = {len(column) for column in leaves(state["data"])}
        if found - {self.capacity}:
            raise ValueError(f"the replay buffer held {max(found)} decisions, this one holds {self.capacity}")
        self.data = mapped(state["data"], lambda column: column.to(self.device, copy=True))
        self.count = state["count"]

    def _room(self, row: Tensor) -> Tensor:
        return torch.zeros(self.capacity, *row.shape[1:], dtype=row.dtype, device=self.device)


def usable(broken: Bool[Tensor, "n"]) -> Tensor:
    """Places of the decisions that have an outcome."""
    return (~broken).nonzero().flatten()


def write_(held: dict[str, Any], rows: dict[str, Any], places: Tensor, kept: Tensor) -> None:
    """Put the `kept` ones of `rows` at `places`."""
    for name, column in held.items():
        if isinstance(column, dict):
            write_(column, rows[name], places, kept)
        else:
            column[places] = rows[name][kept].to(column.device, column.dtype)


def leaves(tree: dict[str, Any]) -> list[Tensor]:
    """Every tensor below."""
    found: list[Tensor] = []
    mapped(tree, found.append)
    return found
