"""An image encoder of your own in every command of the project: this file registers it and hands over.

    python examples/own_encoder.py clone --obs_mode rgb --visual_encoder pooled
    python examples/own_encoder.py evaluate --checkpoint runs/shortcut_flow-PickCube-v1-seed0

A checkpoint names its encoder, so whoever loads it imports a file like this one first.
"""

from __future__ import annotations

from torch import nn

from reinflow.__main__ import main
from reinflow.policies import ENCODERS, PartConfig
from reinflow.registry import Entry


class Pooled(nn.Sequential):
    """The mean colour of each of 8 x 8 fields, and a layer over them: (b c y x) -> (b f)."""

    def __init__(self, in_channels: int, out_dim: int, image_size: tuple[int, int]):
        if min(image_size) < 8:
            raise ValueError(f"it looks at 8 x 8 fields and got {image_size[0]} x {image_size[1]} pixels")
        super().__init__(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(64 * in_channels, out_dim), nn.ReLU())


ENCODERS.add("pooled", Entry(Pooled, PartConfig))

if __name__ == "__main__":
    main()
