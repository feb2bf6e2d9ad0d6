"""Dispersive losses: hidden features of a batch pushed apart (arXiv:2506.09027), for any family and net.

Differs: squared distances are divided by the number of features in all three losses that use them, so that
temperature and margin mean the same for every layer. DMPO (arXiv:2601.20701) takes the distance itself and clamps it
over the temperature to [-10, 10]: from about 64 features on its gradient is 0. And features come from the pass that
the family's loss makes, not from a second one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from nets.taps import blocks_at, tapped
from nets.velocity import VelocityNet
from reinflow.algos.config import DispersiveConfig
from reinflow.policies.base import Policy
from reinflow.types import Regressable


class Dispersed:
    """Regressable: the loss of `policy` with the dispersion of its net's hidden features on every row."""

    def __init__(self, policy: Policy, config: DispersiveConfig):
        self.policy = policy
        self.config = config
        self.active = config.dispersive != "none" and config.dispersive_weight > 0

    def loss(
        self, cond: Float[Tensor, "b z"], chunk: Float[Tensor, "b h a"], teacher: nn.Module | None = None
    ) -> Float[Tensor, "b"]:
        """Per row, so weights over the rows that average 1 leave the dispersion as it is."""
        regressable = cast(Regressable, self.policy)
        if not self.active:
            return regressable.loss(cond, chunk, teacher)
        net = cast(VelocityNet, self.policy.net)
        with tapped(blocks_at(net.blocks, self.config.dispersive_layer)) as features:
            rows = regressable.loss(cond, chunk, teacher)
        return rows + self.config.dispersive_weight * dispersion(features, self.config)


def dispersion(features: Sequence[Float[Tensor, "b ..."]], config: DispersiveConfig) -> Float[Tensor, ""]:
    """Mean of the chosen loss over layers and passes, in float32 on flat features."""
    loss = LOSSES[config.dispersive]
    return torch.stack([loss(z.flatten(1).float(), config) for z in features]).mean()


def distances(z: Float[Tensor, "b f"]) -> Float[Tensor, "b b"]:
    """Squared, per feature: |z_i - z_j|^2 / f."""
    z = z - z.mean(0)  # small numbers, so that the difference of products keeps its digits
    products = z @ z.T
    norms = products.diagonal()
    return (norms[:, None] + norms[None] - 2 * products).clamp_min(0) / z.shape[1]


def infonce(distance: Float[Tensor, "b b"], temperature: float) -> Float[Tensor, ""]:
    """log mean_ij exp(-D_ij / tau), the diagonal counted; 0 where all rows are the same."""
    return (-distance / temperature).flatten().logsumexp(0) - math.log(distance.numel())


def infonce_l2(z: Float[Tensor, "b f"], config: DispersiveConfig) -> Float[Tensor, ""]:
    """InfoNCE over squared distances per feature."""
    return infonce(distances(z), config.dispersive_temperature)


def infonce_cosine(z: Float[Tensor, "b f"], config: DispersiveConfig) -> Float[Tensor, ""]:
    """InfoNCE over 1 - cos(z_i, z_j)."""
    directions = F.normalize(z, dim=1)
    return infonce(1 - directions @ directions.T, config.dispersive_temperature)


def hinge(z: Float[Tensor, "b f"], config: DispersiveConfig) -> Float[Tensor, ""]:
    """mean_{i != j} max(0, margin - D_ij)^2"""
    rows = len(z)
    short = (config.dispersive_margin - distances(z)).relu().square()
    return (short.sum() - short.diagonal().sum()) / max(rows * (rows - 1), 1)


def covariance(z: Float[Tensor, "b f"], config: DispersiveConfig) -> Float[Tensor, ""]:
    """Mean squared covariance of two features, plus mean_f max(0, 1 - var_f)."""
    dim, freedom = z.shape[1], max(len(z) - 1, 1)
    z = z - z.mean(0)
    var = z.square().sum(0) / freedom
    # |z' z|^2 = |z z'|^2, and there are fewer rows than features
    every = (z @ z.T).square().sum() / freedom**2
    return (every - var.square().sum()) / max(dim * (dim - 1), 1) + (1 - var).relu().mean()


LOSSES: dict[str, Callable[[Tensor, DispersiveConfig], Tensor]] = {
    "infonce_l2": infonce_l2,
    "infonce_cosine": infonce_cosine,
    "hinge": hinge,
    "covariance": covariance,
}
