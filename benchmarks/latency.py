"""One observation to one chunk of actions: milliseconds and calls per second of a policy that drives one robot."""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks._agents import ACTION_DIM, STATE_DIM, add_graphs_flag, add_net_flag, make_agent, wants_graphs
from benchmarks._compare import disagreement, parser, save, timed
from benchmarks._peer import add_peer_flag, beside
from reinflow.cli import USER_ERROR, fail
from reinflow.envs.synthetic import SyntheticEnv
from reinflow.errors import UserError
from reinflow.export import Sampler, read_onnx, refuse_without_extra, silence, write_onnx
from reinflow.policies.base import Policy
from reinflow.runtime.acceleration import WARMUPS

TOLERANCE = 1e-4
"""of the largest action, between ways to compute it"""

BOUND = 1e6
"""of actions, so that the exported sampler clips none"""

Act = Callable[[], Tensor]


def main() -> None:
    """Print the median time of a decision for every network, number of denoising steps K and way to compute it."""
    flags = parser(__doc__)
    flags.add_argument("--k", type=int, nargs="+", default=[1, 2, 4, 8], help="denoising steps")
    add_net_flag(flags)
    flags.add_argument("--horizon", type=int, default=16, help="predicted env steps")
    add_graphs_flag(flags)
    flags.add_argument("--compile", action="store_true", help="time the compiled network too (torch.compile)")
    flags.add_argument("--onnx", action="store_true", help="time ONNX Runtime too, on the CPU")
    add_peer_flag(flags)
    args = flags.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    theirs = [row for k in args.k for row in beside(args, 1, args.horizon, k, ("sample",))]
    rows: list[dict[str, Any]] = []
    sizes = f"one observation of {STATE_DIM} numbers, {ACTION_DIM} actions"
    print(f"{'net':5} {'K':>2} {'way':12} {'ms':>8} {'Hz':>7}   {sizes}")
    for net in args.net:
        policy = make_agent(net, args.horizon, 1).policy.eval()
        for k in args.k:
            rows += timings(net, k, ways(policy, k, args), args.rounds)
    save("latency", args, rows + theirs)


def timings(net: str, k: int, acts: dict[str, Act], rounds: int) -> list[dict[str, Any]]:
    """A row per way, in turns; SystemExit where their actions disagree, with nothing timed."""
    for act in acts.values():
        for _ in range(WARMUPS + 1):  # so that it is a graph that has to agree
            act()
    difference = disagreement([{"actions": act()} for act in acts.values()]) if len(acts) > 1 else 0.0
    if not difference <= TOLERANCE:
        raise SystemExit(f"{net}, K = {k}: the ways differ by {difference:.2e} of the largest action")
    seconds: dict[str, list[float]] = {way: [] for way in acts}
    for _ in range(rounds):
        for way, act in acts.items():
            seconds[way].append(timed(act, 10))
    rows = []
    for way, found in seconds.items():
        middle = statistics.median(found)
        print(f"{net:5} {k:>2} {way:12} {1e3 * middle:>8.3f} {1 / middle:>7.0f}")
        rows.append({"net": net, "k": k, "way": way, "milliseconds": 1e3 * middle, "hz": 1 / middle, "seconds": found})
    return rows


def ways(policy: Policy, k: int, args: argparse.Namespace) -> dict[str, Act]:
    """The policy in plain code and what the flags ask for, all of one observation and one x_0."""
    generator = torch.Generator().manual_seed(0)
    obs = {"state": torch.randn(1, 2, STATE_DIM, generator=generator).to(policy.device)}
    noise = torch.randn(1, *policy.spec.chunk_shape, generator=generator).to(policy.device)

    def acting(mine: Policy) -> Act:
        return lambda: mine.act(obs, num_steps=k, noise=noise)

    found = {"plain": acting(policy)}
    if wants_graphs(args):
        replaying = copy.deepcopy(policy)
        replaying.replay_()
        found["CUDA graph"] = acting(replaying)
    if args.compile:
        compiled = copy.deepcopy(policy)
        net = cast(Any, compiled.net)
        net.velocity = torch.compile(net.velocity)
        found["compiled"] = acting(compiled)
    if args.onnx:
        found["ONNX"] = in_onnx_runtime(policy, k, obs["state"], noise)
    return found


def in_onnx_runtime(policy: Policy, k: int, state: Tensor, noise: Tensor) -> Act:
    """The exported sampler on the CPU; exits where the packages are missing."""
    try:
        refuse_without_extra("onnx")
    except UserError as error:
        fail(str(error), USER_ERROR)
    cpu = copy.deepcopy(policy).cpu()
    cpu.spec = replace(cpu.spec, num_inference_steps=k)
    inputs = {"state": state.cpu()}, noise.cpu()
    wide = (BOUND,) * ACTION_DIM
    task = replace(SyntheticEnv(1).spec, action_low=tuple(-bound for bound in wide), action_high=wide)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), silence():
        path = Path(folder) / "policy.onnx"
        write_onnx(Sampler(cpu, task).eval(), inputs, "", path)
        run = read_onnx(path)
    return lambda: run(*inputs).to(state.device)


if __name__ == "__main__":
    main()
