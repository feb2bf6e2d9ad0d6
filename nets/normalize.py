"""Normalisers of the last axis, dimension by dimension; checkpoints carry their statistics, which are buffers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

Self = TypeVar("Self", bound="_AffineNormalizer")


def row_moments(rows: Float[Tensor, "n dim"]) -> tuple[Float[Tensor, "dim"], Float[Tensor, "dim"]]:
    """Mean and std of every column."""
    return rows.mean(0), rows.std(0, correction=0)


Moments = Callable[[Tensor], tuple[Tensor, Tensor]]
"""mean and std of the columns of rows"""


class _AffineNormalizer(nn.Module):
    """`normalize(x) = (x - shift) / scale` per dimension; the identity until fitted."""

    shift: Tensor
    scale: Tensor

    def __init__(self, dim: int, floor: float):
        super().__init__()
        self.floor = floor
        self.register_buffer("shift", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def normalize(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return (x - self.shift) / self.scale

    def denormalize(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return torch.addcmul(self.shift, x, self.scale)

    @abstractmethod
    def fit_(self: Self, data: Float[Tensor, "*batch dim"]) -> Self:
        """Take the statistics of `data`, in place."""

    @classmethod
    def from_data(cls: type[Self], data: Float[Tensor, "*batch dim"], **kwargs: float) -> Self:
        """A normaliser fitted to `data`, on its device."""
        return cls(data.shape[-1], **kwargs).to(data.device).fit_(data)

    def _rows(self, data: Float[Tensor, "*batch dim"]) -> Float[Tensor, "n dim"]:
        """Float64 rows; ValueError if there are none, if the width differs or if a number is not finite."""
        dim, name = self.shift.numel(), type(self).__name__
        if data.shape[-1] != dim or data.numel() == 0:
            raise ValueError(f"expected rows of {dim} numbers to fit {name}, got shape {tuple(data.shape)}")
        if not data.isfinite().all():
            raise ValueError(f"the data to fit {name} holds NaN or infinite numbers; remove those rows first")
        return data.reshape(-1, dim).double()


class MeanStdNormalizer(_AffineNormalizer):
    """Zero mean and unit std, for states."""

    def __init__(self, dim: int, std_floor: float = 1e-2):
        """`std_floor`, in data units, keeps dimensions that hardly move from being blown up."""
        super().__init__(dim, std_floor)

    def fit_(self: Self, data: Float[Tensor, "*batch dim"], moments: Moments = row_moments) -> Self:
        """Take the statistics from `data`, in place; `moments` may add the rows of other processes."""
        mean, std = moments(self._rows(data))
        self.shift.copy_(mean)
        self.scale.copy_(std.clamp_min(self.floor))
        return self


class RunningMoments(nn.Module):
    """Mean and std of the columns of all rows so far, which are not kept (Chan et al., 1983)."""

    count: Tensor
    mean: Tensor
    square: Tensor
    """sum of squared distances from the mean"""

    def __init__(self, dim: int):
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("square", torch.zeros(dim, dtype=torch.float64))

    def add_(
        self, mean: Float[Tensor, "dim"], std: Float[Tensor, "dim"], count: int
    ) -> tuple[Float[Tensor, "dim"], Float[Tensor, "dim"]]:
        """Take in `count` more rows with these moments, in place; gives those of all."""
        total = self.count + count
        gap = mean - self.mean
        self.square += count * std.square() + gap.square() * self.count * count / total
        self.mean += gap * count / total
        self.count.copy_(total)
        return self.mean.clone(), (self.square / total).sqrt()


class PictureNormalizer(nn.Module):
    """Pictures minus their mean, place by place, over one std per channel; the identity until fitted.

    A fixed camera sees the same background in every frame, whose encoding would drown what differs: without this, the
    features of a new PlainConv vary by 2 % of their size over a demonstration.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, height: int, width: int, std_floor: float = 1e-2):
        super().__init__()
        self.floor = std_floor
        self.register_buffer("mean", torch.zeros(channels, height, width))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    def normalize(self, picture: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        """How far each pixel is from the mean picture, in stds of its channel."""
        return (picture - self.mean) / self.std

    def fit_(self, pictures: Float[Tensor, "b c y x"]) -> None:
        """Take the statistics of some pictures, in place."""
        self.mean.copy_(pictures.mean(0))
        spread = (pictures - self.mean).square().mean((0, 2, 3)).sqrt()
        self.std.copy_(spread.clamp_min(self.floor).view(-1, 1, 1))


class MinMaxNormalizer(_AffineNormalizer):
    """[lowest, highest] to [-1, 1], for actions."""

    def __init__(self, dim: int, half_range_floor: float = 1e-2):
        """`half_range_floor`, in data units: a constant dimension maps to 0, and 1 means that far away from it."""
        super().__init__(dim, half_range_floor)

    @property
    def varies(self) -> Bool[Tensor, "dim"]:
        """Dimensions whose range was above the floor."""
        return self.scale > self.floor

    def fit_(self: Self, data: Float[Tensor, "*batch dim"]) -> Self:
        """Take the range from `data`, in place."""
        rows = self._rows(data)
        low, high = rows.amin(0), rows.amax(0)
        self.shift.copy_((low + high) / 2)
        self.scale.copy_(((high - low) / 2).clamp_min(self.floor))
        return self
