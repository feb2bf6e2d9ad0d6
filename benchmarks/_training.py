"""Iterations of Stage 3 as its script does them, for measuring checkpoints, guards and shares of an iteration."""

from __future__ import annotations

from typing import Any

import torch

from reinflow.agent import ReinFlowAgent
from reinflow.algos.config import PPOConfig
from reinflow.algos.ppo import PPO
from reinflow.algos.reinflow import ReinFlow, rollout_buffer
from reinflow.envs import EnvConfig, make_env
from reinflow.policies import PolicyConfig, build_policy
from reinflow.runtime.rng import rng_state
from reinflow.storage.checkpoint import Checkpoint
from reinflow.training.rollouts import collect


class Training:
    """An untrained policy with the default network of its kind."""

    def __init__(
        self,
        env: EnvConfig,
        policy: PolicyConfig,
        num_envs: int,
        decisions: int,
        ppo: PPOConfig | None = None,
        num_steps: int = 4,
        freeze: bool = True,
    ):
        torch.manual_seed(0)
        ppo = ppo or PPOConfig(minibatch_size=num_envs * decisions, ppo_epochs=1)
        self.env = make_env(env, num_envs, policy.act_horizon, policy.obs_horizon, ppo.gamma)
        self.spec = policy.for_env(self.env.spec, num_steps)
        self.agent = ReinFlowAgent.from_policy(build_policy(self.spec), ppo, freeze_visual_encoder=freeze)
        self.learner = ReinFlow(self.agent, PPO(self.agent, ppo), rollout_buffer(self.agent, ppo, num_envs * decisions))
        self.generator = torch.Generator().manual_seed(0)
        self.obs = self.env.reset(seed=0)

    def iterate(self) -> None:
        self.learner.buffer.reset()
        self.obs, _ = collect(self.learner, self.env, self.obs, self.generator)
        self.learner.update(self.generator)

    def state(self) -> dict[str, Any]:
        """What a resume needs, live."""
        return {"learner": self.learner.state_dict(), "env": self.env.state(), "rng": rng_state()}

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.spec, self.env.spec, self.agent.policy.state_dict(), training=self.state())
