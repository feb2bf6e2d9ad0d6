"""Agents of any size, untrained, and chains of theirs: what the benchmarks of the learner measure on."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from reinflow.agent import ReinFlowAgent
from reinflow.algos.ppo import PPOConfig
from reinflow.policies import PolicySpec, build_policy

STATE_DIM, ACTION_DIM = 42, 7


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_agent(
    net: Literal["unet", "mlp"], horizon: int, num_steps: int, ppo: PPOConfig | None = None
) -> ReinFlowAgent:
    """With the default network; a horizon of 16 executes 8 steps and sees 2 frames, as in the guide."""
    torch.manual_seed(0)
    spec = PolicySpec(
        net=net,
        obs_horizon=2,
        act_horizon=horizon // 2,
        pred_horizon=horizon,
        state_dim=STATE_DIM,
        action_dim=ACTION_DIM,
        num_inference_steps=num_steps,
    )
    return ReinFlowAgent.from_policy(build_policy(spec).to(device()), ppo or PPOConfig())


def conditions(agent: ReinFlowAgent, rows: int) -> Tensor:
    generator = torch.Generator(agent.policy.device).manual_seed(1)
    return torch.randn(rows, agent.policy.spec.cond_dim, generator=generator, device=agent.policy.device)
