"""What loops ask of learners and a trainer of loops, so that none of them knows an algorithm by name."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from reinflow.policies.wrapped import Acting
from reinflow.types import ChunkStep, Decision, Obs

Metrics = dict[str, Any]


class Learner(Protocol):
    """What is trained."""

    @property
    def evaluated(self) -> Acting:
        """What is evaluated and kept; it may be an average of the policy that is trained, or wrapped around one."""
        ...

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """What else a checkpoint holds of what was learned, by name: `critic` is V, `q` an ensemble of Qs."""
        ...

    def worries(self, values: dict[str, float]) -> list[str]:
        """Sentences on what is wrong and how to mend it, from the logged numbers of an iteration."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that a resume needs, its tensors live."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        ...


class BatchLearner(Learner, Protocol):
    """Takes gradient steps on batches, whoever drew them: what `Offline` needs."""

    def update(self, batch: Any) -> Metrics:
        """One gradient step; metrics are tensors by their logged names, and nothing is moved to the host."""
        ...


class OffPolicyLearner(BatchLearner, Protocol):
    """Also acts, to fill the replay buffer that its batches come from: what `OffPolicy` needs."""

    def act(self, obs: Obs, generator: torch.Generator) -> Decision:
        """What to do next, with exploration."""
        ...

    def start_at_(self, level: Float[Tensor, ""]) -> None:
        """Let new critics start from one value, before the first update: the constant V that agrees with the data."""
        ...

    def judged(self, obs: Obs, actions: Float[Tensor, "n e a"]) -> Float[Tensor, "n"]:
        """Q of doing `actions`, in env units: the discounted return that the learner expects."""
        ...

    def value(self, obs: Obs) -> Float[Tensor, "n"]:
        """Q of what the policy would do."""
        ...


class OnPolicyLearner(Learner, Protocol):
    """Collects a rollout of its own and learns from it once: what `OnPolicy` needs."""

    @property
    def group(self) -> int:
        """How many envs start each rollout from one state, in new episodes; 0 lets all go on where they are."""
        ...

    @property
    def full(self) -> bool:
        """Whether the rollout has all its decisions."""
        ...

    def begin(self, env_steps: int) -> bool:
        """Start an iteration, with an empty rollout, after `env_steps`; gives whether it trains the policy."""
        ...

    def act(self, obs: Obs, generator: torch.Generator) -> Decision:
        """What to do next, with exploration."""
        ...

    def store(self, decision: Decision, step: ChunkStep) -> None:
        """Add a decision and its outcome to the rollout."""
        ...

    def finish(self, obs: Obs) -> Tensor:
        """Close the rollout before `obs`; gives the number of decisions that are left out of it."""
        ...

    def update(self, generator: torch.Generator) -> Metrics:
        """Gradient steps on the rollout; metrics are tensors by their logged names."""
        ...

    def status(self, values: dict[str, float]) -> dict[str, Any]:
        """What a monitor shows of an iteration, from its logged numbers."""
        ...
