"""Keeps a fine-tuned policy near the one that it started from: the W2 term of DMPO's PPO (arXiv:2601.20701).

    mean |a(s, z) - a_base(s, z)|^2,   a what a policy does from the same noise z, without exploration noise

One z for both is a coupling of their actions, so the mean is at least the squared Wasserstein-2 distance.

Differs: z is what the chain of the decision started from, and only what the env executes counts.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from reinflow.policies.base import Policy
from reinflow.types import Obs


class Anchor:
    """A policy as it was, and how much a distance to it weighs."""

    def __init__(self, policy: Policy, coef: float, decay_steps: int):
        """The weight falls from `coef` to 0 in a straight line over `decay_steps` env steps; 0 of them keep it."""
        self.base = copy.deepcopy(policy).eval().requires_grad_(False)
        self.coef = coef
        self.decay_steps = decay_steps
        self.weight = torch.tensor(coef, device=policy.device)

    def follow_(self, env_steps: int) -> None:
        """Take the weight of `env_steps`, in place for CUDA graphs."""
        left = 1 - min(env_steps / self.decay_steps, 1.0) if self.decay_steps else 1.0
        self.weight.fill_(self.coef * left)

    def distance(
        self,
        policy: Policy,
        cond: Float[Tensor, "b z"],
        stored: Float[Tensor, "b z"] | Obs,
        x_0: Float[Tensor, "b h a"],
        num_steps: int,
    ) -> Float[Tensor, "b"]:
        """Mean squared difference of the executed slices of normalised chunks, with gradients to `policy`.

        `stored` is what the rollout kept of the observation: the condition, or pictures that the base sees for itself.
        """
        with torch.no_grad():
            seen = stored if isinstance(stored, Tensor) else self.base.encode(stored)
            base = self.base.sample(seen, x_0, num_steps)
        difference = policy.sample(cond, x_0, num_steps) - base
        return difference[:, policy.spec.executed].square().mean((1, 2))

    def state_dict(self) -> dict[str, Any]:
        """The base, which a resumed run can't read from the weights any more."""
        return self.base.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.base.load_state_dict(state)
