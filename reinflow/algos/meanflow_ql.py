"""Q-learning of a policy that acts in one step, by its own loss and by Q (MeanFlow-QL, arXiv:2511.13035).

    loss = w * its own loss on the data + (1 - w) * (-Q(s, g(s, z)) / mean |Q|),   g(s, z) = z + u(z, 0, 1)

With MeanFlow, u is the average velocity over the whole interval, so that g is the paper's residual form: the identity
lies outside of the network, in training as in acting. Any other family that acts in one step is trained alike.

Differs: w falls from 1, as the project's earlier MeanFlow with CQL has it, so that Q is heard once it knows something;
z comes from the noise that the policy acts from (`initial_noise_scale`).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from reinflow.algos.dql import normalized_ascent
from reinflow.algos.offline_options import MeanFlowQLConfig
from reinflow.algos.one_step import act_in_one_step_
from reinflow.algos.q_actor import QActor, executed_part
from reinflow.algos.setting import Setting
from reinflow.policies.base import Policy


def falling_share(update: int, final: float, updates: int) -> float:
    """From 1 to `final` in a straight line over `updates`."""
    return 1 - (1 - final) * min(update / max(updates, 1), 1.0)


class MeanFlowQL(QActor):
    """Clones, and climbs Q by one step from noise to action."""

    def __init__(self, policy: Policy, config: MeanFlowQLConfig, setting: Setting):
        """UserError for a family that can't act in one step."""
        act_in_one_step_(policy)
        super().__init__(policy, config.bc, config.q, config.exploration, setting)
        self.config = config

    def improve(
        self, rows: Float[Tensor, "b"], cond: Float[Tensor, "b z"], action: Float[Tensor, "b ea"]
    ) -> dict[str, Tensor]:
        """Descend its own loss and climb the members' mean Q, in shares that follow the update."""
        share = falling_share(self.cloning.ema.updates, self.config.own_share, self.config.own_share_updates)
        chunk = self.policy.sample(cond, self.policy.initial_noise(len(cond)))
        q = self.critic.judge(cond.detach(), executed_part(self.policy, chunk)).mean(0)
        metrics = self.cloning.descend(share * rows.mean() + (1 - share) * normalized_ascent(q, q))
        return metrics | {
            "losses/bc": rows.detach().mean(),
            "losses/actor_q": q.detach().mean(),
            "losses/own_share": torch.tensor(share),
        }
