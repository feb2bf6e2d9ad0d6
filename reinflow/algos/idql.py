"""Implicit diffusion Q-learning (arXiv:2304.10573): a cloned policy that acts with the best of its samples.

    Q <- R + gamma**tau V(s');   V <- an expectile of the target Qs;   the policy is cloned alone

It explores by drawing one of its samples with a weight of |expectile - [Q < V]|, and is evaluated with the best of
them. Differs: Q is the mean of an ensemble's targets, V is fitted to the mean of their minimum over random members,
and the policy is cloned on demonstrations and own decisions alike.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nets.critic import ValueNetwork
from reinflow.algos.advantages import return_scale
from reinflow.algos.critics import expectile_loss
from reinflow.algos.guard import StepGuard
from reinflow.algos.options import IDQLConfig
from reinflow.algos.q_actor import QActor
from reinflow.algos.q_learning import expected_minimum, td_target
from reinflow.algos.setting import Setting
from reinflow.policies.base import Policy
from reinflow.policies.wrapped import BestOf, taken
from reinflow.types import Decision, Obs


def expectile_weights(q: Float[Tensor, "b n"], value: Float[Tensor, "b"], expectile: float) -> Float[Tensor, "b n"]:
    """|expectile - [Q < V]|: how likely each sample is drawn, up to a factor (section 4.1)."""
    return torch.where(q < value[:, None], 1 - expectile, expectile)


class IDQL(QActor):
    """Policy, Qs and V of one run."""

    def __init__(self, policy: Policy, config: IDQLConfig, setting: Setting):
        super().__init__(policy, config.bc, config.q, config.exploration, setting)
        self.config = config
        self.v = ValueNetwork(policy.spec.cond_dim, scale=return_scale(setting.gamma)).to(policy.device)
        start = setting.parts.get("critic", {})
        self.v_is_new = start.keys() != self.v.state_dict().keys()
        if not self.v_is_new:
            self.v.load_state_dict(start)
        self.v_optimizer = torch.optim.Adam(self.v.parameters(), lr=config.q.lr_critic, fused=True)
        self.guard = StepGuard()
        self.best = BestOf(self.average, self.critic.target_q, config.num_samples)

    @property
    def evaluated(self) -> BestOf:
        """The averaged policy, which acts with the best of its samples."""
        return self.best

    def start_at_(self, level: Float[Tensor, ""]) -> None:
        """Let new Qs and a new V start from one value."""
        super().start_at_(level)
        if self.v_is_new:
            self.v.shift_(level)

    @torch.no_grad()
    def act(self, obs: Obs, generator: torch.Generator) -> Decision:
        """One of the policy's samples, better ones more likely, with noise added."""
        cond = self.average.encode(obs)
        shape = (len(cond), *self.best.noise_shape)
        noise = torch.randn(shape, generator=generator, device=self.policy.device)
        chunks = self.best.candidates(cond, self.exploration.explore_noise_scale * noise)
        q = self.critic.unit * self.best.judged(cond, chunks)
        weights = expectile_weights(q, self.v(cond), self.config.explore_expectile)
        chosen = torch.multinomial(weights, 1, generator=generator).squeeze(1)
        return self.decided(self.disturbed(taken(chunks, chosen), generator))

    @torch.no_grad()
    def target(self, batch: Any) -> Float[Tensor, "b"]:
        """The TD target, with V of what followed."""
        return td_target(batch.reward, batch.discount, batch.terminated, self.v(self.average.encode(batch.next_obs)))

    @torch.no_grad()
    def value(self, obs: Obs) -> Float[Tensor, "n"]:
        """V."""
        return self.v(self.policy.encode(obs))

    def improve(
        self, rows: Float[Tensor, "b"], cond: Float[Tensor, "b z"], action: Float[Tensor, "b ea"]
    ) -> dict[str, Tensor]:
        """Move V towards the expectile of Q, and clone."""
        metrics = self.step_of_value(cond.detach(), action)
        return metrics | self.cloning.descend(rows.mean())

    def step_of_value(self, cond: Float[Tensor, "b z"], action: Float[Tensor, "b ea"]) -> dict[str, Tensor]:
        """One gradient step of V."""
        with torch.no_grad():
            q = expected_minimum(self.critic.slow(cond, action), self.critic.config.num_min_qs)
        value = self.v(cond)
        loss = expectile_loss(q, value, self.config.expectile) / self.critic.unit**2
        self.v_optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in self.v.parameters() if p.grad is not None])
        self.guard.step(loss, [(self.v_optimizer, norm)])
        skipped = {f"losses/value_{name}": count for name, count in self.guard.metrics().items()}
        return {"losses/value": loss.detach(), "losses/advantage_mean": (q - value.detach()).mean(), **skipped}

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """V and the Qs."""
        return super().parts() | {"critic": self.v.state_dict()}

    def state_dict(self) -> dict[str, Any]:
        """As of every `QActor`, and V."""
        return super().state_dict() | {"v": self.v.state_dict(), "v_optimizer": self.v_optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        super().load_state_dict(state)
        self.v.load_state_dict(state["v"])
        self.v_optimizer.load_state_dict(state["v_optimizer"])
        self.guard.reset()
