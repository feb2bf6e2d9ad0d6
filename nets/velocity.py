"""What every velocity backbone shares: times and condition enter as two shares of features, so each is computed once.

A chain of K steps has K pairs of times and one condition per observation, and `grid` evaluates all its b*K rows with
no more of either.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class VelocityNet(nn.Module):
    """Average velocity of an action chunk over [timestep, timestep + step_size]."""

    def forward(
        self,
        sample: Float[Tensor, "b h a"],
        timestep: Float[Tensor, "b_or_1"],
        step_size: Float[Tensor, "b_or_1"],
        global_cond: Float[Tensor, "b z"],
    ) -> Float[Tensor, "b h a"]:
        """One row each, or one time for all rows. ValueError for a chunk length or width that the net can't take."""
        return self.velocity(sample, self.joined(self.times(timestep, step_size), self.condition(global_cond)))

    def grid(
        self,
        sample: Float[Tensor, "b k h a"],
        timestep: Float[Tensor, "k"],
        step_size: Float[Tensor, "k"],
        global_cond: Float[Tensor, "b z"],
    ) -> Float[Tensor, "b k h a"]:
        """Every chain state at its own time: `forward` of b*k rows."""
        features = self.features(timestep, step_size, global_cond)
        return self.velocity(sample.flatten(0, 1), features.flatten(0, 1)).unflatten(0, sample.shape[:2])

    def features(
        self, timestep: Float[Tensor, "k"], step_size: Float[Tensor, "k"], global_cond: Float[Tensor, "b z"]
    ) -> Float[Tensor, "b k f"]:
        """What `velocity` needs at each of k times, before any state of the chain is known."""
        return self.joined(self.times(timestep, step_size), self.condition(global_cond).unsqueeze(1))

    def joined(self, times: Float[Tensor, "... f"], condition: Float[Tensor, "... f"]) -> Float[Tensor, "... f"]:
        """Both shares in one; their leading dims may need broadcasting."""
        return times + condition

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The hidden layers in the order of their use; each gives (b ...), the state of the net after it."""

    @abstractmethod
    def times(self, timestep: Float[Tensor, "b"], step_size: Float[Tensor, "b"]) -> Float[Tensor, "b f"]:
        """The times' share of the features."""

    @abstractmethod
    def condition(self, global_cond: Float[Tensor, "b z"]) -> Float[Tensor, "b f"]:
        """The condition's share of the features."""

    @abstractmethod
    def velocity(self, sample: Float[Tensor, "b h a"], features: Float[Tensor, "b f"]) -> Float[Tensor, "b h a"]:
        """The velocity, given both."""


def side_by_side(times: Float[Tensor, "... f"], condition: Float[Tensor, "... g"]) -> Float[Tensor, "... f+g"]:
    """Both shares one after the other, where they are no terms of a sum."""
    rows = torch.broadcast_shapes(times.shape[:-1], condition.shape[:-1])
    return torch.cat((times.expand(*rows, -1), condition.expand(*rows, -1)), dim=-1)


def check_chunk(sample: Float[Tensor, "b h a"], chunk_shape: tuple[int, int]) -> None:
    """ValueError unless each row of `sample` is (horizon, action dim) as the net was made for."""
    if sample.shape[1:] != chunk_shape:
        raise ValueError(f"the net was made for chunks of shape {chunk_shape}, got {tuple(sample.shape[1:])}")
