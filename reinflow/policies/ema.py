"""Exponential moving average of a module, as a module that can be called: an evaluated policy, a target network."""

from __future__ import annotations

import copy
from typing import Any, Generic, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class EMA(Generic[M]):
    """`module` follows the trained one with decay min(decay, (1 + n) / (10 + n)) after n updates."""

    def __init__(self, trained: M, decay: float = 0.999, warm_up: bool = True):
        """Without `warm_up` the decay is the same from the first update on, as of target networks."""
        self.decay = decay
        self.warm_up = warm_up
        self.updates = 0
        self.module: M = copy.deepcopy(trained).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, trained: M) -> None:
        """Move the average towards the trained weights, and copy buffers as they are."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warm_up else self.decay
        torch._foreach_lerp_(list(self.module.parameters()), list(trained.parameters()), 1 - decay)
        for mine, theirs in zip(self.module.buffers(), trained.buffers(), strict=True):
            mine.copy_(theirs)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """The average, its tensors live, and how many updates it has seen."""
        return {"updates": self.updates, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`, with the decay that its updates give."""
        self.updates = state["updates"]
        self.module.load_state_dict(state["module"])
