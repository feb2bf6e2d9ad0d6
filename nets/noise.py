"""Learned exploration noise that makes a deterministic flow stochastic (ReinFlow, arXiv:2505.22094).

Differs from the paper: the last layer is zero at first, so that sigma, log-linear in a tanh, starts at the geometric
mean of its bounds; and the tanh's argument is limited smoothly, so that sigma never reaches a bound, where its
gradient would vanish.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from nets.embed import TimeEmbedding
from nets.mlp import MLP

DRIVE_LIMIT = 4.0
"""bound on the argument of tanh: sigma keeps 0.03 % of its log-range away from either bound"""


class BoundedStd(nn.Module):
    """A std kept strictly inside bounds that can be moved: (... a) of any real numbers -> (... a)."""

    log_min_std: Tensor
    log_max_std: Tensor

    def __init__(self, min_std: float = 0.01, max_std: float = 0.3):
        super().__init__()
        self.register_buffer("log_min_std", torch.zeros(()))
        self.register_buffer("log_max_std", torch.zeros(()))
        self.set_bounds_(min_std, max_std)

    def set_bounds_(self, min_std: float, max_std: float) -> None:
        """Change the bounds in place, which captured graphs survive; ValueError unless 0 < min_std <= max_std."""
        if not 0 < min_std <= max_std:
            raise ValueError(f"noise bounds need 0 < min_std <= max_std, got min_std={min_std} and max_std={max_std}")
        self.log_min_std.fill_(math.log(min_std))
        self.log_max_std.fill_(math.log(max_std))

    @property
    def min_std(self) -> Float[Tensor, ""]:
        """The lower bound, as a tensor on the device; no std reaches it."""
        return self.log_min_std.exp()

    @property
    def max_std(self) -> Float[Tensor, ""]:
        """The upper bound, as a tensor on the device; no std reaches it."""
        return self.log_max_std.exp()

    def squash(self, drive: Float[Tensor, "*batch a"]) -> Float[Tensor, "*batch a"]:
        """0 gives the geometric mean of the bounds."""
        z = DRIVE_LIMIT * F.softsign(drive / DRIVE_LIMIT)
        return torch.lerp(self.log_min_std, self.log_max_std, (z.tanh() + 1) / 2).exp()


class ExploreNoiseNet(BoundedStd):
    """Std of the exploration noise of one denoising step, in normalised action units."""

    def __init__(
        self,
        time_embed_dim: int,
        obs_embed_dim: int,
        act_dim: int,
        hidden_dim: int = 128,
        min_std: float = 0.01,
        max_std: float = 0.3,
        horizon: int | None = None,
    ):
        """`horizon=None` gives one std per action dimension, an int one per position and dimension."""
        super().__init__(min_std, max_std)
        self.std_shape = (act_dim,) if horizon is None else (horizon, act_dim)
        self.net = MLP(time_embed_dim + obs_embed_dim, (hidden_dim, hidden_dim), math.prod(self.std_shape))
        for parameter in self.net[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, time_emb: Float[Tensor, "*b t"], obs_emb: Float[Tensor, "*b z"]) -> Float[Tensor, "..."]:
        """(*b a), or (*b h a) with a `horizon`."""
        return self.squash(self.net(torch.cat((time_emb, obs_emb), dim=-1)).unflatten(-1, self.std_shape))


def in_float32(x: Tensor) -> torch.autocast:
    """Inside, nothing is computed in bfloat16: a std with 7 bits would hide what a gradient step changes."""
    return torch.autocast(x.device.type, enabled=False)


class StepNoise(nn.Module):
    """The std of each denoising step's noise, given its time as a number."""

    def __init__(self, explore_noise_net: ExploreNoiseNet, time_embed_dim: int = 64):
        """`time_embed_dim` is the one that `explore_noise_net` was made for."""
        super().__init__()
        self.explore_noise_net = explore_noise_net
        self.time_embedding = TimeEmbedding(time_embed_dim, hidden_factor=2)

    def noise_std(self, t: Float[Tensor, "b_or_1"], obs: Float[Tensor, "b z"], horizon: int) -> Float[Tensor, "b h a"]:
        """At time `t`; independent of the sample, so it needs no velocity."""
        with in_float32(obs):
            std = self.explore_noise_net(self.time_embedding(t).expand(len(obs), -1), obs)
        return std if std.dim() == 3 else std.unsqueeze(1).expand(-1, horizon, -1)

    def noise_stds(self, t: Float[Tensor, "k"], obs: Float[Tensor, "b z"], horizon: int) -> Float[Tensor, "b k h a"]:
        """`noise_std` at each of k times."""
        with in_float32(obs):
            time_emb = self.time_embedding(t).expand(len(obs), -1, -1)
            std = self.explore_noise_net(time_emb, obs.unsqueeze(1).expand(-1, len(t), -1))
        return std if std.dim() == 4 else std.unsqueeze(2).expand(-1, -1, horizon, -1)


class NoisyVelocityUNet1D(StepNoise):
    """A velocity net of any kind together with its exploration noise."""

    def __init__(self, base_net: nn.Module, explore_noise_net: ExploreNoiseNet, time_embed_dim: int = 64):
        super().__init__(explore_noise_net, time_embed_dim)
        self.base_net = base_net

    def forward(
        self,
        x: Float[Tensor, "b h a"],
        t: Float[Tensor, "b_or_1"],
        d: Float[Tensor, "b_or_1"],
        obs: Float[Tensor, "b z"],
        sample_noise: bool = True,
        generator: torch.Generator | None = None,
    ) -> tuple[Float[Tensor, "b h a"], Float[Tensor, "b h a"], Float[Tensor, "b h a"]]:
        """Velocity, noise and its std; the noise is zero unless `sample_noise`. The std may be an expanded view."""
        velocity = self.base_net(x, t, d, obs)
        std = self.noise_std(t, obs, horizon=x.shape[1])
        if not sample_noise:
            return velocity, torch.zeros_like(x), std
        eps = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return velocity, std * eps, std
