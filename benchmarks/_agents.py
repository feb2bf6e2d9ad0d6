"""Agents of any size, untrained, and chains of theirs: what the benchmarks of the learner measure on."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from reinflow.agent import ReinFlowAgent
from reinflow.algos.config import PPOConfig
from reinflow.cli import USER_ERROR, fail
from reinflow.policies import NETS, PolicySpec, build_policy
from reinflow.runtime.acceleration import allow_tf32
from reinflow.runtime.config import AccelerationConfig

STATE_DIM, ACTION_DIM = 42, 7
PLAIN, GRAPHS = AccelerationConfig(cuda_graphs=False), AccelerationConfig()


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_agent(net: str, horizon: int, num_steps: int, ppo: PPOConfig | None = None) -> ReinFlowAgent:
    """Plain code, a network's defaults; a horizon of 16 executes 8 steps and sees 2 frames, as in the guide."""
    torch.manual_seed(0)
    allow_tf32(products=False, convolutions=False)  # which straightforward code would take where the product doesn't
    spec = PolicySpec.of(
        net=net,
        obs_horizon=2,
        act_horizon=horizon // 2,
        pred_horizon=horizon,
        state_dim=STATE_DIM,
        action_dim=ACTION_DIM,
        num_inference_steps=num_steps,
    )
    agent = ReinFlowAgent.from_policy(build_policy(spec).to(device()), ppo or PPOConfig())
    agent.accelerate_(PLAIN)
    return agent


def conditions(agent: ReinFlowAgent, rows: int) -> Tensor:
    generator = torch.Generator(agent.policy.device).manual_seed(1)
    return torch.randn(rows, agent.policy.spec.cond_dim, generator=generator, device=agent.policy.device)


def add_net_flag(flags: argparse.ArgumentParser) -> None:
    flags.add_argument("--net", nargs="+", default=["unet", "mlp"], choices=list(NETS), help="networks")


def add_graphs_flag(flags: argparse.ArgumentParser) -> None:
    flags.add_argument("--cuda_graphs", action="store_true", help="time the product with CUDA graphs too")


def wants_graphs(args: argparse.Namespace) -> bool:
    """Whether that flag is set; exits where plain code would run under the name of graphs."""
    if args.cuda_graphs and device().type != "cuda":
        fail("--cuda_graphs needs a GPU and torch sees none: leave it out on this machine", USER_ERROR)
    return args.cuda_graphs
