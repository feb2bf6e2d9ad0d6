"""One observation to one chunk of actions: milliseconds and calls per second of a policy that drives one robot."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks._agents import ACTION_DIM, STATE_DIM, add_net_flag, device, make_policy
from benchmarks._compare import parser, save, timed
from benchmarks._peer import add_peer_flag, beside
from reinflow.policies.base import Policy

DMPO = "dmpo"
SIZES: dict[str, dict[str, Any]] = {DMPO: {"net": "preact", "preact_hidden_dim": 875}}
"""a network of 1.78 million parameters at H = 16, as the picture policy has whose latency DMPO reports"""
CALLS, LEAST_SECONDS = 10, 0.002
"""of a round: short ones fit between what else runs on a busy core"""


def main() -> None:
    """Print the median time of a decision for every network and number of denoising steps K."""
    flags = parser(__doc__)
    flags.add_argument("--k", type=int, nargs="+", default=[1, 2, 4, 8], help="denoising steps")
    add_net_flag(flags, more=SIZES)
    flags.add_argument("--horizon", type=int, default=16, help="predicted env steps")
    flags.add_argument("--compile", action="store_true", help="time torch.compile of the same call, too")
    add_peer_flag(flags)
    args = flags.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    theirs = [row for k in args.k for row in beside(args, 1, args.horizon, k, ("sample",))]
    rows: list[dict[str, Any]] = []
    print(f"one observation of {STATE_DIM} numbers, {ACTION_DIM} actions; median and fastest of {args.rounds} rounds")
    print(f"{'net':5} {'parameters':>10} {'K':>2} {'variant':8} {'ms':>8} {'Hz':>7} {'fastest Hz':>10}")
    for net in args.net:
        policy = make_policy(horizon=args.horizon, num_steps=1, **SIZES.get(net, {"net": net})).eval()
        size = sum(parameter.numel() for parameter in policy.net.parameters())
        for k in args.k:
            for variant, act in variants(policy, k, args.compile).items():
                seconds = measured(act, args.rounds)
                row = {"net": net, "parameters": size, "k": k, "variant": variant, **summary(seconds)}
                print(
                    f"{net:5} {size:>10} {k:>2} {variant:8} {row['milliseconds']:>8.3f} {row['hz']:>7.0f} "
                    f"{row['fastest_hz']:>10.0f}"
                )
                rows.append(row)
    save("latency", args, rows + theirs)


def variants(policy: Policy, k: int, compiled: bool) -> dict[str, Callable[[], Tensor]]:
    """One decision, as it stands and compiled; x_0 is given, so that both are a function of tensors.

    SystemExit where they disagree.
    """
    obs = {"state": torch.randn(1, 2, STATE_DIM, device=device())}
    noise = torch.randn(1, *policy.spec.chunk_shape, device=device())
    found = {"plain": policy.act}
    if compiled:
        found["compiled"] = torch.compile(policy.act, fullgraph=True)

    def once(act: Callable[..., Tensor]) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with torch.inference_mode():
                return act(obs, num_steps=k, noise=noise)

        return call

    calls = {name: once(act) for name, act in found.items()}
    plain, *others = (call() for call in calls.values())
    if not all(torch.allclose(plain, other, rtol=0, atol=1e-4) for other in others):
        raise SystemExit("the compiled policy acts otherwise, so nothing was timed")
    return calls


def summary(seconds: list[float]) -> dict[str, Any]:
    """Median and fastest of all rounds; the fastest is what other work on the machine disturbed least."""
    middle = statistics.median(seconds)
    return {"milliseconds": 1e3 * middle, "hz": 1 / middle, "fastest_hz": 1 / min(seconds), "seconds": seconds}


def measured(act: Callable[[], Tensor], rounds: int) -> list[float]:
    """Seconds per call, of every round."""
    calls = max(CALLS, round(LEAST_SECONDS / timed(act, CALLS)))
    return [timed(act, calls) for _ in range(rounds)]


if __name__ == "__main__":
    main()
