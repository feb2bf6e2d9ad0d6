"""Offline critics over action chunks: a Q ensemble and an expectile value network.

After IQL (arXiv:2110.06169) and REDQ's minimum over random members (arXiv:2101.05982). Differs: Q bootstraps from the
policy's own next chunk instead of V, which is trained to start Stage 3.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from nets.critic import QEnsemble, ValueNetwork
from reinflow.algos.advantages import return_scale
from reinflow.algos.config import CriticConfig
from reinflow.algos.guard import StepGuard
from reinflow.algos.q_learning import expected_minimum, random_minimum, td_target
from reinflow.policies.ema import EMA
from reinflow.runtime import distributed


def expectile_loss(q: Float[Tensor, "b"], value: Float[Tensor, "b"], expectile: float) -> Float[Tensor, ""]:
    """Pull `value` towards an upper expectile of `q` (IQL, eq. 5). Above 0.5 is optimistic."""
    gap = q - value
    weight = torch.where(gap > 0, expectile, 1 - expectile)
    return (weight * gap.square()).mean()


class Critics(nn.Module):
    """Q ensemble, its targets, and V, with their optimiser."""

    def __init__(self, cond_dim: int, chunk_dim: int, config: CriticConfig):
        super().__init__()
        self.config = config
        self.q = QEnsemble(cond_dim, chunk_dim, config.num_qs, config.q_hidden_dim)
        self.target = EMA(self.q, decay=1 - config.tau, warm_up=False)
        self.target_q = self.target.module
        self.value = ValueNetwork(cond_dim, scale=return_scale(config.gamma))
        self.optimizer = torch.optim.Adam(self.trained(), lr=config.lr_critic, fused=True)
        self.guard = StepGuard()

    def start_at_(self, level: Float[Tensor, ""]) -> None:
        """Let new Qs and V start from one value, the demonstrations' `mean_value`, in units of the env's own reward.

        From 0 the lagging targets would take thousands of iterations to come near the returns.
        """
        for net in (self.q, self.target_q, self.value):
            net.shift_(self.config.reward_scale * level)

    def trained(self) -> list[nn.Parameter]:
        """What the optimiser moves."""
        return [*self.q.parameters(), *self.value.parameters()]

    def update(
        self,
        cond: Float[Tensor, "b z"],
        action: Float[Tensor, "b ea"],
        reward: Float[Tensor, "b"],
        discount: Float[Tensor, "b"],
        terminated: Bool[Tensor, "b"],
        next_cond: Float[Tensor, "b z"],
        next_action: Float[Tensor, "b ea"],
    ) -> tuple[Float[Tensor, "b"], dict[str, Tensor]]:
        """One step of Q towards the TD target, of V towards Q's expectile, and of the targets towards Q.

        Returns the advantages before the step, of the very Qs that V was fitted to, and metrics.
        """
        with torch.no_grad():
            next_q = self.pessimistic(self.target_q(next_cond, next_action))
            target = td_target(self.config.reward_scale * reward, discount, terminated, next_q)
            behaviour_q = self.behaviour_q(cond, action)
        q = self.q(cond, action)
        q_loss = F.mse_loss(q, target.expand_as(q)) * self.config.num_qs
        value = self.value(cond)
        value_loss = expectile_loss(behaviour_q, value, self.config.expectile)
        self.optimizer.zero_grad()
        loss = q_loss + value_loss
        loss.backward()
        distributed.average_gradients_(self.trained())
        norm = nn.utils.get_total_norm([p.grad for p in self.trained() if p.grad is not None])
        self.guard.step(loss, [(self.optimizer, norm)])
        self.target.update(self.q)
        return behaviour_q - value.detach(), {
            "losses/q": q_loss.detach() / self.config.num_qs,
            "losses/value": value_loss.detach(),
            "losses/q_mean": q.detach().mean(),
            "losses/q_std": q.detach().std(0).mean(),
            "losses/value_mean": value.detach().mean(),
            **{f"losses/critic_{name}": count for name, count in self.guard.metrics().items()},
        }

    def pessimistic(self, q: Float[Tensor, "q b"]) -> Float[Tensor, "b"]:
        """Minimum over `num_min_qs` random members."""
        return random_minimum(q, self.config.num_min_qs)

    def behaviour_q(self, cond: Float[Tensor, "b z"], action: Float[Tensor, "b ea"]) -> Float[Tensor, "b"]:
        """What V is fitted to: `pessimistic` without its chance, which would move all advantages of a batch at once."""
        return expected_minimum(self.target_q(cond, action), self.config.num_min_qs)

    @torch.no_grad()
    def advantage(self, cond: Float[Tensor, "b z"], action: Float[Tensor, "b ea"]) -> Float[Tensor, "b"]:
        """What V is fitted to, minus V."""
        return self.behaviour_q(cond, action) - self.value(cond)

    def unscaled_value(self) -> ValueNetwork:
        """A copy of V in units of the env's own reward, as Stage 3 uses it."""
        value = copy.deepcopy(self.value)
        value.scale.div_(self.config.reward_scale)
        return value

    @torch.no_grad()
    def unscaled_q(self) -> QEnsemble:
        """A copy of the slowly moving Qs in units of the env's own reward."""
        return copy.deepcopy(self.target_q).rescale_(1 / self.config.reward_scale)

    def training_state(self) -> dict[str, Any]:
        """What a resume needs of Qs, their targets, V and the optimiser, its tensors live."""
        return {"critics": self.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Go on from a `training_state`, the optimiser's moments included."""
        self.load_state_dict(state["critics"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.guard.reset()
