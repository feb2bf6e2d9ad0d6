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


def heads_together(x: Float[Tensor, "b g t f"]) -> Float[Tensor, "b t g*f"]:
    """All heads' results of a token side by side, as the layer after attention takes them."""
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
        """What each token reads from all of them, itself included; whoever calls it adds the skip."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(heads_together(self.attention(q, k, v)))


class Memory(nn.Linear):
    """Keys and values that the cross-attentions of all blocks make of tokens: (b m f) -> (b m*depth*2*f), flat.

    They depend on neither the chunk nor the step of a chain, so they are features, made once for all steps.
    """

    def __init__(self, width: int, heads: int, depth: int):
        check_heads(width, heads)
        super().__init__(width, depth * 2 * width)
        self.shape = (depth, 2, heads, width // heads)

    def forward(self, tokens: Float[Tensor, "b m f"]) -> Float[Tensor, "b n"]:
        """Token by token the keys and values of every block, in one row that `read` takes apart."""
        return super().forward(tokens).flatten(1)

    def read(self, flat: Float[Tensor, "b n"]) -> tuple[Float[Tensor, "2 b g m e"], ...]:
        """Keys and values for each block in turn."""
        return flat.unflatten(1, (-1, *self.shape)).permute(2, 3, 0, 4, 1, 5).unbind(0)


class CrossAttention(nn.Module):
    """Tokens attend to keys and values of a `Memory`: (b t f), (2 b g m e) -> (b t f)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "b t f"], memory: Float[Tensor, "2 b g m e"]) -> Float[Tensor, "b t f"]:
        """What each token reads from one block's keys and values; whoever calls it adds the skip."""
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.out(heads_together(attend(q, *memory)))


class FeedForward(nn.Sequential):
    """Two layers, the hidden one four times as wide: (... f) -> (... f)."""

    def __init__(self, width: int):
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
