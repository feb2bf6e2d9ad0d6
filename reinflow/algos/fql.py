"""Flow Q-learning (FQL, arXiv:2502.02538): a flow clones the data, and a one-step policy beside it climbs Q.

    one-step policy pi:  alpha |pi(s, z) - flow(s, z)|^2 - Q(s, pi(s, z)) / mean |Q|,   flow in all its K steps
    Q:                   R + Gamma Q'(s', pi(s', z'))

No gradient goes through the chain, and the policy that is kept acts in one step.

Differs: the one-step policy is a second network of the flow's own family, x_1 = x_0 + u(x_0, 0, 1), which starts as the
flow; z comes from the noise that the flow acts from (`initial_noise_scale`); it is taught by the flow's moving average
and evaluated as its own one; pictures are encoded as the flow does, whose encoder learns by cloning alone.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reinflow.algos.dql import normalized_ascent
from reinflow.algos.guard import StepGuard
from reinflow.algos.offline_options import FQLConfig
from reinflow.algos.one_step import act_in_one_step_
from reinflow.algos.q_actor import QActor, executed_part
from reinflow.algos.setting import Setting
from reinflow.policies.base import Policy
from reinflow.policies.ema import EMA
from reinflow.runtime import distributed
from reinflow.types import Decision, Obs


def one_step_loss(
    own: Float[Tensor, "b h a"], taught: Float[Tensor, "b h a"], q: Float[Tensor, "q b"], distillation: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """alpha times the mean squared distance of chunks, minus the members' mean Q over its size; and that distance."""
    distance = (own - taught.detach()).square().mean()
    return distillation * distance + normalized_ascent(q.mean(0), q.mean(0)), distance


class FQL(QActor):
    """Clones the flow; distils it, under Q, into what acts."""

    def __init__(self, policy: Policy, config: FQLConfig, setting: Setting):
        """UserError for a family that can't act in one step."""
        self.fql = config
        self.one_step = copy.deepcopy(policy)
        act_in_one_step_(self.one_step)
        self.one_step.encoder = policy.encoder
        self.one_step_average = EMA(self.one_step, config.bc.ema_decay)
        super().__init__(policy, config.bc, config.q, config.exploration, setting)
        shared = {id(parameter) for parameter in policy.encoder.parameters()}
        self.parameters = [p for p in self.one_step.parameters() if id(p) not in shared]
        self.optimizer = torch.optim.Adam(self.parameters, lr=config.lr_one_step, fused=True)
        self.guard = StepGuard()

    @property
    def average(self) -> Policy:
        """The moving average of the one-step policy, which is evaluated and acts in TD targets."""
        return self.one_step_average.module

    @torch.no_grad()
    def act(self, obs: Obs, generator: torch.Generator) -> Decision:
        """What the one-step policy makes of noise, with noise added."""
        cond = self.one_step.encode(obs)
        chunk = self.one_step.sample(cond, self.explored_start(len(cond), generator))
        return self.decided(self.disturbed(chunk, generator))

    def improve(
        self, rows: Float[Tensor, "b"], cond: Float[Tensor, "b z"], action: Float[Tensor, "b ea"]
    ) -> dict[str, Tensor]:
        """Clone with the flow, and move the one-step policy towards the flow's actions and up Q."""
        metrics = self.descend_one_step(cond.detach())
        return metrics | self.cloning.descend(rows.mean())

    def descend_one_step(self, cond: Float[Tensor, "b z"]) -> dict[str, Tensor]:
        """One step of the one-step policy; both start from the same noise."""
        z = self.one_step.initial_noise(len(cond))
        with torch.no_grad():
            taught = self.cloning.evaluated.sample(cond, z)
        own = self.one_step.sample(cond, z)
        q = self.critic.judge(cond, executed_part(self.policy, own))
        loss, distance = one_step_loss(own, taught, q, self.fql.distillation)
        self.optimizer.zero_grad()
        loss.backward()
        distributed.average_gradients_(self.parameters)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.cloning.config.max_grad_norm)
        self.guard.step(loss, [(self.optimizer, norm)])
        self.one_step_average.update(self.one_step)
        return {
            "losses/one_step": loss.detach(),
            "losses/distillation": distance.detach(),
            "losses/actor_q": q.detach().mean(),
            "losses/grad_norm_one_step": norm,
            **{f"losses/one_step_{name}": count for name, count in self.guard.metrics().items()},
        }

    def state_dict(self) -> dict[str, Any]:
        """As of its base, and the one-step policy."""
        one_step = {
            "policy": self.one_step.state_dict(),
            "average": self.one_step_average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        return super().state_dict() | {"one_step": one_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        super().load_state_dict(state)
        self.one_step.load_state_dict(state["one_step"]["policy"])
        self.one_step_average.load_state_dict(state["one_step"]["average"])
        self.optimizer.load_state_dict(state["one_step"]["optimizer"])
        self.guard.reset()
