"""PPO on chains imagined at remembered states, judged by Qs (OGPO, arXiv:2605.03065).

    a^j ~ lagged policy at a remembered s, j = 1..G;   A_m^j = Q_m(s, a^j) - mean_j Q_m(s, a^j)
    A = min_m A_m where all are positive, max_m A_m where all are negative, else 0
    loss = -min(ratio A, clip(ratio) A) + c_bc * the policy's own loss on demonstrations

Differs, since it collapsed without: chains are drawn from a lagged actor, around which the clipped ratio is a trust
region; targets take the minimum over random members; there are many updates of the Qs for one of the actor; A is
divided by its root mean square; the log-ratio is scaled as in `ppo`.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from reinflow.algos.chain_actor import ChainActor
from reinflow.algos.options import OGPOConfig
from reinflow.algos.ppo import MAX_LOG_RATIO, clipped_surrogate, scaled_log_ratio
from reinflow.algos.q_actor import executed_part
from reinflow.algos.sac import demonstrated_loss
from reinflow.algos.setting import Setting
from reinflow.policies.base import Policy
from reinflow.policies.chain import chain_log_prob, chain_moments, denoise, draws, joint_kl
from reinflow.policies.ema import EMA
from reinflow.types import Chain, Stochastic


def agreed_advantage(q: Float[Tensor, "q s g"]) -> Float[Tensor, "s g"]:
    """What all members agree on, most cautiously: of the same sign the smallest advantage, else 0 (eq. 8)."""
    advantage = q - q.mean(2, keepdim=True)
    low, high = advantage.amin(0), advantage.amax(0)
    return torch.where(low > 0, low, torch.where(high < 0, high, 0.0))


class OGPO(ChainActor):
    """Policy, its lagged copy and Qs of one run."""

    def __init__(self, policy: Policy, actor: Stochastic, config: OGPOConfig, setting: Setting):
        super().__init__(policy, actor, config.chain, config.q, setting)
        self.ogpo = config
        self.lagged = EMA(self.module, decay=1 - config.lag, warm_up=False)
        self.updates = 0

    def update(self, batch: Any) -> dict[str, Tensor]:
        """One step of the Qs, and with every `critic_updates`-th one of the actor."""
        cond, action = self.seen(batch)
        metrics = self.critic.update(cond, action, self.target(batch))
        self.updates += 1
        if self.updates % self.ogpo.critic_updates:
            return metrics
        return metrics | self.improve(cond, batch)

    def improve(self, cond: Float[Tensor, "b z"], batch: Any) -> dict[str, Tensor]:
        """One step of the actor on groups of chains that start at the batch's first states."""
        chosen = torch.randperm(len(cond), device=cond.device)[: self.ogpo.states]
        states = cond[chosen].repeat_interleave(self.ogpo.group, 0)
        chain, advantage = self.imagined(states)
        rms = advantage.square().mean().sqrt()
        means, stds = chain_moments(self.actor, chain.states, states)
        log_prob = chain_log_prob(chain.states, means, stds, self.scored)
        ratio = scaled_log_ratio(log_prob, chain.log_prob, self.num_scored, "sqrt").clamp_max(MAX_LOG_RATIO).exp()
        loss = clipped_surrogate(ratio, advantage / (rms + 1e-8), self.ogpo.clip_ratio)
        imitation = demonstrated_loss(self.policy, cond, batch) if self.ogpo.bc_weight else loss.new_zeros(())
        metrics = self.descend(loss + self.ogpo.bc_weight * imitation)
        self.lagged.update(self.module)
        kl = joint_kl(chain.means, chain.stds, means.detach() if isinstance(means, Tensor) else means, stds.detach(),
                      self.scored)  # fmt: skip
        return metrics | {
            "losses/policy": loss.detach(),
            "losses/bc": imitation.detach(),
            "losses/advantage_rms": rms,
            "losses/disagreement": (advantage == 0).float().mean(),
            "losses/approx_kl": kl.mean(),
            "losses/clip_fraction": ((ratio.detach() - 1).abs() > self.ogpo.clip_ratio).float().mean(),
        }

    @torch.no_grad()
    def imagined(self, states: Float[Tensor, "b z"]) -> tuple[Chain, Float[Tensor, "b"]]:
        """Chains of the lagged actor, a group after the other, and how much better they are than their group."""
        imagining: Any = self.lagged.module
        chain = denoise(imagining, states, *draws(imagining, states), self.scored)
        q = self.critic(states, executed_part(self.policy, chain.chunk))
        return chain, agreed_advantage(q.unflatten(1, (-1, self.ogpo.group))).flatten()

    def state_dict(self) -> dict[str, Any]:
        """As of every `ChainActor`, the lagged copy, and how many updates there were."""
        return super().state_dict() | {"lagged": self.lagged.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        super().load_state_dict(state)
        self.lagged.load_state_dict(state["lagged"])
        self.updates = state["updates"]
