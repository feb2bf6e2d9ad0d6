"""Action head of DiT blocks (arXiv:2212.09748): times modulate every layer, action tokens attend to observation tokens.

Differs: a block has cross-attention between self-attention and feed-forward net; flow time and step size are
continuous and have an embedding each; the last layer does not start at 0, so a new net's velocity has the size that
it has in the other nets, while its blocks start as the identity (adaLN-zero).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from nets.attention import CrossAttention, FeedForward, Memory, SelfAttention
from nets.config import DiTConfig
from nets.embed import StepEmbedding
from nets.tokens import ConditionTokens, CondLayout, places
from nets.velocity import VelocityNet, check_chunk, side_by_side

BLOCK_SHARES = 9
"""vectors that modulate a block: shift, scale and gate of three layers"""
OUT_SHARES = 2
"""shift and scale before the last layer"""


class ModulatedNorm(nn.LayerNorm):
    """LayerNorm whose shift and scale come from outside; a scale of 0 changes nothing."""

    def __init__(self, width: int):
        super().__init__(width, elementwise_affine=False)

    def forward(  # type: ignore[override]
        self, x: Float[Tensor, "b h f"], shift: Float[Tensor, "b 1 f"], scale: Float[Tensor, "b 1 f"]
    ) -> Float[Tensor, "b h f"]:
        """norm(x) (1 + scale) + shift, with one shift and scale per row for all its tokens."""
        return torch.addcmul(shift, super().forward(x), 1 + scale)


class DiTBlock(nn.Module):
    """Self-attention, attention to the observation and a feed-forward net, each behind a gate."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm = ModulatedNorm(width)
        self.among = SelfAttention(width, heads)
        self.across = CrossAttention(width, heads)
        self.feed_forward = FeedForward(width)

    def forward(
        self, x: Float[Tensor, "b h f"], shares: Float[Tensor, "b nine_f"], memory: Float[Tensor, "2 b g m e"]
    ) -> Float[Tensor, "b h f"]:
        """`shares` holds shift, scale and gate of each layer in turn; where all gates are 0, `x` stays as it is."""
        s = shares.unsqueeze(1).chunk(BLOCK_SHARES, dim=-1)
        x = torch.addcmul(x, s[2], self.among(self.norm(x, s[0], s[1])))
        x = torch.addcmul(x, s[5], self.across(self.norm(x, s[3], s[4]), memory))
        return torch.addcmul(x, s[8], self.feed_forward(self.norm(x, s[6], s[7])))


class CrossAttentionDiT(VelocityNet):
    """Features are the modulation of all blocks, then the keys and values of the observation for all blocks."""

    def __init__(self, act_dim: int, pred_horizon: int, layout: CondLayout, config: DiTConfig | None = None):
        """ValueError if the heads don't divide the width."""
        super().__init__()
        config = config or DiTConfig()
        width, heads, depth = config.dit_dim, config.dit_heads, config.dit_depth
        self.chunk_shape = (pred_horizon, act_dim)
        self.share_dims = [BLOCK_SHARES * width] * depth + [OUT_SHARES * width]
        self.step_embedding = StepEmbedding(config.dit_time_dim)
        self.modulation = nn.Linear(2 * config.dit_time_dim, sum(self.share_dims))
        self.cond_in = nn.Sequential(ConditionTokens(layout, width), nn.LayerNorm(width))
        self.memory = Memory(width, heads, depth)
        self.sample_in = nn.Linear(act_dim, width)
        self.place = nn.Parameter(places(pred_horizon, width))
        self.layers = nn.ModuleList(DiTBlock(width, heads) for _ in range(depth))
        self.norm = ModulatedNorm(width)
        self.out = nn.Linear(width, act_dim)
        for parameter in self.modulation.parameters():
            nn.init.zeros_(parameter)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The DiT blocks; each gives (b h f), one token per chunk position."""
        return tuple(self.layers)

    def times(self, timestep: Float[Tensor, "b"], step_size: Float[Tensor, "b"]) -> Float[Tensor, "b f"]:
        """Shifts, scales and gates of all blocks and of the last layer in one row, all 0 in a new net."""
        return self.modulation(F.silu(self.step_embedding(timestep, step_size)))

    def condition(self, global_cond: Float[Tensor, "b z"]) -> Float[Tensor, "b f"]:
        """Keys and values that the blocks read from the observation's tokens, in one row."""
        return self.memory(self.cond_in(global_cond))

    def joined(self, times: Float[Tensor, "... f"], condition: Float[Tensor, "... g"]) -> Float[Tensor, "... f+g"]:
        """The modulation first, then keys and values."""
        return side_by_side(times, condition)

    def velocity(self, sample: Float[Tensor, "b h a"], features: Float[Tensor, "b f"]) -> Float[Tensor, "b h a"]:
        """Each chunk position is a token. ValueError for chunks of a shape that the net wasn't made for."""
        check_chunk(sample, self.chunk_shape)
        modulation = sum(self.share_dims)
        *shares, last = features[:, :modulation].split(self.share_dims, dim=1)
        memories = self.memory.read(features[:, modulation:])
        hidden = self.sample_in(sample) + self.place
        for layer, share, memory in zip(self.layers, shares, memories, strict=True):
            hidden = layer(hidden, share, memory)
        return self.out(self.norm(hidden, *last.unsqueeze(1).chunk(2, dim=-1)))
