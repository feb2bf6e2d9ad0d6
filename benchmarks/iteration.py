"""A whole iteration of Stage 3, rollout and update, on envs that cost next to nothing: against straightforward code.

The envs are SyntheticChunk-v0, not a simulator: what is measured is everything else.
"""

from __future__ import annotations

import copy
import time

import torch
from torch import Tensor

from benchmarks._agents import ACTION_DIM, STATE_DIM, device, make_agent
from benchmarks._compare import Variant, compare, parser, report, stopwatch
from benchmarks._straightforward import LoopedChunks, straightforward
from reinflow.agent import ReinFlowAgent
from reinflow.algos.ppo import PPO, PPOConfig
from reinflow.algos.rollout import RolloutBuffer
from reinflow.envs.synthetic import SyntheticEnv
from reinflow.envs.wrappers import ActionChunk
from reinflow.loops import collect
from reinflow.types import ChunkEnv

GAMMA = 0.97
OBS_HORIZON = 2


class Iteration:
    """Rollouts, and updates where `epochs` is not 0, of an agent of its own."""

    def __init__(self, agent: ReinFlowAgent, env: ChunkEnv, decisions: int, epochs: int):
        self.agent, self.env, self.epochs = agent, env, epochs
        self.generator = torch.Generator(env.device)
        self.learner = PPO(agent, agent.config)
        spec = agent.policy.spec
        size = (decisions * env.num_envs, spec.cond_dim, spec.pred_horizon, spec.action_dim)
        self.buffer = RolloutBuffer(*size, num_inference_steps=agent.actor.num_steps, device=env.device)

    def __call__(self) -> dict[str, Tensor]:
        obs = self.env.reset(seed=0)
        collect(self.agent, self.env, obs, self.buffer, self.generator.manual_seed(0))
        results = {name: self.buffer.data[name].clone() for name in ("log_probs", "reward", "executed", "advantages")}
        if self.epochs:
            self.learner.update(self.buffer, self.generator)
            results["weights"] = torch.cat([p.detach().flatten() for p in self.agent.parameters()])
        return results


def shares(iteration: Iteration) -> str:
    parts = {
        "envs": (iteration.env, "step_chunk"),
        "policy": (iteration.agent, "get_action"),
        "update": (iteration.learner, "update"),
    }
    with stopwatch(parts) as seconds:
        start = time.perf_counter()
        iteration()
        total = time.perf_counter() - start
    seconds["rest"] = total - sum(seconds.values())
    return ", ".join(f"{name} {part / total:.0%}" for name, part in seconds.items())


def main(rollout_only: bool = False) -> None:
    flags = parser(__doc__ if not rollout_only else "The rollout of an iteration alone.")
    flags.add_argument("--num_envs", type=int, nargs="+", default=[256], help="envs")
    flags.add_argument("--decisions", type=int, default=16, help="decisions per env")
    flags.add_argument("--net", nargs="+", default=["mlp"], help="networks")
    flags.add_argument("--k", type=int, default=8, help="denoising steps")
    flags.add_argument("--horizon", type=int, default=16, help="predicted env steps; half of them are executed")
    flags.add_argument("--epochs", type=int, default=4, help="passes of an update over its rollout")
    flags.add_argument("--minibatch_size", type=int, default=256, help="decisions of a gradient step")
    args = flags.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    epochs = 0 if rollout_only else args.epochs
    config = PPOConfig(ppo_epochs=max(epochs, 1), minibatch_size=args.minibatch_size)
    comparisons = []
    for net in args.net:
        for envs in args.num_envs:
            agents = [make_agent(net, args.horizon, args.k, config)]
            agents.append(copy.deepcopy(agents[0]))
            chunk = (args.horizon // 2, OBS_HORIZON, GAMMA)
            parts = [SyntheticEnv(envs, device(), STATE_DIM, ACTION_DIM) for _ in agents]
            slow = Iteration(agents[0], LoopedChunks(parts[0], *chunk), args.decisions, epochs)
            fast = Iteration(agents[1], ActionChunk(parts[1], *chunk), args.decisions, epochs)

            def as_first_written(slow=slow) -> dict[str, Tensor]:
                with straightforward(slow.agent):
                    return slow()

            case = f"{net}, {envs} synthetic envs x {args.decisions} decisions, K = {args.k}, H = {args.horizon}"
            variants = [Variant("straightforward", as_first_written), Variant("product", fast)]
            comparisons.append(compare(case, variants, args.rounds, tolerance=5e-2))
            print(f"{case}: {shares(fast)}")
    report("rollout" if rollout_only else "iteration", args, comparisons)


if __name__ == "__main__":
    main()
