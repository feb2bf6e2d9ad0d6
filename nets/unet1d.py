"""Conditional 1-D UNet over an action chunk, as in Diffusion Policy (arXiv:2303.04137), for shortcut flows.

Differs from Diffusion Policy: flow time and step size are continuous and have an embedding each; FiLM scales by 1 +
gain, so that a block starts near its unconditioned self; the condition passes a linear layer before its Mish, which
folds what is below -1.2 onto what is above, so that raw normalised states would lose their sign; and the FiLM terms of
all blocks come from two products, one of the times and one of the condition, because `W [mish(times), mish(c)] = W_t
mish(times) + W_c mish(c)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from nets.embed import StepEmbedding
from nets.velocity import VelocityNet


class LocalConv1d(nn.Conv1d):
    """Same-padded convolution, as the matrix product that is fastest for its size.

    A chunk is so short that padding is a large part of what a kernel meets: with a kernel of 5 and a length of 4, 6 of
    20 products are with zeros, and 16 make the dense product of whole sequences. That one is a matrix of all taps,
    which many rows pay for. Few rows are a product of their windows: torch's convolution reads its weights several
    times slower on a CPU, and has no fast kernel for so short a sequence on a GPU.
    """

    few_rows = 16
    """rows up to which windows are fastest on a CPU, whatever the length (measured)"""
    short = 4
    """length up to which torch's convolution is never the fastest on a CPU (measured)"""
    short_on_gpu = 16
    """the same on a GPU (not measured)"""
    dense_rows = 256
    """rows from which a dense product of a short sequence is faster than one of windows (measured on a CPU)"""
    dense_rows_on_gpu = 1024
    """the same on a GPU (not measured), where windows also hold five times the memory of a gradient step"""
    most_taps = 2**21
    """numbers in the matrix of a dense product, beyond which it isn't made"""

    def __init__(self, in_dim: int, out_dim: int, kernel_size: int):
        self.centre = kernel_size // 2
        super().__init__(in_dim, out_dim, kernel_size, padding=self.centre)

    def forward(self, x: Float[Tensor, "b i h"]) -> Float[Tensor, "b o h"]:
        """The same convolution by whichever product is fastest for this number of rows and this length."""
        way = self._way(len(x), x.shape[2], x.device.type == "cuda")
        return super().forward(x) if way is None else getattr(self, way)(x)

    def _way(self, rows: int, length: int, on_gpu: bool) -> Literal["dense", "by_windows"] | None:
        """None is torch's own."""
        if length > (self.short_on_gpu if on_gpu else self.short):
            return "by_windows" if rows <= self.few_rows else None
        if self.centre == 0:
            return "by_windows" if on_gpu or rows <= self.few_rows else None
        few = self.dense_rows_on_gpu if on_gpu else self.dense_rows if length > self.centre else self.dense_rows // 4
        fits = length**2 * self.in_channels * self.out_channels <= self.most_taps
        return "dense" if fits and rows >= few else "by_windows"

    def by_windows(self, x: Float[Tensor, "b i h"]) -> Float[Tensor, "b o h"]:
        """A product of what each position sees."""
        windows = F.pad(x, (self.centre, self.centre)).unfold(2, self.kernel_size[0], 1).transpose(1, 2)
        return F.linear(windows.flatten(2), self.weight.flatten(1), self.bias).transpose(1, 2)

    def dense(self, x: Float[Tensor, "b i h"]) -> Float[Tensor, "b o h"]:
        """A product of whole sequences: output position p meets input position j through tap centre - p + j."""
        length = x.shape[2]
        reach = length - 1 - self.centre  # beyond the kernel are taps of 0, or some of its own are out of reach
        taps = F.pad(self.weight, (reach, reach)).unfold(2, length, 1).flip(2).transpose(1, 2)
        bias = cast(Tensor, self.bias).repeat_interleave(length)
        out = F.linear(x.flatten(1), taps.flatten(2).flatten(0, 1), bias)
        return out.unflatten(1, (self.out_channels, length))


class Downsample(nn.Conv1d):
    """Half as many positions; a product of windows on a GPU, which has no fast convolution for so few."""

    def __init__(self, dim: int):
        super().__init__(dim, dim, 3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "b c h"]) -> Float[Tensor, "b c half"]:
        """An odd length is rounded up."""
        return self.by_windows(x) if x.device.type == "cuda" else super().forward(x)

    def by_windows(self, x: Float[Tensor, "b c h"]) -> Float[Tensor, "b c half"]:
        """A product of what each second position sees."""
        windows = F.pad(x, (1, 1)).unfold(2, 3, 2).transpose(1, 2)
        return F.linear(windows.flatten(2), self.weight.flatten(1), self.bias).transpose(1, 2)


class Upsample(nn.ConvTranspose1d):
    """Twice as many positions; a product of windows on a GPU, which has no fast convolution for so few."""

    def __init__(self, dim: int):
        super().__init__(dim, dim, 4, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "b c h"], output_size: list[int] | None = None) -> Float[Tensor, "b c two_h"]:
        """Always twice the length, whatever `output_size` is."""
        return self.by_windows(x) if x.device.type == "cuda" else super().forward(x)

    def by_windows(self, x: Float[Tensor, "b c h"]) -> Float[Tensor, "b c two_h"]:
        """Position 2p sees p through tap 1 and p - 1 through tap 3, position 2p + 1 sees p by 2 and p + 1 by 0."""
        nothing = torch.zeros_like(self.weight[:, :, 0])
        even = torch.stack((self.weight[:, :, 3], self.weight[:, :, 1], nothing))
        odd = torch.stack((nothing, self.weight[:, :, 2], self.weight[:, :, 0]))
        taps = torch.stack((even, odd)).permute(3, 0, 2, 1)  # (out, which of two, in, window)
        windows = F.pad(x, (1, 1)).unfold(2, 3, 1).transpose(1, 2)
        bias = cast(Tensor, self.bias).repeat_interleave(2)
        out = F.linear(windows.flatten(2), taps.flatten(2).flatten(0, 1), bias)
        return out.unflatten(2, (self.out_channels, 2)).transpose(1, 2).flatten(2)


class ConvBlock(nn.Sequential):
    """Convolution, GroupNorm, Mish: (b in h) -> (b out h)."""

    def __init__(self, in_dim: int, out_dim: int, kernel_size: int, n_groups: int):
        super().__init__(
            LocalConv1d(in_dim, out_dim, kernel_size),
            nn.GroupNorm(n_groups, out_dim),
            nn.Mish(),
        )


class FiLMResidualBlock(nn.Module):
    """Two convolutions with a FiLM modulation between them and a skip around them."""

    def __init__(self, in_dim: int, out_dim: int, kernel_size: int, n_groups: int):
        super().__init__()
        self.film_dim = 2 * out_dim
        self.first = ConvBlock(in_dim, out_dim, kernel_size, n_groups)
        self.second = ConvBlock(out_dim, out_dim, kernel_size, n_groups)
        self.skip = LocalConv1d(in_dim, out_dim, 1) if in_dim != out_dim else nn.Identity()

    def forward(self, x: Float[Tensor, "b i h"], film: Float[Tensor, "b two_o"]) -> Float[Tensor, "b o h"]:
        """`film` holds gains for the channels between both convolutions, then their biases; zeros change nothing."""
        gain, bias = film.unsqueeze(-1).chunk(2, dim=1)
        hidden = torch.addcmul(bias, self.first(x), 1 + gain)
        return self.second(hidden) + self.skip(x)


Levels = Iterable[tuple[FiLMResidualBlock, FiLMResidualBlock]]


class ShortCutVelocityUNet1D(VelocityNet):
    """Features are the FiLM terms of all blocks, so time and step size truly condition each of them."""

    def __init__(
        self,
        input_dim: int,
        global_cond_dim: int,
        diffusion_step_embed_dim: int = 64,
        down_dims: Sequence[int] = (64, 128, 256),
        kernel_size: int = 5,
        n_groups: int = 8,
        cond_embed_dim: int = 256,
    ):
        """`input_dim` is the action dim, `down_dims` the channels per level; each level halves the horizon."""
        super().__init__()
        self.horizon_factor = 2 ** (len(down_dims) - 1)
        self.step_embedding = StepEmbedding(diffusion_step_embed_dim)

        def block(in_dim: int, out_dim: int) -> FiLMResidualBlock:
            return FiLMResidualBlock(in_dim, out_dim, kernel_size, n_groups)

        ins = (input_dim, *down_dims[:-1])
        self.down = nn.ModuleList(
            nn.ModuleList((block(i, o), block(o, o))) for i, o in zip(ins, down_dims, strict=True)
        )
        self.downsample = nn.ModuleList(Downsample(o) for o in down_dims[:-1])
        self.middle = nn.ModuleList(block(down_dims[-1], down_dims[-1]) for _ in range(2))
        ups = tuple(zip(down_dims[:0:-1], down_dims[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ModuleList((block(2 * i, o), block(o, o))) for i, o in ups)
        self.upsample = nn.ModuleList(Upsample(o) for _, o in ups)
        self.out = nn.Sequential(
            ConvBlock(down_dims[0], down_dims[0], kernel_size, n_groups), LocalConv1d(down_dims[0], input_dim, 1)
        )
        self.film_dims = [block.film_dim for block in self.blocks]
        self.film_step = nn.Linear(2 * diffusion_step_embed_dim, sum(self.film_dims))
        self.cond_in = nn.Linear(global_cond_dim, cond_embed_dim)
        self.film_cond = nn.Linear(cond_embed_dim, sum(self.film_dims), bias=False)

    @property
    def blocks(self) -> Sequence[FiLMResidualBlock]:
        """The FiLM blocks of the way down, the middle and the way up; each gives (b channels h) of its level."""
        # modules come in the order in which they were registered, which is that of their use
        return tuple(module for module in self.modules() if isinstance(module, FiLMResidualBlock))

    def times(self, timestep: Float[Tensor, "b"], step_size: Float[Tensor, "b"]) -> Float[Tensor, "b f"]:
        """The times' terms in the FiLM gains and biases of all blocks, in one row."""
        return self.film_step(F.mish(self.step_embedding(timestep, step_size)))

    def condition(self, global_cond: Float[Tensor, "b z"]) -> Float[Tensor, "b f"]:
        """The condition's terms in the FiLM gains and biases of all blocks, in one row."""
        return self.film_cond(F.mish(self.cond_in(global_cond)))

    def velocity(self, sample: Float[Tensor, "b h a"], features: Float[Tensor, "b f"]) -> Float[Tensor, "b h a"]:
        """Down the levels and up again, with skips. ValueError for a chunk length that they can't halve."""
        horizon = sample.shape[1]
        if horizon % self.horizon_factor:
            factor, levels = self.horizon_factor, len(self.down)
            raise ValueError(
                f"a UNet of {levels} levels needs a chunk length that is a multiple of {factor}, got {horizon}"
            )
        films = iter(features.split(self.film_dims, dim=1))
        x = sample.transpose(1, 2)
        skips = []
        for level, (first, second) in enumerate(cast(Levels, self.down)):
            x = second(first(x, next(films)), next(films))
            skips.append(x)
            if level < len(self.downsample):
                x = self.downsample[level](x)
        for block in self.middle:
            x = block(x, next(films))
        for (first, second), upsample in zip(cast(Levels, self.up), self.upsample, strict=True):
            x = torch.cat((x, skips.pop()), dim=1)
            x = upsample(second(first(x, next(films)), next(films)))
        return self.out(x).transpose(1, 2)
