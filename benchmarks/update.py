"""Log-probability of chains and its gradient: all denoising steps in one batch, against one forward for each.

For the UNet also its FiLM terms split by time and condition, and dense products for short sequences, against neither.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks._agents import add_graphs_flag, add_net_flag, conditions, make_agent, wants_graphs
from benchmarks._compare import Comparison, Variant, compare, parser, report
from benchmarks._peer import add_peer_flag, beside
from benchmarks._straightforward import looped_moments, unsplit
from reinflow.policies.chain import chain_log_prob, chain_moments
from reinflow.runtime.acceleration import WARMUPS, replayed
from reinflow.types import Centres

Moments = tuple[Centres, Tensor]
"""means and stds of every step"""


def main() -> None:
    """Compare ways to score chains and take the gradient, for every network and horizon."""
    flags = parser(__doc__)
    flags.add_argument("--batch", type=int, default=64, help="decisions of a minibatch")
    add_net_flag(flags)
    flags.add_argument("--k", type=int, default=8, help="denoising steps")
    flags.add_argument("--horizon", type=int, nargs="+", default=[16, 8], help="predicted env steps")
    add_graphs_flag(flags)
    add_peer_flag(flags)
    args = flags.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    parts = ("network and gradient", "loss and gradient")
    theirs = [row for horizon in args.horizon for row in beside(args, args.batch, horizon, args.k, parts)]
    comparisons = [
        comparison for net in args.net for horizon in args.horizon for comparison in compared(net, horizon, args)
    ]
    report("update", args, comparisons, others=theirs)


def compared(net: str, horizon: int, args: argparse.Namespace) -> Iterator[Comparison]:
    """Ways to score the chains of one network."""
    agent = make_agent(net, horizon, args.k)
    cond = conditions(agent, args.batch)
    states = agent.get_action(cond, torch.Generator(cond.device).manual_seed(0)).states
    parameters = [*agent.actor.velocity_parameters(), *agent.actor.noise_parameters()]

    def scored(moments: Moments) -> dict[str, Tensor]:
        log_prob = chain_log_prob(states, *moments, agent.scored)
        gradients = torch.autograd.grad(log_prob.mean(), parameters, allow_unused=True)
        return {
            "log_prob": log_prob.detach(),
            "gradient": torch.cat([g.flatten() for g in gradients if g is not None]),
        }

    def folded(states: Tensor = states) -> dict[str, Tensor]:
        return scored(chain_moments(agent.actor, states, cond))

    def plain() -> dict[str, Tensor]:
        with unsplit():
            return folded()

    case = f"{net}, B = {args.batch}, K = {args.k}, H = {horizon}"
    ways = [
        Variant("loop over k", lambda: scored(looped_moments(agent, states, cond))),
        Variant("one batch", folded),
    ]
    if wants_graphs(args):
        replay = replayed(folded, True, cond.device)
        for _ in range(WARMUPS):
            replay(states)  # so that it is a graph that has to agree
        ways.append(Variant("one CUDA graph", lambda: replay(states)))
    yield compare(case, ways, args.rounds, tolerance=1e-3)
    if net == "unet":
        nets = [Variant("plain", plain), Variant("split", folded)]
        yield compare(f"{case}, FiLM and products", nets, args.rounds, tolerance=1e-3)


if __name__ == "__main__":
    main()
