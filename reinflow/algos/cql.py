"""Conservative Q-learning of a one-step policy (CQL, arXiv:2006.04779, beside MeanFlow-QL, arXiv:2511.13035).

    Q loss = TD error + alpha * (T log mean_j exp(Q(s, a_j) / T) - Q(s, a)),   a_j even over the demonstrated range

Q then is low where there are no data, so that the policy may follow it with little cloning left.

Differs: candidates have no importance weights, as the policies here have no density; the mean in place of the sum
shifts the term by a constant, so that it is 0 where Q does not depend on the action; Q and T count in `QLearning.unit`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from reinflow.algos.meanflow_ql import MeanFlowQL
from reinflow.algos.offline_options import CQLConfig
from reinflow.algos.setting import Setting
from reinflow.policies.base import Policy


def conservative_gap(
    candidates: Float[Tensor, "q b n"], data: Float[Tensor, "q b"], temperature: float
) -> Float[Tensor, "q b"]:
    """T log mean exp(Q_j / T) - Q(data), per member and row."""
    soft = (candidates / temperature).logsumexp(-1) - math.log(candidates.shape[-1])
    return temperature * soft - data


def uniform_actions(action: Float[Tensor, "b ea"], number: int) -> Float[Tensor, "b n ea"]:
    """`number` actions per row, even over the demonstrated range [-1, 1]."""
    return 2 * torch.rand(len(action), number, action.shape[-1], device=action.device) - 1


class CQL(MeanFlowQL):
    """`MeanFlowQL` whose Qs are low where there are no data."""

    def __init__(self, policy: Policy, config: CQLConfig, setting: Setting):
        """UserError for a family that can't act in one step."""
        super().__init__(policy, config, setting)
        self.cql = config

    def penalty(self, batch: Any, cond: Float[Tensor, "b z"], action: Float[Tensor, "b ea"]) -> Float[Tensor, ""]:
        """alpha times the gap, summed over members."""
        candidates = self.values(cond, uniform_actions(action, self.cql.cql_samples))
        return self.weighted(candidates, cond, action)

    def values(self, cond: Float[Tensor, "b z"], actions: Float[Tensor, "b n ea"]) -> Float[Tensor, "q b n"]:
        """Q of several actions per row, in the env's units, with gradients."""
        number = actions.shape[1]
        return self.critic(cond.repeat_interleave(number, 0), actions.flatten(0, 1)).unflatten(1, (-1, number))

    def weighted(
        self, candidates: Float[Tensor, "q b n"], cond: Float[Tensor, "b z"], action: Float[Tensor, "b ea"]
    ) -> Float[Tensor, ""]:
        """The term for these candidates' Qs."""
        unit = self.critic.unit
        gap = conservative_gap(candidates / unit, self.critic(cond, action) / unit, self.cql.cql_temperature)
        return self.cql.cql_alpha * gap.mean(1).sum()
