"""A ring of transitions on the learner's device, for off-policy learners, and demonstrations mixed with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
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
    chunks that hold the executed actions alone where no others were stored. Pictures stay as they came, uint8.
    """

    def __init__(self, capacity: int, gamma: float, device: torch.device | str = "cpu", max_gb: float = math.inf):
        """`gamma` is the discount per env step. UserError for a capacity below 1.

        The first decision shows how many fit into `max_gb`, and `capacity` becomes that where it was more.
        """
        if capacity < 1:
            raise UserError(f"a replay buffer needs room for at least one decision, not {capacity}")
        self.capacity = capacity
        self.gamma = gamma
        self.device = torch.device(device)
        self.max_gb = max_gb
        self.data: dict[str, Any] = {}
        self.count = 0
        """decisions that were ever added"""

    def __len__(self) -> int:
        return min(self.count, self.capacity)

    @torch.no_grad()
    def add(self, obs: Obs, chunk: Float[Tensor, "n h a"], step: ChunkStep) -> None:
        """Store what each env did at `obs` and what came of it; decisions without outcome are left out.

        `chunk` is in env units: the executed actions, or the whole prediction that they were taken from.
        """
        rows = {
            "obs": obs, "chunk": chunk, "reward": step.reward, "discount": self.gamma**step.executed,
            "next_obs": step.final_obs, "terminated": step.terminated, "truncated": step.truncated,
        }  # fmt: skip
        if not self.data:
            self._make_room(rows)
        self._put(self.count, rows, usable(step.broken)[-self.capacity :])

    def sample(self, batch: int, generator: torch.Generator | None = None) -> TransitionBatch:
        """Rows drawn with replacement, each as likely as any other."""
        index = torch.randint(len(self), (batch,), generator=generator, device=self.device)
        return TransitionBatch(**mapped(self.data, lambda column: column[index]))

    def rows(self, start: int, stop: int) -> dict[str, Any]:
        """The decisions from number `start` to before `stop`, counted from the first that was ever added."""
        places = torch.arange(start, stop, device=self.device) % self.capacity
        return mapped(self.data, lambda column: column[places])

    def refill(self, count: int, parts: list[tuple[int, dict[str, Any]]]) -> None:
        """Hold these rows, each part with the number of its first decision, as after `count` of them were added."""
        for first, rows in parts:
            if rows and not self.data:
                self._make_room(rows)
            if rows:
                too_old = max(count - self.capacity - first, 0)
                self._put(first + too_old, rows, torch.arange(too_old, len(rows["reward"])))
        self.count = count

    def _put(self, number: int, rows: dict[str, Any], kept: Tensor) -> None:
        places = (number + torch.arange(len(kept), device=self.device)) % self.capacity
        write_(self.data, rows, places, kept)
        self.count = number + len(kept)

    def _make_room(self, rows: dict[str, Any]) -> None:
        size = sum(column[:1].nbytes for column in leaves(rows))
        if self.capacity * size > self.max_gb * 1e9:
            self.capacity = max(int(self.max_gb * 1e9 / size), 1)
        self.data = mapped(rows, self._room)

    def _room(self, row: Tensor) -> Tensor:
        return torch.zeros(self.capacity, *row.shape[1:], dtype=row.dtype, device=self.device)


class Mixture:
    """Batches of own decisions and, for a fixed share, demonstrations (symmetric sampling, RLPD, arXiv:2302.02948)."""

    def __init__(
        self,
        replay: ReplayBuffer,
        demos: Callable[[int, torch.Generator], TransitionBatch] | None,
        share: float,
        executed: slice,
    ):
        """`executed` is the slice of a demonstrated chunk that remains where the own ones are executed actions."""
        self.replay = replay
        self.demos = demos
        self.share = share
        self.executed = executed

    def sample(self, batch: int, generator: torch.Generator) -> TransitionBatch:
        """`share` of the batch, rounded, are demonstrations, which come last."""
        demonstrated = round(batch * self.share)
        if self.demos is None or not demonstrated:
            return marked(self.replay.sample(batch, generator), demonstrated=False)
        theirs = marked(self.demos(demonstrated, generator), demonstrated=True)
        if demonstrated == batch:
            return theirs
        own = marked(self.replay.sample(batch - demonstrated, generator), demonstrated=False)
        if own.chunk.shape != theirs.chunk.shape:
            theirs = replace(theirs, chunk=theirs.chunk[:, self.executed])
        return joined(own, theirs)


def joined(first: TransitionBatch, second: TransitionBatch) -> TransitionBatch:
    """The rows of both; a column that one of them lacks is None."""
    columns: dict[str, Any] = {}
    for field in fields(TransitionBatch):
        mine, theirs = getattr(first, field.name), getattr(second, field.name)
        if mine is None or theirs is None:
            columns[field.name] = None
        elif isinstance(mine, dict):
            columns[field.name] = {name: torch.cat((mine[name], theirs[name])) for name in mine}
        else:
            columns[field.name] = torch.cat((mine, theirs))
    return TransitionBatch(**columns)


def marked(batch: TransitionBatch, demonstrated: bool) -> TransitionBatch:
    """With the mark of where its rows come from."""
    return replace(batch, demonstrated=torch.full_like(batch.terminated, demonstrated))


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
