"""Memory of a gradient step: bytes that autograd holds for the backward pass, fitted over rows and over K.

`test_reinflow_memory_real.py` measures whole iterations with their simulator; this finds the slope.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks._agents import add_net_flag, make_agent
from benchmarks._compare import parser, save
from benchmarks.scaling import filled
from reinflow.algos.config import PPOConfig
from reinflow.algos.ppo import judged, ppo_loss

KIB = 2**10


def held_bytes(forward: Callable[[], object]) -> int:
    """Bytes of all storages that `forward` saves for its backward pass, weights included."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = forward()  # alive, so that no storage is counted under another's address
    del kept
    return sum(storages.values())


def held_by_loss(net: str, horizon: int, rows: int, k: int, micro_batch_size: int | None = None) -> int:
    """Of one PPO loss."""
    agent = make_agent(net, horizon, k, PPOConfig(micro_batch_size=micro_batch_size))  # type: ignore[arg-type]
    cond = torch.zeros(rows, agent.policy.spec.cond_dim, device=agent.policy.device)
    batch = filled(agent, cond, decisions=1).flat()
    return held_bytes(lambda: ppo_loss(agent, agent.config, judged(agent, batch["actions"], cond), cond, batch))


def main() -> None:
    """Fit lines to the bytes that a loss holds, over rows and over K, and print slope and largest misfit."""
    flags = parser(__doc__)
    flags.add_argument("--rows", type=int, nargs="+", default=[16, 32, 64, 128], help="rows of a minibatch")
    flags.add_argument("--k", type=int, nargs="+", default=[1, 2, 4, 8], help="denoising steps")
    add_net_flag(flags)
    flags.add_argument("--horizon", type=int, default=16, help="predicted env steps")
    args = flags.parse_args()
    results = []
    for net in args.net:
        by_rows = {rows: held_by_loss(net, args.horizon, rows, max(args.k)) for rows in args.rows}
        by_k = {k: held_by_loss(net, args.horizon, max(args.rows), k) for k in args.k}
        for name, sizes, share in (("row", by_rows, max(args.k)), ("k", by_k, max(args.rows))):
            slope, base = np.polyfit(list(sizes), list(sizes.values()), 1)
            largest = max(sizes)
            off = sizes[largest] / (base + slope * largest) - 1
            cell = slope / share / KIB
            print(
                f"{net}: {base / KIB:,.0f} KiB + {slope / KIB:,.0f} KiB per {name}, {cell:.1f} KiB per row and k; "
                f"{largest} are {off:+.1%} off the line"
            )
            results.append({"net": net, "over": name, "base": base, "slope": slope, "off": off, "bytes": sizes})
    save("memory", args, results)


if __name__ == "__main__":
    main()
