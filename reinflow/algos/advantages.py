"""Generalised advantage estimation (Schulman et al., arXiv:1506.02438).

Differs: decisions last unequal numbers of env steps (a semi-Markov process), so each has a discount of its own.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reinflow import distributed


def gae(
    reward: Float[Tensor, "r n"],
    value: Float[Tensor, "r n"],
    next_value: Float[Tensor, "r n"],
    discount: Float[Tensor, "r n"],
    terminated: Bool[Tensor, "r n"],
    ended: Bool[Tensor, "r n"],
    gae_lambda: float,
) -> Float[Tensor, "r n"]:
    """Advantages; `discount` is gamma ** executed, `next_value` is V of the decision's true last observation.

    delta = R + discount * (1 - terminated) * V' - V;   A = delta + discount * lambda * (1 - ended) * A_next
    """
    delta = reward + discount * ~terminated * next_value - value
    decay = discount * gae_lambda * ~ended
    advantage = torch.empty_like(delta)
    following = torch.zeros_like(delta[0])
    for index in range(len(delta) - 1, -1, -1):
        following = torch.addcmul(delta[index], decay[index], following, out=advantage[index])
    return advantage


def normalized(advantages: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Zero mean and unit std over the whole update batch, of all processes."""
    mean, std = distributed.moments(advantages)
    return (advantages - mean) / (std + 1e-8)


def return_scale(gamma: float) -> float:
    """Size of a discounted return at a reward of 1 per step, 1 / (1 - gamma), for at most 100 steps."""
    return 1 / max(1 - gamma, 0.01)


def explained_variance(value: Float[Tensor, "..."], returns: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """1 is a perfect critic, 0 one that knows only the mean, below 0 worse than that."""
    return 1 - distributed.variance(returns - value) / distributed.variance(returns).clamp_min(1e-8)
