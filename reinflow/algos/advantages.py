"""Generalised advantage estimation (Schulman et al., arXiv:1506.02438).

Differs: decisions last unequal numbers of env steps (a semi-Markov process), so each has a discount of its own.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reinflow.runtime import distributed


def gae(
    reward: Float[Tensor, "r n"],
    value: Float[Tensor, "r n"],
    next_value: Float[Tensor, "r n"],
    discount: Float[Tensor, "r n"],
    terminated: Bool[Tensor, "r n"],
    ended: Bool[Tensor, "r n"],
    gae_lambda: float,
    valid: Float[Tensor, "r n"] | None = None,
) -> Float[Tensor, "r n"]:
    """Advantages; `discount` is gamma ** executed, `next_value` is V of the decision's true last observation.

    delta = R + discount * (1 - terminated) * V' - V;   A = delta + discount * lambda * (1 - ended) * A_next

    A decision whose `valid` is 0 has no outcome, whatever numbers it holds: A is 0 there, and the one before it
    bootstraps from its V alone.
    """
    delta = reward + torch.where(terminated, 0.0, discount * next_value) - value
    decay = discount * gae_lambda * ~ended
    if valid is not None:
        delta, decay = (torch.where(valid > 0, numbers, 0.0) for numbers in (delta, decay))
    advantage = torch.empty_like(delta)
    following = torch.zeros_like(delta[0])
    for index in range(len(delta) - 1, -1, -1):
        following = torch.addcmul(delta[index], decay[index], following, out=advantage[index])
    return advantage


def mean_value(
    reward: Float[Tensor, "..."],
    discount: Float[Tensor, "..."],
    terminated: Bool[Tensor, "..."],
    valid: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, ""]:
    """The constant V that agrees with all decisions on average, of all processes: what a new critic starts from.

    V = mean R + mean(discount * (1 - terminated)) * V; where nothing ends or is discounted, that of 100 steps.
    """
    counts = torch.ones_like(reward) if valid is None else valid
    columns = (counts, reward, torch.where(terminated, 0.0, discount))
    sums = torch.stack([torch.where(counts > 0, column, 0.0).double().sum() for column in columns])
    count, rewards, goes_on = distributed.total(sums)
    return (rewards / torch.maximum(count - goes_on, 0.01 * count).clamp_min(1e-8)).to(reward.dtype)


def mean_over(values: Float[Tensor, "..."], valid: Float[Tensor, "..."] | None) -> Float[Tensor, ""]:
    """Mean of the values where `valid` is 1, which is all of them when it is None; 0 where there is none."""
    return values.mean() if valid is None else (values * valid).sum() / valid.sum().clamp_min(1)


def normalized(advantages: Float[Tensor, "..."], valid: Float[Tensor, "..."] | None = None) -> Float[Tensor, "..."]:
    """Zero mean and unit std over the whole update batch, of all processes; invalid decisions are no part of it."""
    mean, std = distributed.moments(advantages, valid)
    centred = advantages - mean
    return (centred if valid is None else centred * valid) / (std + 1e-8)


def return_scale(gamma: float) -> float:
    """Size of a discounted return at a reward of 1 per step, 1 / (1 - gamma), for at most 100 steps."""
    return 1 / max(1 - gamma, 0.01)


def explained_variance(
    value: Float[Tensor, "..."], returns: Float[Tensor, "..."], valid: Float[Tensor, "..."] | None = None
) -> Float[Tensor, ""]:
    """1 is a perfect critic, 0 one that knows only the mean, below 0 worse than that; over the rows that are valid."""
    rest, all_of_it = (distributed.moments(x, valid)[1].square() for x in (returns - value, returns))
    return 1 - rest / all_of_it.clamp_min(1e-8)
