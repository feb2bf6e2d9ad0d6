"""Image encoders: any number of cameras, rgb and depth, stacked along the channels of one picture per frame.

Images are stored as the simulator writes them, channels last: rgb as uint8, depth as int16 millimetres. Only
`pixels` turns them into floats, so that nothing bigger than a minibatch ever is one.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int16, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

MILLIMETRES = 1000.0


def pixels(
    rgb: UInt8[Tensor, "*b v y x 3"] | None, depth: Int16[Tensor, "*b v y x 1"] | None, max_depth: float
) -> Float[Tensor, "*b c y x"]:
    """Network input of all cameras: rgb / 255, then depth as a share of `max_depth` metres and whether it is valid.

    A pixel without depth (0 or less: nothing was hit, or it was too far for its type) is 0 in both of its channels.
    The result is a channels-last picture, which is what convolutions take fastest.
    """
    parts = []
    if rgb is not None:
        parts.append(rgb / 255.0)
    if depth is not None:
        valid = depth > 0
        share = (depth / (MILLIMETRES * max_depth)).clamp(0, 1)
        parts += [torch.where(valid, share, 0.0), valid.to(share.dtype)]
    stacked = torch.cat(parts, dim=-1)  # *b v y x c
    cameras_last = stacked.movedim(-4, -2)
    return cameras_last.flatten(-2).movedim(-1, -3)


def pixel_channels(cameras: int, rgb: bool, depth: bool) -> int:
    """Channels that `pixels` makes."""
    return cameras * (3 * rgb + 2 * depth)


def random_shift(images: dict[str, Tensor], most: int, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """Each row's pictures moved by up to `most` pixels, their edges repeated (DrQ, arXiv:2004.13649).

    All frames, cameras and kinds of a row move together, so motion and depth stay consistent. Values are
    (b o v y x c) of any dtype and keep it.
    """
    first = next(iter(images.values()))
    rows, height, width = len(first), first.shape[3], first.shape[4]
    device = first.device
    shift = torch.randint(0, 2 * most + 1, (2, rows), generator=generator, device=device)
    row = torch.arange(rows, device=device)
    return {name: _crops(value, row, shift, most, height, width) for name, value in images.items()}


def _crops(images: Tensor, row: Tensor, shift: Tensor, most: int, height: int, width: int) -> Tensor:
    across = torch.arange(-most, width + most, device=images.device).clamp(0, width - 1)
    down = torch.arange(-most, height + most, device=images.device).clamp(0, height - 1)
    padded = images.index_select(3, down).index_select(4, across)
    windows = padded.unfold(3, height, 1).unfold(4, width, 1)  # b o v dy dx c y x
    return windows[row, :, :, shift[0], shift[1]].movedim(-3, -1)


class PlainConv(nn.Module):
    """Five convolutions with max pooling, the encoder of ManiSkill's baselines: (b c y x) -> (b f)."""

    def __init__(self, in_channels: int, out_dim: int, image_size: tuple[int, int]):
        """ValueError for pictures of less than 16 pixels a side."""
        super().__init__()
        height, width = image_size
        if min(height, width) < 16:
            raise ValueError(f"PlainConv halves pictures four times and got {height} x {width}: use 16 x 16 or larger")
        layers: list[nn.Module] = []
        for width_in, width_out in ((in_channels, 16), (16, 32), (32, 64), (64, 128)):
            # pooling and ReLU commute, and after it there is a quarter to rectify
            layers += [nn.Conv2d(width_in, width_out, 3, padding=1), nn.MaxPool2d(2), nn.ReLU(inplace=True)]
        layers += [nn.Conv2d(128, 128, 1), nn.ReLU(inplace=True)]
        self.conv = nn.Sequential(*layers)
        self.out = nn.Linear(128 * (height // 16) * (width // 16), out_dim)
        keep_variance_(self)

    def forward(self, picture: Float[Tensor, "b c y x"]) -> Float[Tensor, "b f"]:
        """Features of normalised pictures: a linear layer over all places of the last map."""
        return self.out(self.conv(picture).flatten(1))


class ResNet18(nn.Module):
    """ResNet-18 with GroupNorm in place of BatchNorm, which an average of weights and small batches both break.

    (b c y x) -> (b f), from scratch; the mean over positions is replaced by a spatial softmax's expected coordinates,
    as in Diffusion Policy (arXiv:2303.04137): where something is matters more to a robot than that it is there.
    """

    def __init__(self, in_channels: int, out_dim: int, image_size: tuple[int, int]):
        """ValueError for pictures of less than 32 pixels a side."""
        super().__init__()
        if min(image_size) < 32:
            raise ValueError(f"ResNet18 halves pictures five times and got {image_size}: use 32 x 32 or larger")
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False),
            nn.GroupNorm(4, 64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        blocks = []
        for width_in, width_out, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
            blocks += [ResidualBlock(width_in, width_out, stride), ResidualBlock(width_out, width_out, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.keypoints = nn.Conv2d(512, 32, 1)
        self.out = nn.Linear(64, out_dim)
        keep_variance_(self)

    def forward(self, picture: Float[Tensor, "b c y x"]) -> Float[Tensor, "b f"]:
        """Features of normalised pictures: a linear layer over the places of 32 keypoints."""
        return self.out(expected_coordinates(self.keypoints(self.blocks(self.stem(picture)))))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with GroupNorm beside a shortcut."""

    def __init__(self, width_in: int, width_out: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width_in, width_out, 3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(width_out // 16, width_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(width_out, width_out, 3, padding=1, bias=False),
            nn.GroupNorm(width_out // 16, width_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(width_in, width_out, 1, stride=stride, bias=False), nn.GroupNorm(width_out // 16, width_out)
            )

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c2 y2 x2"]:
        """Body plus shortcut, rectified; height and width are divided by the stride."""
        return F.relu(self.body(x) + self.shortcut(x))


def expected_coordinates(maps: Float[Tensor, "b m y x"]) -> Float[Tensor, "b 2*m"]:
    """Spatial softmax: the mean column and row of each map, in [-1, 1], weighted by its softmax over positions."""
    height, width = maps.shape[-2:]
    weight = maps.flatten(2).softmax(-1).unflatten(-1, (height, width))
    across = torch.linspace(-1, 1, width, device=maps.device, dtype=maps.dtype)
    down = torch.linspace(-1, 1, height, device=maps.device, dtype=maps.dtype)
    return torch.cat((weight.sum(2) @ across, weight.sum(3) @ down), dim=1)


def keep_variance_(encoder: nn.Module) -> None:
    """He initialisation (arXiv:1502.01852): torch's default shrinks the signal by 2.4 with every layer."""
    for layer in encoder.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear" if isinstance(layer, nn.Linear) else "relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
