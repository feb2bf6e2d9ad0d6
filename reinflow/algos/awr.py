"""Advantage-weighted regression of any Regressable policy on chunks (AWAC, arXiv:2006.09359).

On a ShortCut Flow it is AW-ShortCut. Differs: advantages are centred and divided by their std, so that `beta` does not
depend on the reward's scale, nor a weight on how far V is behind Q; weights are clipped and divided by their mean.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from reinflow.algos.advantages import normalized
from reinflow.algos.bc import BehaviorCloning
from reinflow.algos.config import AWRConfig, BCConfig, CriticConfig
from reinflow.algos.critics import Critics
from reinflow.policies.base import Policy
from reinflow.runtime import distributed


def advantage_weights(advantage: Float[Tensor, "b"], beta: float, weight_clip: float) -> Float[Tensor, "b"]:
    """min(exp(beta * (A - mean(A)) / std(A)), clip), mean and std over the rows of all processes."""
    return (beta * normalized(advantage)).exp().clamp_max(weight_clip)


def effective_sample_size(weight: Float[Tensor, "b"]) -> Float[Tensor, ""]:
    """(sum w)^2 / (b sum w^2): 1 when all weights are equal, 1/b when one row decides."""
    return weight.sum().square() / (len(weight) * weight.square().sum())


class AdvantageWeightedRegression(BehaviorCloning):
    """Behaviour cloning whose rows are weighted by critics that learn beside it."""

    def __init__(
        self, policy: Policy, config: BCConfig, awr: AWRConfig, critics: CriticConfig, total_iters: int | None
    ):
        super().__init__(policy, config, total_iters)
        self.awr = awr
        spec = policy.spec
        self.critics = Critics(spec.cond_dim, spec.act_horizon * spec.action_dim, critics)
        self.critics.to(policy.device)

    def executed(self, chunk: Float[Tensor, "b h a"]) -> Float[Tensor, "b ea"]:
        """The critics' action: the executed slice of a normalised chunk, flat."""
        return chunk[:, self.policy.spec.executed].flatten(1)

    def update(self, batch: Any) -> dict[str, Tensor]:
        """One step of the critics and one of the policy on a batch of transitions."""
        rows, cond = self.regression(batch)
        cond = cond.detach()
        action = self.executed(self.policy.normalize_chunk(batch.chunk))
        with torch.no_grad():
            next_cond = self.ema.module.encode(batch.next_obs)
            noise = self.ema.module.initial_noise(len(next_cond))
            next_action = self.executed(self.ema.module.sample(next_cond, noise).clamp(-1, 1))
        advantage, metrics = self.critics.update(
            cond, action, batch.reward, batch.discount, batch.terminated, next_cond, next_action
        )
        weight = advantage_weights(advantage, self.awr.beta, self.awr.weight_clip)
        metrics |= self.descend((weight * rows).mean() / distributed.mean(weight.mean()))
        return metrics | {
            "losses/advantage_mean": advantage.mean(),
            "losses/advantage_std": distributed.moments(advantage)[1],
            "losses/weights_clipped": (weight >= self.awr.weight_clip).float().mean(),
            "losses/effective_sample_size": effective_sample_size(weight),
        }

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """V and the Qs that it was fitted to, in units of the env's own reward, and the weights themselves."""
        critics = {"critic": self.critics.unscaled_value().state_dict(), "q": self.critics.unscaled_q().state_dict()}
        return critics | super().parts()

    @staticmethod
    def worries(values: dict[str, float]) -> list[str]:
        """Whether the weights still tell rows apart."""
        if values.get("losses/weights_clipped", 0.0) > 0.5:
            return ["more than half of the advantage weights were clipped, so they are equal: lower --beta"]
        return []

    def state_dict(self) -> dict[str, Any]:
        """As of cloning, and the critics."""
        return super().state_dict() | {"critics": self.critics.training_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        super().load_state_dict(state)
        self.critics.load_training_state(state["critics"])
