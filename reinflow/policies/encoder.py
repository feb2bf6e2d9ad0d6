"""Observation history to condition vector: normalised states, and what an encoder makes of the pictures."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nets.normalize import MeanStdNormalizer
from nets.vision import VISUAL_ENCODERS, pixel_channels, pixels
from reinflow.errors import UserError
from reinflow.policies.spec import PolicySpec
from reinflow.types import ImageSpec, Obs


class ObsEncoder(nn.Module):
    """State and picture features of every frame, oldest first, in one row: (b o ...) -> (b o*(s+f))."""

    def __init__(self, spec: PolicySpec):
        super().__init__()
        self.image = spec.image
        self.max_depth = spec.max_depth
        self.state_normalizer = MeanStdNormalizer(spec.state_dim)
        self.visual = None if spec.image is None else visual_encoder(spec, spec.image)

    @property
    def names(self) -> tuple[str, ...]:
        """Keys of an observation that it reads."""
        return ("state", *(self.image.names if self.image else ()))

    def forward(self, obs: Obs) -> Float[Tensor, "b z"]:
        state = self.state_normalizer.normalize(obs["state"])
        if self.visual is None:
            return state.flatten(1)
        picture = pixels(obs.get("rgb"), obs.get("depth"), self.max_depth)
        features = self.visual(picture.flatten(0, 1)).unflatten(0, state.shape[:2])
        return torch.cat((state, features), dim=-1).flatten(1)


def visual_encoder(spec: PolicySpec, image: ImageSpec) -> nn.Module:
    """UserError for pictures that are too small for the chosen encoder."""
    channels = pixel_channels(len(image.cameras), image.rgb, image.depth)
    try:
        return VISUAL_ENCODERS[spec.visual_encoder](channels, spec.visual_feature_dim, (image.height, image.width))
    except ValueError as error:
        raise UserError(f"--visual_encoder {spec.visual_encoder}: {error}") from None
