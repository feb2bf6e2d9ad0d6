"""Log-probability of chains and its gradient: all denoising steps in one batch, against one forward for each.

For the UNet also its FiLM terms split by time and condition, and dense products for short sequences, against neither.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks._agents import add_graphs_flag, add_net_flag, conditions, make_agent, wants_graphs
from benchmarks._compare import Variant, compare, parser, report
from benchmarks._peer import add_peer_flag, beside
from benchmarks._straightforward import looped_moments, unsplit
from reinflow.policies.chain import chain_log_prob, chain_moments
from reinflow.runtime.acceleration import EXACT, WARMUPS, replayed


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
    comparisons = []
    for net in args.net:
        for horizon in args.horizon:
            agent = make_agent(net, horizon, args.k)
            cond = conditions(agent, args.batch)
            chain = agent.get_action(cond, torch.Generator(cond.device).manual_seed(0))
            parameters = [*agent.actor.velocity_parameters(), *agent.actor.noise_parameters()]

            def scored(
                moments, agent=agent, cond=cond, states=chain.states, parameters=parameters
            ) -> dict[str, Tensor]:
                with EXACT.products():
                    log_prob = chain_log_prob(states, *moments(), agent.scored)
                    gradients = torch.autograd.grad(log_prob.mean(), parameters, allow_unused=True)
                return {
                    "log_prob": log_prob.detach(),
                    "gradient": torch.cat([g.flatten() for g in gradients if g is not None]),
                }

            def folded(agent=agent, cond=cond, states=chain.states, scored=scored) -> dict[str, Tensor]:
                return scored(lambda: chain_moments(agent.actor, states, cond), states=states)

            def looped(agent=agent, cond=cond, states=chain.states, scored=scored) -> dict[str, Tensor]:
                return scored(lambda: looped_moments(agent, states, cond))

            def plain(folded=folded) -> dict[str, Tensor]:
                with unsplit():
                    return folded()

            case = f"{net}, B = {args.batch}, K = {args.k}, H = {horizon}"
            ways = [Variant("loop over k", looped), Variant("one batch", folded)]
            if wants_graphs(args):
                replay = replayed(lambda states, folded=folded: folded(states=states))

                def one_graph(replay=replay, states=chain.states) -> dict[str, Tensor]:
                    return replay(states)

                for _ in range(WARMUPS):
                    one_graph()  # so that it is a graph that has to agree
                ways.append(Variant("one CUDA graph", one_graph))
            comparisons.append(compare(case, ways, args.rounds, tolerance=1e-3))
            if net == "unet":
                nets = [Variant("plain", plain), Variant("split", folded)]
                comparisons.append(compare(f"{case}, FiLM and short GEMM", nets, args.rounds, tolerance=1e-3))
    report("update", args, comparisons, others=theirs)


if __name__ == "__main__":
    main()
