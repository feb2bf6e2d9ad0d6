"""Reward-weighted regression of any Regressable policy (Peters & Schaal 2007; over chunks as DPPO, arXiv:2409.00588).

A row weighs exp(beta * (G - mean) / std), G the discounted return that followed it: there is no critic that could be
wrong, and nothing that tells a good action in a bad state from a bad one in a good state.

Differs: weights are clipped and divided by their mean, and a recording that only stops is taken to go on as it ended
(`returns_to_go` in `reinflow/data/chunks.py`).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from reinflow.algos.awr import advantage_weights, effective_sample_size
from reinflow.algos.bc import BehaviorCloning
from reinflow.algos.offline_options import RWRConfig
from reinflow.algos.setting import Setting
from reinflow.policies.base import Policy
from reinflow.runtime import distributed


class RWR(BehaviorCloning):
    """Behaviour cloning whose rows are weighted by the return that followed them."""

    def __init__(self, policy: Policy, config: RWRConfig, setting: Setting):
        super().__init__(policy, config.bc, setting.updates)
        self.rwr = config

    def update(self, batch: Any) -> dict[str, Tensor]:
        """One gradient step on a batch of transitions that know their `return_to_go`."""
        rows, _ = self.regression(batch)
        weight = advantage_weights(batch.return_to_go, self.rwr.beta, self.rwr.weight_clip)
        return self.descend((weight * rows).mean() / distributed.mean(weight.mean())) | {
            "losses/return_to_go": batch.return_to_go.mean(),
            "losses/weights_clipped": (weight >= self.rwr.weight_clip).float().mean(),
            "losses/effective_sample_size": effective_sample_size(weight),
        }
