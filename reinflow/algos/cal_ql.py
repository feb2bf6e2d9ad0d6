"""Calibrated Q-learning, its offline part (Cal-QL, arXiv:2303.05479): CQL whose Q is not pushed below what was earned.

    candidates: actions even over the demonstrated range, and the policy's own, whose Q counts max(Q, G)
    G: the discounted return that followed the recorded action;   target: the best of several next actions

Q then has the size of real returns, so that what an off-policy run collects isn't unlearnt first.

Differs: the policy is CQL's here, which clones and climbs in one step, in place of a Gaussian by soft actor-critic, and
so candidates have no importance weights.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from reinflow.algos.cql import CQL, uniform_actions
from reinflow.algos.offline_options import CalQLConfig
from reinflow.algos.q_actor import executed_part
from reinflow.algos.q_learning import random_minimum, td_target
from reinflow.algos.setting import Setting
from reinflow.errors import UserError
from reinflow.policies.base import Policy


def calibrated(candidates: Float[Tensor, "q b n"], return_to_go: Float[Tensor, "b"]) -> Float[Tensor, "q b n"]:
    """Qs of the policy's actions, nowhere below the return that followed the recorded one.

    No gradient pushes those down that already are.
    """
    return torch.maximum(candidates, return_to_go[:, None])


class CalQL(CQL):
    """`CQL` that knows the returns of its data."""

    def __init__(self, policy: Policy, config: CalQLConfig, setting: Setting):
        """UserError for a family that can't act in one step."""
        super().__init__(policy, config, setting)
        self.cal_ql = config

    def penalty(self, batch: Any, cond: Float[Tensor, "b z"], action: Float[Tensor, "b ea"]) -> Float[Tensor, ""]:
        """CQL's term, over both kinds of candidates. UserError for a batch without returns."""
        if batch.return_to_go is None:
            raise UserError("Cal-QL needs the returns that followed, which only whole recorded episodes have")
        uniform = self.values(cond, uniform_actions(action, self.cql.cql_samples))
        own = self.values(cond, self.own_actions(cond, self.cql.cql_samples))
        return self.weighted(torch.cat((uniform, calibrated(own, batch.return_to_go)), -1), cond, action)

    @torch.no_grad()
    def own_actions(self, cond: Float[Tensor, "b z"], number: int) -> Float[Tensor, "b n ea"]:
        """Several actions of the averaged policy per row, from noise of scale 1: from a scale of 0 all would be one."""
        rows = cond.repeat_interleave(number, 0)
        noise = torch.randn(len(rows), *self.policy.spec.chunk_shape, device=self.policy.device)
        return executed_part(self.policy, self.average.sample(rows, noise)).unflatten(0, (-1, number))

    @torch.no_grad()
    def target(self, batch: Any) -> Float[Tensor, "b"]:
        """The TD target, with the pessimistic Q of the best of several next actions."""
        cond, number = self.average.encode(batch.next_obs), self.cal_ql.backup_samples
        q = self.critic.slow(cond.repeat_interleave(number, 0), self.own_actions(cond, number).flatten(0, 1))
        value = random_minimum(q, self.critic.config.num_min_qs).unflatten(0, (-1, number)).amax(1)
        return td_target(batch.reward, batch.discount, batch.terminated, value)
