"""Q-score matching of a policy that predicts the noise in a chunk (QSM, arXiv:2312.11752; over chunks as DPPO).

    |eps(x, k) - (b x_0 - c grad_a Q(s, x) / mean |Q|)|^2      x = alpha_k a + sigma_k x_0,  a recorded

The score of a policy is -eps but for a factor, so with b = 0 it follows Q alone, as in the paper, and with b = 1 the
demonstrations and Q. Positions of the chunk that the env never executes are cloned.

Differs: b, without which a critic of few demonstrations leads the policy off them; c counts in units of Q's own size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from reinflow.algos.offline_options import QSMConfig
from reinflow.algos.q_actor import QActor, executed_part
from reinflow.algos.setting import Setting
from reinflow.errors import UserError
from reinflow.policies.base import Policy
from reinflow.types import Scored


def q_gradient(
    q: Callable[[Float[Tensor, "b ea"]], Float[Tensor, "q b"]], action: Float[Tensor, "b ea"]
) -> Float[Tensor, "b ea"]:
    """Gradient of the members' mean at `action`, divided by the mean size of Q over rows and members."""
    at = action.detach().requires_grad_(True)
    values = q(at)
    (slope,) = torch.autograd.grad(values.mean(0).sum(), at)
    return slope / values.detach().abs().mean().clamp_min(1e-6)


def score_target(
    noise: Float[Tensor, "b h a"], slope: Float[Tensor, "b e a"], executed: slice, q_score: float, own_noise: float
) -> Float[Tensor, "b h a"]:
    """Noise that a policy is to predict, with Q's `slope` along the executed slice."""
    target = noise.clone()
    target[:, executed] = own_noise * noise[:, executed] - q_score * slope
    return target


class QSM(QActor):
    """Moves the score of the demonstrations by the gradient of Q."""

    policy: Policy

    def __init__(self, policy: Policy, config: QSMConfig, setting: Setting):
        """UserError for a policy that predicts no noise."""
        super().__init__(policy, config.bc, config.q, config.exploration, setting)
        if not isinstance(policy, Scored):
            raise UserError(f"Q-score matching needs a Scored policy, got {type(policy).__name__}: take --family ddpm")
        self.scored: Scored = policy
        self.qsm = config

    def update(self, batch: Any) -> dict[str, Tensor]:
        """One step of the Qs, and one of the policy's score towards what demonstrations and Q ask for."""
        chunk = self.policy.normalize_chunk(batch.chunk)
        cond = self.policy.encode(self.cloning.augmented(batch.obs))
        metrics = self.critic.update(cond.detach(), executed_part(self.policy, chunk), self.target(batch))
        x, level, noise = self.scored.noised(chunk)
        target, slope = self.wanted(cond.detach(), x, noise)
        error = self.scored.noise_in(x, level, cond) - target
        size = slope.square().mean().sqrt()
        return metrics | self.cloning.descend(error.square().mean()) | {"losses/q_slope": size}

    def wanted(
        self, cond: Float[Tensor, "b z"], x: Float[Tensor, "b h a"], noise: Float[Tensor, "b h a"]
    ) -> tuple[Float[Tensor, "b h a"], Float[Tensor, "b e a"]]:
        """The noise to predict in noisy chunks, and Q's slope there."""
        whole = x.shape[1] == self.policy.spec.pred_horizon
        executed = self.policy.spec.executed if whole else slice(None)
        slope = q_gradient(lambda action: self.critic.judge(cond, action), x[:, executed].flatten(1))
        slope = slope.unflatten(1, (-1, x.shape[-1]))
        return score_target(noise, slope, executed, self.qsm.q_score, self.qsm.own_noise), slope
