"""Embeddings of the continuous times a velocity net is conditioned on.

Transformer-style sinusoids (arXiv:1706.03762) of a time in [0, 1]. Differs: the fastest sinusoid turns by 1 rad per
1e-3 of time instead of per integer step, so times are never rounded to a grid.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

FASTEST = 1000.0
"""rad per unit of time of the fastest sinusoid"""


class SinusoidalEmbedding(nn.Module):
    """sin and cos of a time at `dim / 2` geometrically spaced frequencies."""

    frequencies: Tensor

    def __init__(self, dim: int, max_frequency: float = FASTEST, frequency_ratio: float = 1e4):
        """`max_frequency` in rad per unit of time; the slowest frequency is `max_frequency / frequency_ratio`."""
        super().__init__()
        if dim < 4 or dim % 2:
            raise ValueError(f"the embedding needs an even dim of at least 4, got dim={dim}")
        exponents = torch.arange(dim // 2) / (dim // 2 - 1)
        self.register_buffer("frequencies", max_frequency * frequency_ratio**-exponents, persistent=False)

    def forward(self, time: Float[Tensor, "b"]) -> Float[Tensor, "b dim"]:
        """All sines and then all cosines, each from the fastest wave to the slowest."""
        phase = time.unsqueeze(-1) * self.frequencies
        return torch.cat((phase.sin(), phase.cos()), dim=-1)


class TimeEmbedding(nn.Sequential):
    """A sinusoidal embedding followed by a two-layer net: (b) -> (b dim)."""

    def __init__(self, dim: int, hidden_factor: int = 4, max_frequency: float = FASTEST):
        super().__init__(
            SinusoidalEmbedding(dim, max_frequency),
            nn.Linear(dim, hidden_factor * dim),
            nn.Mish(),
            nn.Linear(hidden_factor * dim, dim),
        )


class StepEmbedding(nn.Module):
    """Flow time and step size, each with its own embedding: (b), (b) -> (b 2*dim)."""

    def __init__(self, dim: int, hidden_factor: int = 4, max_frequency: float = FASTEST):
        super().__init__()
        self.timestep = TimeEmbedding(dim, hidden_factor, max_frequency)
        self.step_size = TimeEmbedding(dim, hidden_factor, max_frequency)

    def forward(self, timestep: Float[Tensor, "b"], step_size: Float[Tensor, "b"]) -> Float[Tensor, "b two_dim"]:
        """The embedding of flow time first, then that of the step size."""
        return torch.cat((self.timestep(timestep), self.step_size(step_size)), dim=-1)
