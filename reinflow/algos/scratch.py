"""ReinFlow's PPO for a policy that starts from nothing, without demonstrations that say how large observations are.

Observations are normalised by the mean and std of all states that its own rollouts have met, as PPO on MuJoCo is mostly
run (Engstrom et al., arXiv:2005.12729). Differs: the statistics change between iterations and not inside of them, so
that a rollout is scored as it was sampled; and rewards stay as they are, because V follows the size of its returns and
advantages are normalised.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nets.normalize import RunningMoments
from reinflow.algos.actor_critic import ActorCritic
from reinflow.algos.ppo import PPO
from reinflow.algos.reinflow import ReinFlow
from reinflow.algos.rollout import RolloutBuffer
from reinflow.runtime import distributed
from reinflow.types import Decision, Obs


class FromScratch(ReinFlow):
    """Learns what states look like while it learns to act; V's warm-up is when it looks for the first time."""

    def __init__(self, agent: ActorCritic, ppo: PPO, buffer: RolloutBuffer):
        super().__init__(agent, ppo, buffer)
        self.moments = RunningMoments(agent.policy.spec.state_dim).to(agent.policy.device)
        self.met: list[Tensor] = []
        """states of this rollout"""

    def begin(self, env_steps: int) -> bool:
        """As ever; what an interrupted rollout met is forgotten."""
        self.met.clear()
        return super().begin(env_steps)

    def act(self, obs: Obs, generator: torch.Generator) -> Decision:
        """Decide with exploration noise, and remember the newest state."""
        self.met.append(obs["state"][:, -1])
        return super().act(obs, generator)

    def update(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Gradient steps on the rollout; then its states join those that the next one is normalised by."""
        metrics = super().update(generator)
        normalizer = self.agent.policy.encoder.state_normalizer
        normalizer.fit_(torch.cat(self.met), self._with_those_before)
        return metrics

    def _with_those_before(self, states: Tensor) -> tuple[Tensor, Tensor]:
        return self.moments.add_(*distributed.row_moments(states), len(states) * distributed.world_size())

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimisers and what was met so far."""
        return super().state_dict() | {"moments": self.moments.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        super().load_state_dict(state)
        self.moments.load_state_dict(state["moments"])
