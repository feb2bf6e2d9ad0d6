"""How the next state of a denoising chain is drawn: a normal distribution of every number, or a mixture of several.

What is counted are the `scored` numbers alone (`reinflow.policies.chain.scored_dims`); a mixture without some of its
numbers is still one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Transition:
    """p(x_{k+1} | x_k) of one step, or of all steps at once with the steps `k` after the rows `b`."""

    means: Float[Tensor, "b *k_m h a"]
    """(.. h a), or (.. m h a) of `m` modes"""
    stds: Float[Tensor, "b *k h a"]
    """of every mode; may be broadcast along h"""
    log_weights: Float[Tensor, "b *k m"] | None = None
    """of the modes, normalised; None is a single one"""

    @classmethod
    def stacked(cls, steps: Sequence[Transition]) -> Transition:
        """Single steps as one of all."""
        weights = [step.log_weights for step in steps if step.log_weights is not None]
        means, stds = torch.stack([step.means for step in steps], 1), torch.stack([step.stds for step in steps], 1)
        return cls(means, stds, torch.stack(weights, 1) if weights else None)

    @classmethod
    def of(cls, centres: Tensor | dict[str, Tensor], stds: Float[Tensor, "b *k h a"]) -> Transition:
        """From what a rollout kept."""
        return cls(**centres, stds=stds) if isinstance(centres, dict) else cls(centres, stds)

    def in_float32(self) -> Transition:
        """For densities, of what a network may have given in bfloat16."""
        weights = None if self.log_weights is None else self.log_weights.float()
        return Transition(self.means.float(), self.stds.float(), weights)

    @property
    def centres(self) -> Tensor | dict[str, Tensor]:
        """All but the stds, for a rollout to keep."""
        return self.means if self.log_weights is None else {"means": self.means, "log_weights": self.log_weights}

    def draw(self, x: Float[Tensor, "b h a"], eps: Float[Tensor, "b h a"]) -> Float[Tensor, "b h a"]:
        """x_{k+1} of one step, by standard normal `eps`; x_k chooses the mode where there are several."""
        return self.mean_from(x) + self.stds * eps

    def mean_from(self, x: Float[Tensor, "b h a"]) -> Float[Tensor, "b h a"]:
        """The mean of one step, that of the mode that standard normal x chooses by the weights (Gumbel's trick)."""
        if self.log_weights is None:
            return self.means
        modes = self.log_weights.shape[1]
        gumbel = -(-torch.special.log_ndtr(x.flatten(1)[:, :modes])).log()
        mode = (self.log_weights + gumbel).argmax(1)
        return self.means[torch.arange(len(mode), device=mode.device), mode]

    def log_prob(self, x: Float[Tensor, "b k h a"], scored: Bool[Tensor, "k h a"]) -> Float[Tensor, "b"]:
        """Of the next states x, summed over steps."""
        if self.log_weights is None:
            return scored_sum(log_normal(x, self.means, self.stds), scored)
        density = log_normal(x.unsqueeze(2), self.means, self.stds.unsqueeze(2))
        modes = (density * scored.unsqueeze(1)).sum((-1, -2)) + self.log_weights
        return modes.logsumexp(-1).sum(1)

    def kl(self, new: Transition, scored: Bool[Tensor, "k h a"]) -> Float[Tensor, "b"]:
        """KL(this || new) in nats, in closed form; of a mixture together with its mode, which is never less."""
        if self.log_weights is None or new.log_weights is None:
            return scored_sum(kl_normal(self.means, self.stds, new.means, new.stds), scored)
        kl = kl_normal(self.means, self.stds.unsqueeze(2), new.means, new.stds.unsqueeze(2))
        modes = (kl * scored.unsqueeze(1)).sum((-1, -2)) + self.log_weights - new.log_weights
        return (self.log_weights.exp() * modes).sum((1, 2))


def log_normal(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log N(x; mean, std) of every number."""
    z = (x - mean) / std
    return -0.5 * z.square() - std.log() - LOG_SQRT_2PI


def kl_normal(old_mean: Tensor, old_std: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """KL(old || new) of every number."""
    ratio = old_std / std
    return 0.5 * (ratio.square() + ((old_mean - mean) / std).square() - 1) - ratio.log()


def scored_sum(values: Float[Tensor, "b k h a"], scored: Bool[Tensor, "k h a"]) -> Float[Tensor, "b"]:
    """Per row, the sum over all steps of those numbers that count."""
    return (values * scored).sum((1, 2, 3))
