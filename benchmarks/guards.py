"""What all guards cost: CPU time of an iteration with them against one without, in turn, and a 95 % interval.

A guard is left out by putting what it would return in its place.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch

from benchmarks._compare import parser, save
from benchmarks._training import Training
from reinflow.algos.guard import StepGuard
from reinflow.envs import EnvConfig
from reinflow.envs.wrappers import ActionChunk
from reinflow.policies import PolicyConfig


def unguarded_step(self: StepGuard, loss: torch.Tensor, parts: list) -> None:
    """`StepGuard.step` without its guard: all optimisers step, whatever the gradients hold."""
    for optimizer, _ in parts:
        optimizer.found_inf = None
        optimizer.step()


@contextmanager
def unguarded(num_envs: int) -> Iterator[None]:
    """While it lasts, gradient steps, their metrics and the chunks of `num_envs` envs go unchecked."""
    usable = torch.ones(num_envs, dtype=torch.bool)
    with (
        mock.patch.object(StepGuard, "step", unguarded_step),
        mock.patch.object(StepGuard, "metrics", return_value={}),
        mock.patch.object(ActionChunk, "_usable", return_value=usable),
    ):
        yield


def cpu_seconds(act: Callable[[], object]) -> float:
    """Of this process: other processes on its cores don't count, but what they do to its caches does."""
    began = time.process_time()
    act()
    return time.process_time() - began


def interval_of_median(values: list[float]) -> tuple[float, float]:
    """95 % interval by order statistics, which assumes nothing of the distribution; 6 values at least."""
    ordered, count = sorted(values), len(values)
    rank = max(int(count / 2 - 0.98 * count**0.5), 0)
    return ordered[rank], ordered[-1 - rank]


def main() -> None:
    """Time iterations with and without guards in turn and print the overhead with its interval."""
    flags = parser(__doc__)
    flags.set_defaults(rounds=40)
    flags.add_argument("--env_id", default="PickCube-v1", help="task")
    flags.add_argument("--net", default="mlp", help="network")
    flags.add_argument("--num_envs", type=int, default=64, help="envs")
    flags.add_argument("--decisions", type=int, default=2, help="per env and iteration")
    args = flags.parse_args()
    torch.set_num_threads(args.threads or 1)
    training = Training(
        EnvConfig(args.env_id, num_workers=0), PolicyConfig(net=args.net), args.num_envs, args.decisions
    )
    seconds: dict[str, list[float]] = {"guarded": [], "unguarded": []}
    try:
        training.iterate()
        for index in range(args.rounds):
            for name in sorted(seconds, reverse=bool(index % 2)):
                if name == "guarded":
                    seconds[name].append(cpu_seconds(training.iterate))
                else:
                    with unguarded(args.num_envs):
                        seconds[name].append(cpu_seconds(training.iterate))
    finally:
        training.env.close()
    ratios = [slow / fast - 1 for slow, fast in zip(seconds["guarded"], seconds["unguarded"], strict=True)]
    low, high = interval_of_median(ratios)
    print(f"an iteration without guards takes {statistics.median(seconds['unguarded']):.3f} s of CPU time")
    print(f"with guards {statistics.median(ratios):+.2%} (95 % of the median: {low:+.2%} to {high:+.2%})")
    save("guards", args, [{"seconds": seconds, "overhead": statistics.median(ratios), "interval": [low, high]}])


if __name__ == "__main__":
    main()
