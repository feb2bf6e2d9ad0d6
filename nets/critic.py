"""Critics: a value network, and an ensemble of Q functions as one batched module."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from nets.mlp import MLP
from nets.normalize import MeanStdNormalizer, Moments, row_moments

SCALE_BAND = (0.02, 10.0)
"""sizes of the returns, in units of V's scale, between which V follows them in tens of updates without another one"""


class ValueNetwork(nn.Module):
    """V(cond), near 0 at first, so that advantages start as returns."""

    scale: Tensor
    first_scale: Tensor
    """the scale that it was made with, whatever was loaded since"""

    def __init__(
        self, obs_dim: int, hidden_dims: Sequence[int] = (256, 256), last_layer_scale: float = 0.01, scale: float = 1.0
    ):
        """`last_layer_scale` multiplies the last layer's default initialisation.

        `scale` multiplies the output; near the size of the returns it lets the network reach them in tens of updates
        instead of hundreds. It is a buffer, so a loaded V keeps its unit, and `follow_` changes it.
        """
        super().__init__()
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.register_buffer("first_scale", torch.tensor(float(scale)), persistent=False)
        self.net = MLP(obs_dim, hidden_dims, 1)
        with torch.no_grad():
            for parameter in self.net[-1].parameters():
                parameter.mul_(last_layer_scale)

    def forward(self, cond: Float[Tensor, "b z"]) -> Float[Tensor, "b"]:
        """Expected discounted return per row, in units of the reward: `scale` times what the net gives."""
        return self.scale * self.net(cond).squeeze(-1)

    @torch.no_grad()
    def shift_(self, by: Float[Tensor, ""]) -> None:
        """Predict so much more everywhere, in units of the reward."""
        cast(nn.Linear, self.net[-1]).bias.add_(by / self.scale)

    @property
    def unit(self) -> Float[Tensor, ""]:
        """What errors are divided by, so that gradients don't grow and shrink with the returns; 1 at first."""
        return self.scale / self.first_scale

    @torch.no_grad()
    def follow_(self, returns: Float[Tensor, ""], values: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Take the returns' size as the scale where they have left the band; gives the factor that V changes by.

        The arguments are root mean squares, of returns and of this V. The factor is 1: the last layer makes up for the
        new scale (Pop-Art, arXiv:1602.07714). Only a V far above small returns, as a new one is, shrinks with them.
        """
        low, high = SCALE_BAND
        share = returns / self.scale
        leaves = (returns > 0) & ((share < low) | (share > high))
        scale = torch.where(leaves, returns.to(self.scale.dtype), self.scale)
        change = scale / self.scale
        factor = torch.where(leaves & (values > high * returns), change, 1.0)
        for parameter in self.net[-1].parameters():
            parameter.mul_(factor / change)
        self.scale.copy_(scale)
        return factor


class PrivilegedValueNetwork(ValueNetwork):
    """V(full state), normalised within, for a critic that sees more than the actor: it is needed in training alone."""

    fitted: Tensor

    def __init__(self, obs_dim: int, scale: float = 1.0):
        super().__init__(obs_dim, scale=scale)
        self.normalizer = MeanStdNormalizer(obs_dim)
        self.register_buffer("fitted", torch.tensor(False))
        self._was_fitted = False
        self.register_load_state_dict_post_hook(ask_again)

    def fit_once_(
        self, states: Float[Tensor, "*b z"], kept: Bool[Tensor, "*b"], moments: Moments = row_moments
    ) -> None:
        """Take the statistics of the first `kept` states that it is given; later calls change nothing."""
        if self._was_fitted:
            return
        if not self.fitted:
            self.normalizer.fit_(states[kept], moments)
            self.fitted.fill_(True)
        self._was_fitted = True  # so that no later call waits for a GPU to say so

    def forward(self, cond: Float[Tensor, "b z"]) -> Float[Tensor, "b"]:
        """V of full states in the env's own units, which are normalised here."""
        return super().forward(self.normalizer.normalize(cond))


def ask_again(critic: PrivilegedValueNetwork, keys: object) -> None:
    """Loaded statistics may be those of before the first fit."""
    critic._was_fitted = False


class BatchedLinear(nn.Module):
    """`num` independent linear layers in one product: (q b in) -> (q b out)."""

    def __init__(self, num: int, in_dim: int, out_dim: int):
        super().__init__()
        bound = in_dim**-0.5
        self.weight = nn.Parameter(torch.empty(num, in_dim, out_dim).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(num, 1, out_dim).uniform_(-bound, bound))

    def forward(self, x: Float[Tensor, "q b i"]) -> Float[Tensor, "q b o"]:
        """x W + bias, with weights of its own for each of the `q` slices of `x`."""
        return torch.baddbmm(self.bias, x, self.weight)


class BatchedLayerNorm(nn.Module):
    """LayerNorm over the last dim with a scale and shift per member of the ensemble: (q b width) -> (q b width)."""

    def __init__(self, num: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num, 1, width))
        self.bias = nn.Parameter(torch.zeros(num, 1, width))

    def forward(self, x: Float[Tensor, "q b w"]) -> Float[Tensor, "q b w"]:
        """Each row normalised over its width, then scaled and shifted by its member's own numbers."""
        return torch.addcmul(self.bias, F.layer_norm(x, x.shape[-1:]), self.weight)


class QEnsemble(nn.Module):
    """Q(cond, executed chunk) of `num_qs` members with LayerNorm (as RLPD, arXiv:2302.02948), members never mixing.

    With a `support` each member predicts the probabilities of these returns, and Q is their mean.
    """

    support: Tensor | None
    """the returns that a distributional head tells apart, evenly spaced, (bins)"""

    def __init__(
        self,
        cond_dim: int,
        chunk_dim: int,
        num_qs: int = 10,
        hidden_dim: int = 256,
        depth: int = 2,
        *,
        layer_norm: bool = True,
        support: Float[Tensor, "bins"] | None = None,
    ):
        """`chunk_dim` is executed horizon times action dim, `depth` the number of hidden layers."""
        super().__init__()
        self.num_qs = num_qs
        widths = [cond_dim + chunk_dim] + [hidden_dim] * depth
        self.hidden = nn.ModuleList(
            nn.Sequential(
                BatchedLinear(num_qs, i, o), BatchedLayerNorm(num_qs, o) if layer_norm else nn.Identity(), nn.SiLU()
            )
            for i, o in pairwise(widths)
        )
        self.out = BatchedLinear(num_qs, hidden_dim, 1 if support is None else len(support))
        self.register_buffer("support", support)

    @classmethod
    def from_state(cls, state: dict[str, Tensor], cond_dim: int) -> QEnsemble:
        """The ensemble of a state_dict, whose shapes say the rest."""
        depth = len({name.split(".")[1] for name in state if name.startswith("hidden.")})
        num_qs, inputs, hidden_dim = state["hidden.0.0.weight"].shape
        normed, support = "hidden.0.1.weight" in state, state.get("support")
        ensemble = cls(cond_dim, inputs - cond_dim, num_qs, hidden_dim, depth, layer_norm=normed, support=support)
        ensemble.load_state_dict(state)
        return ensemble

    @torch.no_grad()
    def shift_(self, by: Float[Tensor, ""]) -> None:
        """Predict so much more everywhere, all members."""
        self.out.bias.add_(by)

    def forward(self, cond: Float[Tensor, "b z"], chunk: Float[Tensor, "b ea"]) -> Float[Tensor, "q b"]:
        """`chunk` is the flattened executed slice of a normalised action chunk."""
        return self.mean(self.predict(cond, chunk))

    def predict(self, cond: Float[Tensor, "b z"], chunk: Float[Tensor, "b ea"]) -> Float[Tensor, "q b bins"]:
        """What the head gives: logits of the support's returns, or Q itself as the only one."""
        x = torch.cat((cond, chunk), dim=-1).expand(self.num_qs, -1, -1)
        for layer in self.hidden:
            x = layer(x)
        return self.out(x)

    def mean(self, predicted: Float[Tensor, "q b bins"]) -> Float[Tensor, "q b"]:
        """Q of what `predict` gave."""
        return predicted.squeeze(-1) if self.support is None else predicted.softmax(-1) @ self.support

    @torch.no_grad()
    def rescale_(self, factor: float) -> QEnsemble:
        """Predict `factor` times the returns, in place: another unit of the reward."""
        if self.support is not None:
            self.support.mul_(factor)
            return self
        for parameter in self.out.parameters():
            parameter.mul_(factor)
        return self

    def errors(self, predicted: Float[Tensor, "q b bins"], target: Float[Tensor, "b"]) -> Float[Tensor, "q b"]:
        """What training minimises: squared errors, or cross entropies to the target as a narrow normal distribution.

        Source: the histogram loss HL-Gauss (arXiv:2403.03950, eq. 3), whose std is .75 of a bin.
        """
        if self.support is None:
            return (predicted.squeeze(-1) - target).square()
        return -(gaussian_histogram(target, self.support) * predicted.log_softmax(-1)).sum(-1)


WIDTH_OF_A_TARGET = 0.75
"""std of a target's normal distribution, in bins (arXiv:2403.03950, section 3.1)"""


def gaussian_histogram(target: Float[Tensor, "b"], support: Float[Tensor, "bins"]) -> Float[Tensor, "b bins"]:
    """Probabilities of the support's returns under N(target, (.75 bins)^2), cut at the support's ends."""
    width = support[1] - support[0]
    edges = torch.cat((support - width / 2, support[-1:] + width / 2))
    inside = target.clamp(support[0], support[-1])
    below = torch.special.ndtr((edges - inside[:, None]) / (WIDTH_OF_A_TARGET * width))
    return below.diff(dim=1) / (below[:, -1:] - below[:, :1])
