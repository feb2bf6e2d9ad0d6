"""Observation history to condition vector: normalised states, and what an encoder makes of the pictures."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nets.normalize import MeanStdNormalizer, PictureNormalizer
from nets.vision import pixel_channels, pixels
from reinflow.errors import UserError
from reinflow.policies.parts import ENCODERS
from reinflow.policies.spec import PolicySpec
from reinflow.types import ImageSpec, Obs


class ObsEncoder(nn.Module):
    """State and picture features of every frame, oldest first, in one row: (b o ...) -> (b o*(s+f)).

    Frames that are older than the pictures' own history are states alone.
    """

    def __init__(self, spec: PolicySpec):
        super().__init__()
        self.image = spec.image
        self.max_depth = spec.max_depth
        self.states_alone = spec.obs_horizon - spec.picture_frames
        self.state_normalizer = MeanStdNormalizer(spec.state_dim)
        self.visual: nn.Module | None = None
        if spec.image is not None:
            channels = pixel_channels(len(spec.image.cameras), spec.image.rgb, spec.image.depth)
            self.picture_normalizer = PictureNormalizer(channels, spec.image.height, spec.image.width)
            self.visual = visual_encoder(spec, spec.image, channels)

    def fit_normalizers_(self, states: Float[Tensor, "m s"], pictures: Obs | None = None) -> None:
        """Take the statistics of the demonstrations; `pictures` are some histories of them."""
        self.state_normalizer.fit_(states)
        if pictures is not None and self.image is not None:
            self.picture_normalizer.fit_(self._pixels(pictures))

    def forward(self, obs: Obs) -> Float[Tensor, "b z"]:
        """The condition of each row; pictures are read only where the spec has them."""
        state = self.state_normalizer.normalize(obs["state"])
        if self.visual is None:
            return state.flatten(1)
        features = self.visual(self.picture_normalizer.normalize(self._pixels(obs)))
        alone, seen = state[:, : self.states_alone], state[:, self.states_alone :]
        both = torch.cat((seen, features.unflatten(0, seen.shape[:2])), dim=-1)
        return torch.cat((alone.flatten(1), both.flatten(1)), dim=1) if self.states_alone else both.flatten(1)

    def _pixels(self, obs: Obs) -> Float[Tensor, "bo c y x"]:
        rgb, depth = (obs[name][:, self.states_alone :] if name in obs else None for name in ("rgb", "depth"))
        return pixels(rgb, depth, self.max_depth).flatten(0, 1)


def visual_encoder(spec: PolicySpec, image: ImageSpec, channels: int) -> nn.Module:
    """UserError for pictures that are too small for the chosen encoder."""
    try:
        return ENCODERS[spec.visual_encoder].build(channels, spec.visual_feature_dim, (image.height, image.width))
    except ValueError as error:
        raise UserError(f"--visual_encoder {spec.visual_encoder}: {error}") from None
