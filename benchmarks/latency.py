"""One observation to one chunk of actions: milliseconds and calls per second of a policy that drives one robot."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from benchmarks._agents import ACTION_DIM, STATE_DIM, add_net_flag, make_agent
from benchmarks._compare import parser, save, timed
from benchmarks._peer import add_peer_flag, beside


def main() -> None:
    """Print the median time of a decision for every network and number of denoising steps K."""
    flags = parser(__doc__)
    flags.add_argument("--k", type=int, nargs="+", default=[1, 2, 4, 8], help="denoising steps")
    add_net_flag(flags)
    flags.add_argument("--horizon", type=int, default=16, help="predicted env steps")
    add_peer_flag(flags)
    args = flags.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    theirs = [row for k in args.k for row in beside(args, 1, args.horizon, k, ("sample",))]
    rows: list[dict[str, Any]] = []
    print(f"{'net':5} {'K':>2} {'ms':>8} {'Hz':>7}   one observation of {STATE_DIM} numbers, {ACTION_DIM} actions")
    for net in args.net:
        policy = make_agent(net, args.horizon, 1).policy.eval()
        obs = {"state": torch.randn(1, 2, STATE_DIM, device=policy.device)}
        for k in args.k:

            @torch.no_grad()
            def act(policy=policy, obs=obs, k=k) -> torch.Tensor:
                return policy.act(obs, num_steps=k)

            timed(act, 3)
            seconds = [timed(act, 10) for _ in range(args.rounds)]
            middle = statistics.median(seconds)
            print(f"{net:5} {k:>2} {1e3 * middle:>8.2f} {1 / middle:>7.0f}")
            rows.append({"net": net, "k": k, "milliseconds": 1e3 * middle, "hz": 1 / middle, "seconds": seconds})
    save("latency", args, rows + theirs)


if __name__ == "__main__":
    main()
