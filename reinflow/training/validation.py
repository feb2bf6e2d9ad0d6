"""The loss of a cloned policy on episodes that it isn't trained on, and when that says to stop."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from reinflow.data.chunks import Batch
from reinflow.policies.base import Policy
from reinflow.training.learner import Learner

DRAWS = 8
"""noises and times for each row, so that two evaluations differ by what was learned and not by what was drawn"""


@dataclass(frozen=True)
class Validation:
    """Measures the policy that would be kept on windows of held-out episodes."""

    batch: Batch
    seed: int
    """of the noises and times, which are the same at every evaluation"""
    patience: int = 0
    """evaluations in a row without a lower loss after which a run ends; 0 is never"""

    def loss(self, learner: Learner) -> float:
        """The family's own loss, a mean over rows; no other random number of the run changes by it."""
        return validation_loss(learner.evaluated.core, self.batch, self.seed)


@torch.no_grad()
def validation_loss(policy: Policy, batch: Batch, seed: int) -> float:
    """Mean loss over DRAWS noises and times per row."""
    was_training = policy.training
    policy.eval()
    cuda = [policy.device] if policy.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        cond, chunk = policy.encode(batch.obs), policy.normalize_chunk(batch.chunk)
        losses = [policy.loss(cond, chunk, policy).mean() for _ in range(DRAWS)]  # type: ignore[operator]
    policy.train(was_training)
    return torch.stack(losses).mean().item()
