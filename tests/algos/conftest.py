"""Small agents of every family, and rollouts of them with random rewards."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from reinflow.agent import ReinFlowAgent
from reinflow.algos.config import PPOConfig
from reinflow.algos.rollout import RolloutBuffer
from reinflow.algos.schedules import NoiseConfig
from reinflow.policies import PolicySpec, build_policy
from reinflow.policies.base import Policy

ENVS, DECISIONS, STATE_DIM = 6, 8, 5


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def make_policy() -> Callable[..., Policy]:
    def build(family: str = "shortcut", **changes: object) -> Policy:
        sizes = {
            "net": "mlp",
            "state_dim": STATE_DIM,
            "action_dim": 3,
            "obs_horizon": 2,
            "act_horizon": 4,
            "pred_horizon": 8,
            "num_inference_steps": 4,
            "mlp_hidden_dim": 32,
            "mlp_depth": 1,
            "diffusion_step_embed_dim": 16,
        }
        policy = build_policy(PolicySpec.of(family=family, **sizes | changes))
        spec = policy.spec
        policy.fit_normalizers_(torch.randn(200, spec.state_dim), 2 * torch.rand(200, spec.action_dim) - 1)
        return policy

    return build


@pytest.fixture
def make_agent(make_policy: Callable[..., Policy]) -> Callable[..., ReinFlowAgent]:
    def build(
        family: str = "shortcut", num_steps: int = 4, noise: NoiseConfig | None = None, **ppo: object
    ) -> ReinFlowAgent:
        config = PPOConfig(**{"minibatch_size": 16, **ppo})
        return ReinFlowAgent.from_policy(make_policy(family), config, noise, num_inference_steps=num_steps)

    return build


@pytest.fixture
def fill() -> Callable[..., RolloutBuffer]:
    def run(agent: ReinFlowAgent, buffer: RolloutBuffer | None = None, with_moments: bool = True) -> RolloutBuffer:
        spec = agent.policy.spec
        buffer = buffer or RolloutBuffer(
            ENVS * DECISIONS,
            spec.cond_dim,
            spec.pred_horizon,
            spec.action_dim,
            agent.config.gamma,
            agent.config.gae_lambda,
            agent.actor.num_steps,
        )
        buffer.reset()
        while not buffer.full:
            cond = agent.encode({"state": torch.randn(ENVS, spec.obs_horizon, spec.state_dim)})
            chain = agent.get_action(cond)
            buffer.add(
                obs=cond,
                actions=chain.states,
                reward=torch.rand(ENVS),
                value=agent.get_value(cond),
                log_prob=chain.log_prob,
                done=torch.rand(ENVS) < 0.2,
                executed=torch.full((ENVS,), spec.act_horizon),
                means=chain.means if with_moments else None,
                stds=chain.stds if with_moments else None,
            )
        buffer.compute_returns_and_advantages(agent.get_value(cond))
        return buffer

    return run
