"""Multi-layer perceptrons: the plain one, and the residual velocity net for tasks with state observations.

The velocity net flattens the chunk and spends its time in a few (b, hidden) x (hidden, hidden) products, which is
what a CPU does best: about 20 times fewer FLOP than the UNet at a horizon of 16.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from nets.embed import StepEmbedding
from nets.velocity import VelocityNet, check_chunk


class MLP(nn.Sequential):
    """Linear layers with LayerNorm and SiLU between them: (... in_dim) -> (... out_dim)."""

    def __init__(self, in_dim: int, hidden_dims: Sequence[int], out_dim: int, layer_norm: bool = True):
        layers: list[nn.Module] = []
        for width in hidden_dims:
            layers.append(nn.Linear(in_dim, width))
            if layer_norm:
                layers.append(nn.LayerNorm(width))
            layers.append(nn.SiLU())
            in_dim = width
        super().__init__(*layers, nn.Linear(in_dim, out_dim))


class ResidualLayers(nn.Sequential):
    """Layers with a skip around them: x -> x + layers(x)."""

    def forward(self, x: Float[Tensor, "*b f"]) -> Float[Tensor, "*b f"]:
        """Of the shape of `x`, and `x` itself where the layers give 0."""
        return x + super().forward(x)


class ShortCutVelocityMLP(VelocityNet):
    """Features enter the first layer: pre-norm residual layers over chunk, times and condition."""

    def __init__(
        self,
        act_dim: int,
        pred_horizon: int,
        global_cond_dim: int,
        hidden_dim: int = 256,
        depth: int = 3,
        time_embed_dim: int = 64,
    ):
        super().__init__()
        self.chunk_shape = (pred_horizon, act_dim)
        self.step_embedding = StepEmbedding(time_embed_dim, hidden_factor=2)
        self.sample_in = nn.Linear(pred_horizon * act_dim, hidden_dim)
        self.step_in = nn.Linear(2 * time_embed_dim, hidden_dim, bias=False)
        self.cond_in = nn.Linear(global_cond_dim, hidden_dim, bias=False)
        self.layers = nn.ModuleList(
            ResidualLayers(nn.LayerNorm(hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, hidden_dim)) for _ in range(depth)
        )
        self.out = nn.Sequential(nn.LayerNorm(hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, pred_horizon * act_dim))

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The residual layers; each gives (b f), one hidden row for the whole chunk."""
        return tuple(self.layers)

    def times(self, timestep: Float[Tensor, "b"], step_size: Float[Tensor, "b"]) -> Float[Tensor, "b f"]:
        """Both embeddings through a linear layer: a term of the first hidden row."""
        return self.step_in(self.step_embedding(timestep, step_size))

    def condition(self, global_cond: Float[Tensor, "b z"]) -> Float[Tensor, "b f"]:
        """The condition through a linear layer: a term of the first hidden row."""
        return self.cond_in(global_cond)

    def velocity(self, sample: Float[Tensor, "b h a"], features: Float[Tensor, "b f"]) -> Float[Tensor, "b h a"]:
        """The chunk passes the net as one row. ValueError for chunks of a shape that the net wasn't made for."""
        check_chunk(sample, self.chunk_shape)
        hidden = self.sample_in(sample.flatten(1)) + features
        for layer in self.layers:
            hidden = layer(hidden)
        return self.out(hidden).unflatten(1, self.chunk_shape)
