"""The residual MLP of DPPO (arXiv:2409.00588), which ReinFlow and DMPO (arXiv:2601.20701) keep.

Beside `ShortCutVelocityMLP` it has a skip around every two layers instead of every one, activations (Mish) before its
layers, no LayerNorm, and may encode the condition first. Widths there: 512, a condition net of (64, 16) and time
embeddings of 16 for states; 768 and no condition net for pictures. Differs: flow time and step size are continuous;
what their MLP concatenates is added here behind a layer each, which is the same product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from nets.config import PreactMLPConfig
from nets.embed import StepEmbedding
from nets.mlp import ResidualLayers
from nets.velocity import VelocityNet, check_chunk

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"mish": nn.Mish, "relu": nn.ReLU}


class PreactVelocityMLP(VelocityNet):
    """Features enter the first layer, as in `ShortCutVelocityMLP`."""

    def __init__(self, act_dim: int, pred_horizon: int, global_cond_dim: int, config: PreactMLPConfig | None = None):
        super().__init__()
        config = config or PreactMLPConfig()
        width = config.preact_hidden_dim
        self.chunk_shape = (pred_horizon, act_dim)
        self.step_embedding = StepEmbedding(config.preact_time_dim, 2, config.preact_max_frequency)
        self.sample_in = nn.Linear(pred_horizon * act_dim, width)
        self.step_in = nn.Linear(2 * config.preact_time_dim, width, bias=False)
        activation = ACTIVATIONS[config.preact_activation]
        self.cond_in = condition_net(global_cond_dim, config.preact_cond_dims, width, activation)
        self.layers = nn.ModuleList(
            ResidualLayers(activation(), nn.Linear(width, width), activation(), nn.Linear(width, width))
            for _ in range(config.preact_blocks)
        )
        self.out = nn.Linear(width, pred_horizon * act_dim)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The residual blocks, of two layers each; each gives (b f), one hidden row for the whole chunk."""
        return tuple(self.layers)

    def times(self, timestep: Float[Tensor, "b"], step_size: Float[Tensor, "b"]) -> Float[Tensor, "b f"]:
        """Both embeddings through a linear layer: a term of the first hidden row."""
        return self.step_in(self.step_embedding(timestep, step_size))

    def condition(self, global_cond: Float[Tensor, "b z"]) -> Float[Tensor, "b f"]:
        """The condition through `condition_net`: a term of the first hidden row."""
        return self.cond_in(global_cond)

    def velocity(self, sample: Float[Tensor, "b h a"], features: Float[Tensor, "b f"]) -> Float[Tensor, "b h a"]:
        """The chunk passes the net as one row. ValueError for chunks of a shape that the net wasn't made for."""
        check_chunk(sample, self.chunk_shape)
        hidden = self.sample_in(sample.flatten(1)) + features
        for layer in self.layers:
            hidden = layer(hidden)
        return self.out(hidden).unflatten(1, self.chunk_shape)


def condition_net(
    in_dim: int, hidden_dims: Sequence[int], out_dim: int, activation: Callable[[], nn.Module]
) -> nn.Sequential:
    """Layers with activations between them, and a last one without bias whose product is a term of a sum."""
    layers: list[nn.Module] = []
    for index, width in enumerate(hidden_dims):
        layers += [activation()] * (index > 0) + [nn.Linear(in_dim, width)]
        in_dim = width
    return nn.Sequential(*layers, nn.Linear(in_dim, out_dim, bias=False))
