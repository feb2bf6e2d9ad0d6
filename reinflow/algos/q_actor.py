"""What off-policy algorithms share that improve a policy with Qs: exploration, the critics' step, and their state.

An algorithm adds `improve`, its own step of the actor, and changes how the next chunk of a target is chosen where it
does.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from reinflow.algos.bc import BehaviorCloning
from reinflow.algos.config import BCConfig
from reinflow.algos.options import ExplorationConfig, QConfig
from reinflow.algos.q_learning import QLearning, td_target
from reinflow.algos.setting import Setting
from reinflow.policies.base import Policy
from reinflow.policies.wrapped import Acting
from reinflow.types import Decision, Obs

TOO_OPTIMISTIC = 1.0
"""a Q bias, in units of what the networks predict, above which they are about to lead the policy astray"""


def executed_part(policy: Policy, chunk: Float[Tensor, "b h a"]) -> Float[Tensor, "b ea"]:
    """What the Qs see of a normalised chunk: the executed slice of a whole prediction, or all that was executed."""
    part = chunk[:, policy.spec.executed] if chunk.shape[1] == policy.spec.pred_horizon else chunk
    return part.clamp(-1, 1).flatten(1)


class Judge:
    """A policy and its Qs, whatever trains the policy."""

    def __init__(self, policy: Policy, q: QConfig, setting: Setting):
        self.policy = policy
        spec, start = policy.spec, setting.parts.get("q")
        self.critic = QLearning(spec.cond_dim, spec.act_horizon * spec.action_dim, q, setting.gamma, start)
        self.critic.to(policy.device)

    @property
    def average(self) -> Policy:
        """The moving average of the policy."""
        raise NotImplementedError

    @property
    def evaluated(self) -> Acting:
        """The moving average."""
        return self.average

    def start_at_(self, level: Float[Tensor, ""]) -> None:
        """Let new Qs start from one value, in units of the env's own reward; those of a checkpoint stay."""
        self.critic.start_at_(level)

    def next_action(self, cond: Float[Tensor, "b z"]) -> Float[Tensor, "b ea"]:
        """The executed part of what the averaged policy does."""
        chunk = self.average.sample(cond, self.average.initial_noise(len(cond)))
        return executed_part(self.policy, chunk)

    def decided(self, chunk: Float[Tensor, "b h a"]) -> Decision:
        """What a normalised chunk means in the env, and all of it for the replay buffer."""
        whole = self.policy.action_normalizer.denormalize(chunk.clamp(-1, 1))
        return Decision(whole[:, self.policy.spec.executed], chunk=whole)

    @torch.no_grad()
    def judged(self, obs: Obs, actions: Float[Tensor, "n e a"]) -> Float[Tensor, "n"]:
        """Mean Q of doing `actions`, in env units."""
        chunk = self.policy.normalize_chunk(actions)
        return self.critic(self.policy.encode(obs), chunk.clamp(-1, 1).flatten(1)).mean(0)

    @torch.no_grad()
    def value(self, obs: Obs) -> Float[Tensor, "n"]:
        """Mean Q of what a TD target would let the policy do."""
        cond = self.policy.encode(obs)
        return self.critic(cond, self.next_action(cond)).mean(0)

    @torch.no_grad()
    def target(self, batch: Any) -> Float[Tensor, "b"]:
        """The TD target, with the policy's next chunk."""
        cond = self.average.encode(batch.next_obs)
        value = self.critic.bootstrap(cond, self.next_action(cond))
        return td_target(batch.reward, batch.discount, batch.terminated, value)

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """The target Qs, in units of the env's own reward."""
        return {"q": self.critic.unscaled().state_dict()}

    def worries(self, values: dict[str, float]) -> list[str]:
        """Whether the Qs promise more than what follows."""
        bias = values.get("losses/q_bias", 0.0)
        if bias > TOO_OPTIMISTIC * self.critic.unit:
            return [
                "Q promises more than the returns that follow (losses/q_bias): "
                "raise --num_min_qs or --learning_starts, or lower --lr"
            ]
        return []


class QActor(Judge):
    """Judged by Qs and trained by its own loss, too; a moving average is evaluated and draws the chunks of targets."""

    def __init__(self, policy: Policy, bc: BCConfig, q: QConfig, exploration: ExplorationConfig, setting: Setting):
        super().__init__(policy, q, setting)
        self.cloning = BehaviorCloning(policy, bc, setting.updates)
        self.exploration = exploration

    @property
    def average(self) -> Policy:
        """The moving average of the policy."""
        return self.cloning.evaluated

    @torch.no_grad()
    def act(self, obs: Obs, generator: torch.Generator) -> Decision:
        """A chunk that started from noise, with noise added."""
        cond = self.policy.encode(obs)
        chunk = self.policy.sample(cond, self.explored_start(len(cond), generator))
        return self.decided(self.disturbed(chunk, generator))

    def explored_start(self, rows: int, generator: torch.Generator) -> Float[Tensor, "b h a"]:
        """x_0 of chains that explore."""
        noise = torch.randn(rows, *self.policy.spec.chunk_shape, generator=generator, device=self.policy.device)
        return self.exploration.explore_noise_scale * noise

    def disturbed(self, chunk: Float[Tensor, "b h a"], generator: torch.Generator) -> Float[Tensor, "b h a"]:
        """A chunk with exploration noise added."""
        noise = torch.randn(chunk.shape, generator=generator, device=chunk.device)
        return chunk + self.exploration.explore_std * noise

    def update(self, batch: Any) -> dict[str, Tensor]:
        """One step of the Qs and one of the policy on a batch of transitions."""
        rows, cond = self.cloning.regression(batch)
        action = executed_part(self.policy, self.policy.normalize_chunk(batch.chunk))
        penalty = self.penalty(batch, cond.detach(), action)
        metrics = self.critic.update(cond.detach(), action, self.target(batch), penalty)
        return metrics | self.improve(rows, cond, action)

    def penalty(
        self, batch: Any, cond: Float[Tensor, "b z"], action: Float[Tensor, "b ea"]
    ) -> Float[Tensor, ""] | float:
        """What the Qs minimise beside their errors: nothing."""
        return 0.0

    def improve(
        self, rows: Float[Tensor, "b"], cond: Float[Tensor, "b z"], action: Float[Tensor, "b ea"]
    ) -> dict[str, Tensor]:
        """One step of the policy: `rows` are its own losses on the batch, `action` the executed part of the chunks."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Of the policy's training and of the Qs'."""
        return {"cloning": self.cloning.state_dict(), "critic": self.critic.training_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.cloning.load_state_dict(state["cloning"])
        self.critic.load_training_state(state["critic"])
