"""Diffusion Q-learning (arXiv:2208.06193) for any policy whose sampling has gradients: clone, and climb Q.

    loss = rows' own loss - eta Q_i(s, a) / mean |Q_j|,   a sampled with gradients through the whole chain

Differs: i and j are two random members of the ensemble instead of one of two Qs; the targets take the minimum over
random members; actions are chunks; a policy that is evaluated from another scale of x_0 is trained from that one, too.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from reinflow.algos.options import DQLConfig
from reinflow.algos.q_actor import QActor, executed_part
from reinflow.algos.setting import Setting
from reinflow.policies.base import Policy


def normalized_ascent(chosen: Float[Tensor, "b"], other: Float[Tensor, "b"]) -> Float[Tensor, ""]:
    """-mean Q_i / mean |Q_j|: ascent whose strength does not depend on the reward's scale (section 4)."""
    return -chosen.mean() / other.abs().mean().detach().clamp_min(1e-6)


class DQL(QActor):
    """Policy and Qs of one run."""

    def __init__(self, policy: Policy, config: DQLConfig, setting: Setting):
        super().__init__(policy, config.bc, config.q, config.exploration, setting)
        self.eta = config.eta

    def improve(
        self, rows: Float[Tensor, "b"], cond: Float[Tensor, "b z"], action: Float[Tensor, "b ea"]
    ) -> dict[str, Tensor]:
        """Descend the policy's own loss and climb a random member's Q."""
        chunk = self.policy.sample(cond, self.policy.initial_noise(len(cond)))
        q = self.critic.judge(cond.detach(), executed_part(self.policy, chunk))
        chosen, other = torch.randperm(len(q), device=q.device)[[0, -1]]
        ascent = normalized_ascent(q[chosen], q[other])
        metrics = self.cloning.descend(rows.mean() + self.eta * ascent)
        return metrics | {"losses/bc": rows.detach().mean(), "losses/actor_q": q.detach().mean()}
