"""The small vision Transformer of DPPO (arXiv:2409.00588), which is that of IBRL (arXiv:2311.02198).

Differs: pictures come normalised, frame by frame; the spatial embedding doesn't see the state, which joins after the
encoder as it does for the others, and starts at unit variance; no dropout, under which the ratio of PPO would not be
1. The pictures' random shift is `nets.vision.random_shift`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from nets.attention import FeedForward, SelfAttention
from nets.tokens import places


class ViTBlock(nn.Module):
    """Pre-norm self-attention and feed-forward net; fused attention, since nobody takes a jvp through an encoder."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.among = SelfAttention(width, heads, attention=F.scaled_dot_product_attention)
        self.feed_forward = FeedForward(width)

    def forward(self, x: Float[Tensor, "b p f"]) -> Float[Tensor, "b p f"]:
        """Both layers add to the tokens, each behind a norm of its own."""
        x = x + self.among(self.norms[0](x))
        return x + self.feed_forward(self.norms[1](x))


class SpatialEmbedding(nn.Module):
    """Every number of the result looks at all places, in every channel by another weight: (b p f) -> (b out)."""

    def __init__(self, patches: int, width: int, out_dim: int):
        super().__init__()
        self.look = nn.Sequential(nn.Linear(patches, out_dim), nn.LayerNorm(out_dim), nn.ReLU())
        self.weight = nn.Parameter(torch.randn(width, out_dim) * (2 / width) ** 0.5)

    def forward(self, x: Float[Tensor, "b p f"]) -> Float[Tensor, "b out"]:
        """Per number of the result, the weighted sum over channels of what it sees there."""
        return torch.einsum("bfo,fo->bo", self.look(x.transpose(1, 2)), self.weight)


class ViT(nn.Module):
    """Patches of 8 x 8 pixels, 4 apart, halved once, then Transformer blocks: (b c y x) -> (b f)."""

    def __init__(
        self,
        in_channels: int,
        out_dim: int,
        image_size: tuple[int, int],
        width: int = 128,
        depth: int = 1,
        heads: int = 4,
    ):
        """ValueError for pictures of less than 16 pixels a side."""
        super().__init__()
        if min(image_size) < 16:
            raise ValueError(
                f"ViT cuts pictures twice and got {image_size[0]} x {image_size[1]}: use 16 x 16 or larger"
            )
        self.patches = nn.Sequential(
            nn.Conv2d(in_channels, width, 8, stride=4),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, stride=2),
        )
        down, across = (((size - 8) // 4 + 1 - 3) // 2 + 1 for size in image_size)
        self.place = nn.Parameter(places(down * across, width))
        self.blocks = nn.Sequential(*(ViTBlock(width, heads) for _ in range(depth)), nn.LayerNorm(width))
        self.out = SpatialEmbedding(down * across, width, out_dim)

    def forward(self, picture: Float[Tensor, "b c y x"]) -> Float[Tensor, "b f"]:
        """Features of normalised pictures: the spatial embedding of the last block's tokens."""
        tokens = self.patches(picture).flatten(2).transpose(1, 2) + self.place
        return self.out(self.blocks(tokens))
