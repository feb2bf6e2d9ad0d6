"""Agents of any size, untrained, and chains of theirs: what the benchmarks of the learner measure on."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from reinflow.agent import ReinFlowAgent
from reinflow.algos.ppo import PPOConfig
from reinflow.policies import PolicySpec, build_policy
from reinflow.policies.chain import chain_log_prob
from reinflow.types import Chain

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


def two_pass_sample(agent: ReinFlowAgent, cond: Tensor, generator: torch.Generator) -> Chain:
    """The straightforward sampler: draw the chain, then evaluate it again, step by step, for its log-probability."""
    actor = agent.actor
    x = actor.start(cond, generator)
    states = [x]
    for k in range(actor.num_steps):
        mean, std = step(agent, k, x, cond)
        x = mean + std * torch.randn(x.shape, generator=generator, device=x.device)
        states.append(x)
    drawn = torch.stack(states, 1)
    means, stds = looped_moments(agent, drawn, cond)
    return Chain(drawn, means, stds, chain_log_prob(drawn, means, stds, agent.scored))


def looped_moments(agent: ReinFlowAgent, states: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
    """The straightforward scoring: one forward per denoising step."""
    pairs = [step(agent, k, states[:, k], cond) for k in range(agent.actor.num_steps)]
    means, stds = (torch.stack(values, 1) for values in zip(*pairs, strict=True))
    return means, stds


def step(agent: ReinFlowAgent, k: int, x: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
    """One denoising step by itself: mean and std."""
    actor = agent.actor
    t = torch.full((1,), k / actor.num_steps, device=x.device)
    d = torch.full((1,), 1 / actor.num_steps, device=x.device)
    velocity, _, std = actor.noisy_net(x, t, d, cond, sample_noise=False)
    return x + velocity / actor.num_steps, std
