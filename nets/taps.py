"""Hidden features of a forward pass that happens anyway, for losses on what a net thinks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

DEPTHS = ("early", "mid", "late")
"""blocks that have a name: the first, the one in the middle and the last"""


def blocks_at(blocks: Sequence[nn.Module], depth: str) -> list[nn.Module]:
    """The blocks of a net that `early`, `mid`, `late` or `all` names."""
    if depth == "all":
        return list(blocks)
    return [blocks[(0, len(blocks) // 2, -1)[DEPTHS.index(depth)]]]


@contextmanager
def tapped(blocks: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """What the blocks give inside the `with`, in the order of their calls.

    A pass without gradient (a teacher, a tangent) isn't recorded: no loss on it could train anything.
    """
    features: list[Tensor] = []

    def record(_block: nn.Module, _inputs: object, output: Tensor) -> None:
        if torch.is_grad_enabled():
            features.append(output)

    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(block.register_forward_hook(record))
        yield features
