"""Observation history to condition vector; later image encoders plug in here."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from nets.normalize import MeanStdNormalizer
from reinflow.types import Obs


class ObsEncoder(nn.Module):
    """Normalised states, oldest first, in one row: `state` (b o s) -> (b o*s)."""

    def __init__(self, state_dim: int, obs_horizon: int):
        super().__init__()
        self.obs_horizon = obs_horizon
        self.state_normalizer = MeanStdNormalizer(state_dim)

    def forward(self, obs: Obs) -> Float[Tensor, "b z"]:
        return self.state_normalizer.normalize(obs["state"]).flatten(1)
