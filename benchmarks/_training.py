"""A small Stage 3 in this process, whose CPU time is all there is: what checkpoints and guards are measured on."""

from __future__ import annotations

from typing import Any

import torch

from reinflow.agent import ReinFlowAgent
from reinflow.algos.ppo import PPO, PPOConfig
from reinflow.algos.rollout import RolloutBuffer
from reinflow.checkpoint import Checkpoint
from reinflow.envs import EnvConfig, make_env
from reinflow.loops import collect
from reinflow.policies import PolicyConfig, build_policy
from reinflow.rng import rng_state


class Training:
    """Iterations of an untrained policy with the default network of its kind."""

    def __init__(self, env_id: str, net: str, num_envs: int, decisions: int, num_steps: int = 4):
        torch.manual_seed(0)
        config = PolicyConfig(net=net)  # type: ignore[arg-type]
        self.env = make_env(EnvConfig(env_id, num_workers=0), num_envs, config.act_horizon, config.obs_horizon, 0.97)
        self.spec = config.for_env(self.env.spec, num_steps)
        ppo = PPOConfig(minibatch_size=num_envs * decisions, ppo_epochs=1)
        self.agent = ReinFlowAgent.from_policy(build_policy(self.spec), ppo)
        self.learner = PPO(self.agent, ppo)
        shape = (num_envs * decisions, self.spec.cond_dim, self.spec.pred_horizon, self.spec.action_dim)
        self.buffer = RolloutBuffer(*shape, 0.97, 0.9, num_steps)
        self.generator = torch.Generator().manual_seed(0)
        self.obs = self.env.reset(seed=0)

    def iterate(self) -> None:
        self.obs, _ = collect(self.agent, self.env, self.obs, self.buffer, self.generator)
        self.learner.update(self.buffer, self.generator)

    def state(self) -> dict[str, Any]:
        """What a resume needs, live."""
        learner = self.learner.state_dict()
        return {"agent": self.agent.state_dict(), "learner": learner, "env": self.env.state(), "rng": rng_state()}

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.spec, self.env.spec, self.agent.policy.state_dict(), training=self.state())
