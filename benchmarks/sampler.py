"""Sampling a denoising chain with its log-probability: in one pass, against drawing it and scoring it afterwards."""

from __future__ import annotations

import copy

import torch

from benchmarks._agents import GRAPHS, add_graphs_flag, add_net_flag, conditions, make_agent, wants_graphs
from benchmarks._compare import Variant, compare, parser, report
from benchmarks._peer import add_peer_flag, beside
from benchmarks._straightforward import two_passes
from reinflow.policies.chain import draws
from reinflow.runtime.acceleration import WARMUPS
from reinflow.types import Chain


def main() -> None:
    """Compare ways to draw chains with their log-probability, for every network and number of envs."""
    flags = parser(__doc__)
    flags.add_argument("--batch", type=int, nargs="+", default=[256], help="envs")
    add_net_flag(flags)
    flags.add_argument("--k", type=int, default=8, help="denoising steps")
    flags.add_argument("--horizon", type=int, default=16, help="predicted env steps")
    add_graphs_flag(flags)
    add_peer_flag(flags)
    args = flags.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    theirs = [row for rows in args.batch for row in beside(args, rows, args.horizon, args.k, ("network", "sample"))]
    comparisons = []
    for net in args.net:
        agent = make_agent(net, args.horizon, args.k)
        replaying = copy.deepcopy(agent)
        replaying.accelerate_(GRAPHS)
        for rows in args.batch:
            cond = conditions(agent, rows)
            generator = torch.Generator(cond.device)

            def one_pass(agent=agent, cond=cond, generator=generator) -> dict[str, torch.Tensor]:
                return results(agent.get_action(cond, generator.manual_seed(0)))

            def one_graph(one_pass=one_pass, replaying=replaying) -> dict[str, torch.Tensor]:
                return one_pass(agent=replaying)

            @torch.no_grad()
            def drawn_and_scored(agent=agent, cond=cond, generator=generator) -> dict[str, torch.Tensor]:
                noise = draws(agent.actor, cond, generator.manual_seed(0))
                return results(Chain(*two_passes(agent, cond, *noise)))

            variants = [Variant("two passes", drawn_and_scored), Variant("one pass", one_pass)]
            if wants_graphs(args):
                for _ in range(WARMUPS):
                    one_graph()  # so that it is a graph that has to agree
                variants.append(Variant("one CUDA graph", one_graph))
            comparisons.append(compare(f"{net}, {rows} envs, K = {args.k}", variants, args.rounds, tolerance=1e-4))
    report("sampler", args, comparisons, others=theirs)


def results(chain: Chain) -> dict[str, torch.Tensor]:
    """The log-probability sums hundreds of float32 numbers, which bounds how well two orders of them can agree."""
    return {"states": chain.states, "log_prob": chain.log_prob}


if __name__ == "__main__":
    main()
