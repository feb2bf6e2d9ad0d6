"""Soft actor-critic (arXiv:1812.05905) over the stochastic chain of any policy, and RLPD (arXiv:2302.02948) with it.

On a Gaussian it is SAC; on a flow the density is that of the whole noisy chain, as in SAC Flow (arXiv:2509.25756).
RLPD is SAC with an ensemble, LayerNorm, and half of each batch from demonstrations. Differs: actions are chunks and
limited to [-1, 1] instead of squashed by tanh; the temperature holds the noise at a target std, per number; targets
hold no entropy unless asked for; a clone may go on being cloned by `bc_weight`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from reinflow.algos.chain_actor import ChainActor
from reinflow.algos.options import SACConfig
from reinflow.algos.q_actor import executed_part
from reinflow.algos.q_learning import td_target
from reinflow.algos.setting import Setting
from reinflow.policies.base import Policy
from reinflow.policies.transition import LOG_SQRT_2PI
from reinflow.types import Stochastic


def target_entropy(std: float, num_steps: int) -> float:
    """Of one number of one of `num_steps` steps whose noises add up to `std`, in nats: log(std / sqrt(K)) + 1.42."""
    return math.log(std * num_steps**-0.5) + 0.5 + LOG_SQRT_2PI


class SAC(ChainActor):
    """Policy, Qs and temperature of one run."""

    def __init__(self, policy: Policy, actor: Stochastic, config: SACConfig, setting: Setting):
        super().__init__(policy, actor, config.chain, config.q, setting)
        self.sac = config
        self.aim = target_entropy(config.target_std, actor.num_steps)
        self.log_temperature = torch.tensor(math.log(0.01), device=policy.device, requires_grad=True)
        self.temperature_optimizer = torch.optim.Adam([self.log_temperature], lr=config.lr_temperature)

    @torch.no_grad()
    def target(self, batch: Any) -> Float[Tensor, "b"]:
        """The TD target with a chunk that is drawn now, and its entropy where asked for."""
        cond = self.policy.encode(batch.next_obs)
        chain = self.chain(cond)
        value = self.critic.bootstrap(cond, executed_part(self.policy, chain.chunk))
        if self.sac.entropy_in_target:
            surprise = chain.log_prob / self.num_scored
            value = value - self.critic.unit * self.log_temperature.exp() * surprise
        return td_target(batch.reward, batch.discount, batch.terminated, value)

    def update(self, batch: Any) -> dict[str, Tensor]:
        """One step of the Qs, one of the policy, one of the temperature."""
        cond, action = self.seen(batch)
        metrics = self.critic.update(cond, action, self.target(batch))
        chain = self.chain(cond)
        q = self.critic.judge(cond, executed_part(self.policy, chain.chunk)).mean(0)
        surprise = (chain.log_prob / self.num_scored).mean()
        loss = self.log_temperature.detach().exp() * surprise - q.mean() / self.critic.unit
        if self.sac.bc_weight:
            loss = loss + self.sac.bc_weight * self.imitation(cond, batch)
        metrics |= self.descend(loss)
        self.warm(-surprise.detach())
        return metrics | {
            "losses/actor_q": q.detach().mean(),
            "losses/entropy": -surprise.detach(),
            "losses/temperature": self.log_temperature.detach().exp(),
        }

    def imitation(self, cond: Float[Tensor, "b z"], batch: Any) -> Float[Tensor, ""]:
        """The policy's own loss, mean over the demonstrations of the batch."""
        return demonstrated_loss(self.policy, cond, batch)

    def warm(self, entropy: Float[Tensor, ""]) -> None:
        """Raise the temperature where the entropy is below its aim, else lower it (section 5)."""
        self.temperature_optimizer.zero_grad()
        (self.log_temperature * (entropy - self.aim)).backward()
        self.temperature_optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """As of every `ChainActor`, and the temperature."""
        temperature = {"log": self.log_temperature.detach(), "optimizer": self.temperature_optimizer.state_dict()}
        return super().state_dict() | {"temperature": temperature}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        super().load_state_dict(state)
        with torch.no_grad():
            self.log_temperature.copy_(state["temperature"]["log"])
        self.temperature_optimizer.load_state_dict(state["temperature"]["optimizer"])


def demonstrated_loss(policy: Policy, cond: Float[Tensor, "b z"], batch: Any) -> Float[Tensor, ""]:
    """A policy's own loss, mean over the demonstrations of a mixed batch; 0 where there are none."""
    if batch.demonstrated is None:
        return cond.new_zeros(())
    rows = policy.loss(cond, policy.normalize_chunk(batch.chunk))  # type: ignore[operator]
    return (rows * batch.demonstrated).sum() / batch.demonstrated.sum().clamp_min(1)
