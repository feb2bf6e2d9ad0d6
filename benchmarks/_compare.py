"""Variants of one computation, timed in turn in one process: they must agree first, and ratios come before seconds."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks._machine import fingerprint


@dataclass(frozen=True)
class Variant:
    """One way to compute something."""

    name: str
    run: Callable[[], dict[str, Tensor]]
    """returns what must agree between variants"""


@dataclass(frozen=True)
class Comparison:
    """A case of a benchmark: the first variant is the straightforward one."""

    case: str
    seconds: dict[str, list[float]]
    """per call, of every round"""
    relative_difference: float
    """see `disagreement`"""
    operations: dict[str, int]
    """dispatched tensor operations of one call"""

    @property
    def ratios(self) -> dict[str, list[float]]:
        """How often the straightforward variant's time holds each other's, round by round."""
        baseline, *others = self.seconds
        return {
            name: [slow / fast for slow, fast in zip(self.seconds[baseline], self.seconds[name], strict=True)]
            for name in others
        }

    def lines(self) -> list[str]:
        baseline, *_ = self.seconds
        found = []
        for name, values in self.ratios.items():
            operations = self.operations[baseline] / self.operations[name]
            found.append(
                f"{self.case}: {name} is {statistics.median(values):.2f} x {baseline} "
                f"({min(values):.2f} to {max(values):.2f}), operations 1/{operations:.1f}"
            )
        times = ", ".join(f"{name} {1e3 * statistics.median(values):.2f} ms" for name, values in self.seconds.items())
        return [*found, f"{self.case}: {times}"]

    def row(self) -> dict[str, Any]:
        return {
            "case": self.case,
            "ratio": {name: {"median": statistics.median(v), "rounds": v} for name, v in self.ratios.items()},
            "seconds": self.seconds,
            "operations": self.operations,
            "relative_difference": self.relative_difference,
        }


class Count(TorchDispatchMode):
    """Counts what is dispatched: on a GPU each is a launch."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.total += 1
        return func(*args, **(kwargs or {}))


def disagreement(results: Sequence[dict[str, Tensor]]) -> float:
    """Largest difference to the first of `results`, as a share of the largest number under the same name."""
    found = []
    for name, expected in results[0].items():
        scale = expected.double().abs().max().clamp_min(torch.finfo(torch.double).tiny)
        found += [(expected.double() - result[name].double()).abs().max() / scale for result in results[1:]]
    return torch.stack(found).max().item()  # unlike Python's, this maximum keeps a NaN


def compare(case: str, variants: Sequence[Variant], rounds: int, tolerance: float, least: float = 0.05) -> Comparison:
    """Raises SystemExit where a variant's results differ from the first one's by a share of more than `tolerance`."""
    difference = disagreement([variant.run() for variant in variants])
    if not difference <= tolerance:
        raise SystemExit(f"{case}: the variants differ by {difference:.2e} of the result, so nothing was timed")
    operations = {}
    for variant in variants:
        with Count() as count:
            variant.run()
        operations[variant.name] = count.total
    repeats = {variant.name: max(1, round(least / timed(variant.run, 1))) for variant in variants}
    seconds: dict[str, list[float]] = {variant.name: [] for variant in variants}
    for _ in range(rounds):
        for variant in variants:
            seconds[variant.name].append(timed(variant.run, repeats[variant.name]))
    return Comparison(case, seconds, difference, operations)


def timed(run: Callable[[], object], repeats: int) -> float:
    """Seconds per call, the GPU's work included."""
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    synchronize()
    return (time.perf_counter() - start) / repeats


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def stopwatch(parts: dict[str, tuple[Any, str]]) -> Iterator[Counter[str]]:
    """Seconds spent in methods of objects, by the names of `parts`; a part inside another counts in both."""
    seconds: Counter[str] = Counter()

    def clocked(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            synchronize()
            start = time.perf_counter()
            result = function(*args, **kwargs)
            synchronize()
            seconds[name] += time.perf_counter() - start
            return result

        return call

    with ExitStack() as patches:
        for name, (owner, method) in parts.items():
            patches.enter_context(mock.patch.object(owner, method, clocked(name, getattr(owner, method))))
        yield seconds


def parser(description: str) -> argparse.ArgumentParser:
    """The flags that every benchmark has."""
    flags = argparse.ArgumentParser(description=description.splitlines()[0])
    flags.add_argument("--rounds", type=int, default=7, help="interleaved measurements per variant")
    flags.add_argument("--threads", type=int, default=None, help="torch threads; default is torch's choice")
    flags.add_argument("--out", type=Path, default=None, help="write the rows to this JSON file")
    return flags


def report(
    benchmark: str,
    args: argparse.Namespace,
    comparisons: Sequence[Comparison],
    details: Sequence[dict[str, Any]] | None = None,
    others: Sequence[dict[str, Any]] = (),
) -> None:
    """Print the comparisons; save them with the `details` of each, and `others` after them."""
    for comparison in comparisons:
        print("\n".join(comparison.lines()))
    rows = [comparison.row() for comparison in comparisons]
    if details is not None:
        rows = [row | more for row, more in zip(rows, details, strict=True)]
    save(benchmark, args, [*rows, *others])


def save(benchmark: str, args: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Write the rows with their settings and machine, where asked for."""
    if args.out is None:
        return
    settings = {key: value for key, value in vars(args).items() if key != "out"}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    content = {"benchmark": benchmark, "settings": settings, "rows": rows, "machine": {**fingerprint(), "gpu": gpu}}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(content, indent=1, default=str) + "\n")
