"""Conditional 1-D UNet over an action chunk, as in Diffusion Policy (arXiv:2303.04137), for shortcut flows.

Differs from Diffusion Policy: flow time and step size are continuous and have an embedding each; FiLM scales by 1 +
gain, so that a block starts near its unconditioned self; the condition passes a linear layer before its Mish, which
folds what is below -1.2 onto what is above, so that raw normalised states would lose their sign; and the FiLM terms of
all blocks come from two products, one of the times and one of the condition, because `W [mish(times), mish(c)] = W_t
mish(times) + W_c mish(c)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from nets.embed import StepEmbedding
from nets.velocity import VelocityNet


class LocalConv1d(nn.Conv1d):
    """Same-padded convolution, as a dense product where that is faster.

    Where the sequence is at most half the kernel long most taps meet padding only: with a kernel of 5 and a length of
    2, 6 of 10 products are with zeros. And for a few rows on a CPU, torch's convolution reads its weights several times
    slower than a product of their windows does.
    """

    min_rows = 64
    """rows from which rearranging the weights for a short sequence costs less than it saves (measured on a CPU)"""
    few_rows = 4
    """rows up to which windows are faster (measured on a CPU)"""

    def __init__(self, in_dim: int, out_dim: int, kernel_size: int):
        self.centre = kernel_size // 2
        super().__init__(in_dim, out_dim, kernel_size, padding=self.centre)

    def forward(self, x: Float[Tensor, "b i h"]) -> Float[Tensor, "b o h"]:
        """The same convolution by whichever product is fastest for this number of rows and this length."""
        rows, _, length = x.shape
        centre = self.centre
        if rows <= self.few_rows and x.device.type == "cpu":
            windows = F.pad(x, (centre, centre)).unfold(2, self.kernel_size[0], 1).transpose(1, 2)
            return F.linear(windows.flatten(2), self.weight.flatten(1), self.bias).transpose(1, 2)
        if length > centre or rows < self.min_rows:
            return super().forward(x)
        # output position p meets input position j through tap centre - p + j
        taps = torch.stack([self.weight[:, :, centre - p : centre - p + length] for p in range(length)], dim=1)
        bias = cast(Tensor, self.bias).repeat_interleave(length)
        out = F.linear(x.flatten(1), taps.flatten(2).flatten(0, 1), bias)
        return out.unflatten(1, (self.out_channels, length))


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
        self.skip = nn.Conv1d(in_dim, out_dim, 1) if in_dim != out_dim else nn.Identity()

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
        self.downsample = nn.ModuleList(nn.Conv1d(o, o, 3, stride=2, padding=1) for o in down_dims[:-1])
        self.middle = nn.ModuleList(block(down_dims[-1], down_dims[-1]) for _ in range(2))
        ups = tuple(zip(down_dims[:0:-1], down_dims[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ModuleList((block(2 * i, o), block(o, o))) for i, o in ups)
        self.upsample = nn.ModuleList(nn.ConvTranspose1d(o, o, 4, stride=2, padding=1) for _, o in ups)
        self.out = nn.Sequential(
            ConvBlock(down_dims[0], down_dims[0], kernel_size, n_groups), nn.Conv1d(down_dims[0], input_dim, 1)
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
