"""ReinFlow as an on-policy loop drives it (arXiv:2505.22094): decisions by a noisy chain, its noise over time, PPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reinflow.algos.actor_critic import ActorCritic, View
from reinflow.algos.config import PPOConfig
from reinflow.algos.ppo import PPO
from reinflow.algos.rollout import RolloutBuffer
from reinflow.policies.base import Policy
from reinflow.types import Chain, ChunkStep, Decision, Obs


def rollout_buffer(agent: ActorCritic, config: PPOConfig, size: int) -> RolloutBuffer:
    """Room for `size` decisions of an agent."""
    spec = agent.policy.spec
    return RolloutBuffer(
        size,
        None if agent.trains_encoder else spec.cond_dim,
        spec.pred_horizon,
        spec.action_dim,
        config.gamma,
        config.gae_lambda,
        agent.actor.num_steps,
        agent.policy.device,
    )


@dataclass
class Judged:
    """What is known of a decision before its outcome."""

    view: View
    chain: Chain
    value: Tensor


class ReinFlow:
    """Collects decisions of `agent` and leaves the gradient steps to `ppo`."""

    group = 0

    def __init__(self, agent: ActorCritic, ppo: PPO, buffer: RolloutBuffer):
        self.agent = agent
        self.ppo = ppo
        self.buffer = buffer
        self.critic_only = False

    @property
    def evaluated(self) -> Policy:
        """The fine-tuned policy, without exploration noise."""
        return self.agent.policy

    @property
    def full(self) -> bool:
        """Whether the rollout has all its decisions."""
        return self.buffer.full

    def begin(self, env_steps: int) -> bool:
        """Start an iteration; False where warm-up trains the critic alone, which covers whole iterations.

        The noise bounds change only here, so the chain is scored with the bounds it was sampled with.
        """
        self.buffer.reset()
        self.agent.update_noise_schedule(step=env_steps)
        if self.ppo.anchor is not None:
            self.ppo.anchor.follow_(env_steps)
        self.critic_only = self.ppo.config.warms_critic_up(env_steps)
        return not self.critic_only

    def act(self, obs: Obs, generator: torch.Generator) -> Decision:
        """Decide with exploration noise."""
        view = self.agent.view(self.agent.augmented(obs, generator))
        chain = self.agent.get_action(view.cond, generator=generator)
        value = self.agent.get_value(view.critic)
        return Decision(self.agent.to_action(chain.chunk), memory=Judged(view, chain, value))

    def store(self, decision: Decision, step: ChunkStep) -> None:
        """Remember a decision and what it led to."""
        view, chain, value = vars(decision.memory).values()
        self.buffer.add(
            obs=view.stored,
            critic_obs=view.critic_obs,
            actions=chain.states,
            reward=step.reward,
            value=value,
            log_prob=chain.log_prob,
            done=step.ended,
            valid=~step.broken,
            executed=step.executed,
            terminated=step.terminated,
            final_value=self._final_value(step),
            means=chain.means,
            stds=chain.stds,
        )

    def _final_value(self, step: ChunkStep) -> Tensor:
        """V of the last observations, which counts where an episode ended."""
        if not step.ends:
            return torch.zeros_like(step.reward)
        return self.agent.get_value(self.agent.view(step.final_obs).critic)

    def finish(self, obs: Obs) -> Tensor:
        """Compute advantages; gives the number of decisions that are left out."""
        last_value = self.agent.get_value(self.agent.view(obs).critic)
        factor = self.agent.critic.follow_(*self.buffer.sizes())
        self.buffer.scale_values_(factor)
        missing = self.buffer.shortfall()
        self.agent.critic.shift_(missing)
        self.buffer.shift_values_(missing)
        self.buffer.compute_returns_and_advantages(last_value=last_value * factor + missing)
        return (self.buffer.data["valid"] == 0).sum()

    def update(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Gradient steps on the rollout."""
        metrics = self.ppo.update(self.buffer, generator, critic_only=self.critic_only)
        return {f"losses/{name}": value for name, value in metrics.items()}

    def status(self, values: dict[str, float]) -> dict[str, Any]:
        """What a monitor shows of an iteration."""
        return {
            "phase": "warmup" if self.critic_only else "ppo",
            "kl": values.get("losses/final_kl"),
            "clip_fraction": values.get("losses/clip_fraction"),
        }

    @staticmethod
    def worries(values: dict[str, float]) -> list[str]:
        """What is wrong with an iteration, from its logged numbers; docs/metrics.md tells the limits and the causes."""
        found = []
        if values.get("losses/ratio_deviation", 0.0) > 1e-3:
            found.append("the ratio of the first minibatch is not 1: sampling and scoring disagree, which is a bug")
        if values.get("losses/final_kl", 0.0) > 5.0:
            found.append("an update moved the policy by more than 5 nats: lower --lr or set --target_kl")
        if values.get("losses/clip_fraction", 0.0) > 0.6:
            found.append("more than 60 % of the ratios were clipped: lower --lr or --ppo_epochs")
        if values["charts/critic_warmup"] == 0.0 and values.get("losses/explained_variance", 1.0) < 0.0:
            found.append(
                "the critic explains nothing of the returns: raise --critic_warmup_steps or --lr_critic, "
                "or use the --gamma of Stage 2"
            )
        return found

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """V, which the next run may start from."""
        return {"critic": self.agent.critic.state_dict()}

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimisers."""
        return {"agent": self.agent.state_dict(), **self.ppo.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.agent.load_state_dict(state["agent"])
        self.ppo.load_state_dict(state)
