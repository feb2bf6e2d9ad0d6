"""How the learner's parts grow: fits t = a + b * envs and reports how far the largest point is from that line.

Linear growth means that nothing in a rollout or an update looks at its rows one by one, or at pairs of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import numpy as np
import torch

from benchmarks._agents import conditions, make_agent
from benchmarks._compare import parser, save, timed
from reinflow.algos.config import PPOConfig
from reinflow.algos.ppo import PPO
from reinflow.algos.rollout import RolloutBuffer


def main() -> None:
    """Fit lines to the time of sampling and of the update, over envs and over K, and print the largest misfit."""
    flags = parser(__doc__)
    flags.add_argument("--num_envs", type=int, nargs="+", default=[64, 128, 256, 512], help="envs")
    flags.add_argument("--k", type=int, nargs="+", default=[1, 2, 4, 8], help="denoising steps")
    flags.add_argument("--net", default="mlp", help="network")
    flags.add_argument("--horizon", type=int, default=8, help="predicted env steps")
    args = flags.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    parts: dict[str, Callable[[int, int], Callable[[], object]]] = {
        "sampling": lambda envs, k: sampling(args.net, args.horizon, envs, k),
        "update": lambda envs, k: update(args.net, args.horizon, envs, k),
    }
    rows = []
    for part, make in parts.items():
        by_envs = {envs: middle(make(envs, max(args.k)), args.rounds) for envs in args.num_envs}
        by_k = {k: middle(make(max(args.num_envs), k), args.rounds) for k in args.k}
        for name, times in (("envs", by_envs), ("k", by_k)):
            slope, base = np.polyfit(list(times), list(times.values()), 1)
            largest = max(times)
            off = times[largest] / (base + slope * largest) - 1
            print(f"{part}: {1e3 * base:.2f} ms + {1e6 * slope:.1f} us per {name}, {largest} {name} are {off:+.1%} off")
            rows.append({"part": part, "over": name, "base": base, "slope": slope, "off": off, "seconds": times})
    save("scaling", args, rows)


def middle(run: Callable[[], object], rounds: int) -> float:
    """Median seconds of a call over `rounds` measurements, after one call that does not count."""
    timed(run, 1)
    return statistics.median(timed(run, 2) for _ in range(rounds))


def sampling(net: str, horizon: int, envs: int, k: int) -> Callable[[], object]:
    """A call that draws one chain for each of `envs` envs with `k` denoising steps."""
    agent = make_agent(net, horizon, k)  # type: ignore[arg-type]
    cond = conditions(agent, envs)
    return lambda: agent.get_action(cond)


def update(net: str, horizon: int, envs: int, k: int) -> Callable[[], object]:
    """One pass over four decisions of every env, in minibatches of 256."""
    config = PPOConfig(minibatch_size=256, ppo_epochs=1)
    agent = make_agent(net, horizon, k, config)  # type: ignore[arg-type]
    learner, cond = PPO(agent, config), conditions(agent, envs)
    buffer = filled(agent, cond, decisions=4)
    return lambda: learner.update(buffer)


def filled(agent, cond: torch.Tensor, decisions: int) -> RolloutBuffer:
    """A rollout of decisions from the same observations, with random rewards."""
    spec, envs = agent.policy.spec, len(cond)
    size = (decisions * envs, spec.cond_dim, spec.pred_horizon, spec.action_dim)
    steps = agent.actor.num_steps
    buffer = RolloutBuffer(*size, num_inference_steps=steps, device=cond.device)
    nothing = torch.zeros(envs, dtype=torch.bool, device=cond.device)
    for _ in range(decisions):
        chain = agent.get_action(cond)
        reward = torch.rand(envs, device=cond.device)
        moments = {"means": chain.means, "stds": chain.stds}
        buffer.add(cond, chain.states, reward, agent.get_value(cond).detach(), chain.log_prob, nothing, **moments)
    buffer.compute_returns_and_advantages(agent.get_value(cond).detach())
    return buffer


if __name__ == "__main__":
    main()
