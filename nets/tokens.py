"""A condition vector as tokens: policies store and pass flat vectors, nets that attend cut them up again.

So neither encoders nor buffers know of tokens; a net is told the layout of the vector that it gets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn


@dataclass(frozen=True)
class Part:
    """Numbers of one kind in a frame, for example the state or what an encoder made of the pictures."""

    tokens: int
    """tokens that they are read as"""
    width: int
    """numbers in each"""


@dataclass(frozen=True)
class CondLayout:
    """What the numbers of a condition are: frames, oldest first, each made of the same parts."""

    frames: int
    """observations in the history that hold all parts"""
    parts: tuple[Part, ...]
    """what each of them holds, in its order"""
    older: int = 0
    """observations before them, which hold the first part alone"""

    @property
    def cond_dim(self) -> int:
        """Numbers in the condition."""
        return self.older * self.size(0) + self.frames * sum(map(self.size, range(len(self.parts))))

    @property
    def tokens(self) -> int:
        """Tokens in the condition."""
        return self.older * self.parts[0].tokens + self.frames * sum(part.tokens for part in self.parts)

    def size(self, index: int) -> int:
        """Numbers of a part in one frame."""
        return self.parts[index].tokens * self.parts[index].width


class ConditionTokens(nn.Module):
    """(b z) -> (b m f), frame by frame: a layer for every kind of part, and a learned place for every token."""

    def __init__(self, layout: CondLayout, width: int):
        super().__init__()
        self.layout = layout
        self.embed = nn.ModuleList(nn.Linear(part.width, width) for part in layout.parts)
        self.place = nn.Parameter(places(layout.tokens, width))

    def forward(self, cond: Float[Tensor, "b z"]) -> Float[Tensor, "b m f"]:
        """ValueError for a condition that doesn't have the layout's length."""
        layout = self.layout
        if cond.shape[-1] != layout.cond_dim:
            raise ValueError(f"the net was made for conditions of {layout.cond_dim} numbers, got {cond.shape[-1]}")
        sizes = [layout.size(index) for index in range(len(layout.parts))]
        before = layout.older * sizes[0]
        frames = cond[:, before:].unflatten(-1, (layout.frames, -1)).split(sizes, dim=-1)
        tokens = [
            embed(numbers.unflatten(-1, (part.tokens, part.width)))
            for part, embed, numbers in zip(layout.parts, self.embed, frames, strict=True)
        ]
        complete = torch.cat(tokens, dim=-2).flatten(1, 2)
        if layout.older:
            first = layout.parts[0]
            alone = self.embed[0](cond[:, :before].unflatten(-1, (layout.older * first.tokens, first.width)))
            complete = torch.cat((alone, complete), dim=1)
        return complete + self.place


def places(tokens: int, width: int) -> Float[Tensor, "t f"]:
    """New learned positions, small beside what stands there."""
    return 0.02 * torch.randn(tokens, width)
