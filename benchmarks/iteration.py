"""A whole iteration of Stage 3, rollout and update, on envs that cost next to nothing: against straightforward code.

The envs are SyntheticChunk-v0, not a simulator: what is measured is everything else.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from benchmarks._agents import ACTION_DIM, GRAPHS, STATE_DIM, add_graphs_flag, device, make_agent, wants_graphs
from benchmarks._compare import Comparison, Variant, compare, parser, report, stopwatch, synchronize
from benchmarks._straightforward import LoopedChunks, straightforward
from reinflow.agent import ReinFlowAgent
from reinflow.algos.config import PPOConfig
from reinflow.algos.ppo import PPO
from reinflow.algos.reinflow import ReinFlow, rollout_buffer
from reinflow.envs.synthetic import SyntheticEnv
from reinflow.envs.wrappers import ActionChunk
from reinflow.runtime.config import AccelerationConfig
from reinflow.training.rollouts import collect
from reinflow.types import ChunkEnv

GAMMA = 0.97
OBS_HORIZON = 2
NOTE = "the envs are SyntheticChunk-v0, not a simulator"
COLLECTED = ("actions", "log_probs", "reward", "executed", "advantages", "returns")
TOLERANCE = 1e-2
"""of what must agree; float32 moves single weights apart by up to 1.1e-3 of the largest movement"""


class Iteration:
    """Rollouts, and updates where `epochs` is not 0, of an agent of its own, inside the context that `way` makes."""

    def __init__(
        self,
        agent: ReinFlowAgent,
        env: ChunkEnv,
        decisions: int,
        epochs: int,
        way: Callable[[], AbstractContextManager[None]] = nullcontext,
        acceleration: AccelerationConfig | None = None,
    ):
        self.agent, self.env, self.epochs, self.way = agent, env, epochs, way
        self.generator = torch.Generator(env.device)
        if acceleration is not None:
            agent.accelerate_(acceleration)
        self.ppo = PPO(agent, agent.config)
        self.buffer = rollout_buffer(agent, agent.config, decisions * env.num_envs)
        self.learner = ReinFlow(agent, self.ppo, self.buffer)

    def weights(self) -> dict[str, Tensor]:
        """Copies, by who steps them: their learning rates differ, so one's movement would hide another's."""
        groups = {
            "velocity": self.ppo.velocity_parameters,
            "noise": self.ppo.noise_parameters,
            "critic": self.ppo.critic_parameters,
        }
        return {name: torch.cat([p.detach().flatten() for p in group]) for name, group in groups.items()}

    def __call__(self) -> dict[str, Tensor]:
        """Run it from the same start as every time; gives what was collected and how far the weights moved."""
        with self.way():
            obs = self.env.reset(seed=0)
            self.buffer.reset()
            collect(self.learner, self.env, obs, self.generator.manual_seed(0))
            results = {name: self.buffer.data[name].clone() for name in COLLECTED}
            if self.epochs:
                before = self.weights()  # a new V has started at the level of the rewards by now
                self.learner.update(self.generator)
                moved = {name: values - before[name] for name, values in self.weights().items()}
                results |= {f"movement of {name}": values for name, values in moved.items()}
        return results

    def shares(self) -> dict[str, float]:
        """Of one iteration's time, by part."""
        parts = {
            "envs": (self.env, "step_chunk"),
            "policy": (self.agent, "get_action"),
            "critic": (self.agent, "get_value"),
            "buffer": (self.buffer, "add"),
            "advantages": (self.buffer, "compute_returns_and_advantages"),
            "update": (self.learner, "update"),
        }
        with stopwatch(parts) as seconds:
            start = time.perf_counter()
            self()
            synchronize()
            total = time.perf_counter() - start
        seconds["rest"] = total - sum(seconds.values())
        return {name: part / total for name, part in seconds.items()}


def measured(net: str, envs: int, args: argparse.Namespace, epochs: int) -> tuple[Comparison, dict[str, Any]]:
    """The variants side by side, and what their row says besides."""
    config = PPOConfig(ppo_epochs=max(epochs, 1), minibatch_size=args.minibatch_size)
    agent = make_agent(net, args.horizon, args.k, config)  # type: ignore[arg-type]

    def iteration(kind: type[LoopedChunks] | type[ActionChunk], **options: AccelerationConfig) -> Iteration:
        own = copy.deepcopy(agent)
        env = kind(SyntheticEnv(envs, device(), STATE_DIM, ACTION_DIM), args.horizon // 2, OBS_HORIZON, GAMMA)
        way = nullcontext if kind is ActionChunk else lambda: straightforward(own)
        return Iteration(own, env, args.decisions, epochs, way, **options)

    ways = {"straightforward": iteration(LoopedChunks), "product": iteration(ActionChunk)}
    if wants_graphs(args):
        ways["product with CUDA graphs"] = iteration(ActionChunk, acceleration=GRAPHS)
    case = f"{net}, {envs} synthetic envs x {args.decisions} decisions, K = {args.k}, H = {args.horizon}"
    variants = [Variant(name, way) for name, way in ways.items()]
    comparison = compare(case, variants, args.rounds, TOLERANCE)
    return comparison, {"envs": NOTE, "shares": {name: way.shares() for name, way in ways.items()}}


def main(rollout_only: bool = False) -> None:
    """Compare both ways on all networks and numbers of envs; `rollout_only` leaves the updates out."""
    flags = parser(__doc__ if not rollout_only else "The rollout of an iteration alone.")
    flags.add_argument("--num_envs", type=int, nargs="+", default=[256], help="envs")
    flags.add_argument("--decisions", type=int, default=16, help="decisions per env")
    flags.add_argument("--net", nargs="+", default=["mlp"], help="networks")
    flags.add_argument("--k", type=int, default=8, help="denoising steps")
    flags.add_argument("--horizon", type=int, default=16, help="predicted env steps; half of them are executed")
    flags.add_argument("--epochs", type=int, default=4, help="passes of an update over its rollout")
    flags.add_argument("--minibatch_size", type=int, default=256, help="decisions of a gradient step")
    add_graphs_flag(flags)
    args = flags.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"Note: {NOTE}.")
    epochs = 0 if rollout_only else args.epochs
    found = [measured(net, envs, args, epochs) for net in args.net for envs in args.num_envs]
    comparisons, details = zip(*found, strict=True)
    report("rollout" if rollout_only else "iteration", args, comparisons, details)
    for comparison, detail in found:
        for name, parts in detail["shares"].items():
            shares = ", ".join(f"{part} {share:.1%}" for part, share in parts.items())
            print(f"{comparison.case}, {name}: {shares}")


if __name__ == "__main__":
    main()
