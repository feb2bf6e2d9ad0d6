"""Attention whose forward-mode derivatives exist, and the layers that transformers here share.

MeanFlow takes jvp through its net, which torch's fused kernels don't have; with tens of tokens two products and a
softmax are as fast.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn


def attend(
    q: Float[Tensor, "*b q f"], k: Float[Tensor, "*b m f"], v: Float[Tensor, "*b m f"]
) -> Float[Tensor, "*b q f"]:
    """softmax(q k' / sqrt(f)) v"""
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1) @ v


Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""like `attend`; torch's `scaled_dot_product_attention` where nobody needs a jvp"""


def heads_apart(x: Float[Tensor, "b t g*f"], heads: int) -> Float[Tensor, "b g t f"]:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def heads_together(x: Float[Tensor, "b g t f"]) -> Float[Tensor, "b t g*f"]:
    return x.transpose(1, 2).flatten(2)


def check_heads(width: int, heads: int) -> None:
    """ValueError unless `heads` divides `width`."""
    if heads < 1 or width % heads:
        raise ValueError(f"a width of {width} can't be split over {heads} heads: make it a multiple")


class SelfAttention(nn.Module):
    """Every token attends to all of them: (b t f) -> (b t f)."""

    def __init__(self, width: int, heads: int, attention: Attention = attend):
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.attention = attention
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b t f"]) -> Float[Tensor, "b t f"]:
        q, k, v = (heads_apart(part, self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        return self.out(heads_together(self.attention(q, k, v)))


class CrossAttention(nn.Module):
    """Tokens attend to a memory whose keys and values are already known: (b t f), (b m 2*f) -> (b t f).

    They depend on neither the tokens nor the step of a chain, so who knows the memory makes them once for all steps.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b t f"], memory: Float[Tensor, "b m two_f"]) -> Float[Tensor, "b t f"]:
        k, v = (heads_apart(part, self.heads) for part in memory.chunk(2, dim=-1))
        return self.out(heads_together(attend(heads_apart(self.query(x), self.heads), k, v)))


class FeedForward(nn.Sequential):
    """Two layers, the hidden one four times as wide: (... f) -> (... f)."""

    def __init__(self, width: int):
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
