"""Exponential moving average of a policy, as a policy that can be called."""

from __future__ import annotations

import copy
from typing import Any

import torch

from reinflow.policies.base import Policy


class EMA:
    """`module` follows the trained policy with decay min(decay, (1 + n) / (10 + n)) after n updates."""

    def __init__(self, policy: Policy, decay: float = 0.999):
        self.decay = decay
        self.updates = 0
        self.module = copy.deepcopy(policy).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, policy: Policy) -> None:
        """Move the average towards the policy's weights, and copy its buffers as they are."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.module.parameters()), list(policy.parameters()), 1 - decay)
        for mine, theirs in zip(self.module.buffers(), policy.buffers(), strict=True):
            mine.copy_(theirs)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """The average, its tensors live, and how many updates it has seen."""
        return {"updates": self.updates, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, with the decay that its updates give."""
        self.updates = state["updates"]
        self.module.load_state_dict(state["module"])
