"""Transformer over an action chunk, the size of DPPO's (arXiv:2409.00588): action tokens attend to a memory.

The memory is one token of the times and the tokens of the condition, as in Diffusion Policy (arXiv:2303.04137).
Differs: flow time and step size are continuous and have an embedding each; torch's default initialisation; no
dropout, under which the ratio of PPO would not be 1; and keys and values of the memory are made once for all steps.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from nets.attention import CrossAttention, FeedForward, Memory, SelfAttention
from nets.config import TransformerConfig
from nets.embed import StepEmbedding
from nets.tokens import ConditionTokens, CondLayout, places
from nets.velocity import VelocityNet, check_chunk, side_by_side


class TransformerBlock(nn.Module):
    """Pre-norm: the chunk attends to itself, then to the memory, then passes a feed-forward net."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.among = SelfAttention(width, heads)
        self.across = CrossAttention(width, heads)
        self.feed_forward = FeedForward(width)

    def forward(self, x: Float[Tensor, "b h f"], memory: Float[Tensor, "2 b g m e"]) -> Float[Tensor, "b h f"]:
        """Every layer adds to `x`; `memory` holds the keys and values of this block."""
        x = x + self.among(self.norms[0](x))
        x = x + self.across(self.norms[1](x), memory)
        return x + self.feed_forward(self.norms[2](x))


class VelocityTransformer(VelocityNet):
    """Features are the keys and values of the memory for all blocks, token by token."""

    def __init__(self, act_dim: int, pred_horizon: int, layout: CondLayout, config: TransformerConfig | None = None):
        """ValueError if the heads don't divide the width."""
        super().__init__()
        config = config or TransformerConfig()
        width, heads, depth = config.transformer_dim, config.transformer_heads, config.transformer_depth
        self.chunk_shape = (pred_horizon, act_dim)
        self.step_embedding = StepEmbedding(config.transformer_time_dim)
        self.step_in = nn.Linear(2 * config.transformer_time_dim, width)
        self.cond_in = ConditionTokens(layout, width)
        self.encoder = FeedForward(width)
        self.memory = Memory(width, heads, depth)
        self.sample_in = nn.Linear(act_dim, width)
        self.place = nn.Parameter(places(pred_horizon, width))
        self.layers = nn.ModuleList(TransformerBlock(width, heads) for _ in range(depth))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, act_dim))

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The Transformer blocks; each gives (b h f), one token per chunk position."""
        return tuple(self.layers)

    def times(self, timestep: Float[Tensor, "b"], step_size: Float[Tensor, "b"]) -> Float[Tensor, "b f"]:
        """Keys and values of the one token that both embeddings make, in one row."""
        token = self.step_in(self.step_embedding(timestep, step_size)).unsqueeze(1)
        return self.memory(self.encoder(token))

    def condition(self, global_cond: Float[Tensor, "b z"]) -> Float[Tensor, "b f"]:
        """Keys and values of the observation's tokens, in one row."""
        return self.memory(self.encoder(self.cond_in(global_cond)))

    def joined(self, times: Float[Tensor, "... f"], condition: Float[Tensor, "... g"]) -> Float[Tensor, "... f+g"]:
        """One memory: the token of the times first, then those of the observation."""
        return side_by_side(times, condition)

    def velocity(self, sample: Float[Tensor, "b h a"], features: Float[Tensor, "b f"]) -> Float[Tensor, "b h a"]:
        """Each chunk position is a token. ValueError for chunks of a shape that the net wasn't made for."""
        check_chunk(sample, self.chunk_shape)
        hidden = self.sample_in(sample) + self.place
        for layer, memory in zip(self.layers, self.memory.read(features), strict=True):
            hidden = layer(hidden, memory)
        return self.out(hidden)
