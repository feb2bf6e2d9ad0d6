"""Another implementation of the guide's interface, timed beside ours: each in a process of its own, in turns.

Their packages have the same names, so one process can't hold both. Results are not compared: two implementations may
define noise and log-probability differently.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from benchmarks._agents import ACTION_DIM, STATE_DIM
from reinflow.cli import USER_ERROR, fail

ROOT = Path(__file__).resolve().parent.parent
CHILD = Path(__file__).with_name("_peer_child.py")
LEAST_SECONDS = 0.05


class Side:
    """An implementation in a process of its own; a context, since the process has to end."""

    def __init__(self, path: Path, sizes: dict[str, int]):
        self.path = path
        self.process = subprocess.Popen(
            [sys.executable, str(CHILD)],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=path,
            env={**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": str(sizes["threads"])},
        )
        self.cases: list[str] = self.ask(sizes)

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()  # the end of its input ends it

    def ask(self, question: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline().strip()
        except BrokenPipeError:
            answer = ""
        if not answer or answer.startswith("error: "):
            reason = answer.removeprefix("error: ") or "it ended without an answer"
            fail(f"--peer {self.path} can't be timed: {reason}; it needs the interface of the guide", USER_ERROR)
        return json.loads(answer)

    def seconds(self, case: str, repeats: int) -> float:
        return self.ask([case, repeats])


def add_peer_flag(flags: argparse.ArgumentParser, required: bool = False) -> None:
    text = "checkout of another implementation with the packages nets and reinflow, whose UNet is timed beside ours"
    flags.add_argument("--peer", type=Path, required=required, help=text)


def beside(
    args: argparse.Namespace, rows: int, horizon: int, k: int, names: Collection[str] | None = None
) -> list[dict[str, Any]]:
    """Print and return how long the checkout `args.peer` takes against ours; nothing where there is no such flag.

    `names` are cases of `_peer_child`, all of them when it is None. Exits with 2 where the interface is missing.
    """
    if args.peer is None:
        return []
    for package in ("nets", "reinflow"):
        if not (args.peer / package).is_dir():
            fail(f"--peer {args.peer} has no package {package}: pass a checkout of another implementation", USER_ERROR)
    sizes = {"rows": rows, "horizon": horizon, "k": k, "action_dim": ACTION_DIM, "cond_dim": 2 * STATE_DIM}
    sizes["threads"] = args.threads or os.cpu_count() or 1
    with Side(args.peer.resolve(), sizes) as theirs, Side(ROOT, sizes) as ours:  # what may lack something first
        cases = [case for case in ours.cases if names is None or case in names]
        label = f"unet, {rows} rows, K = {k}, H = {horizon}"
        return [turns(f"{label}, {case}", case, ours, theirs, args.rounds) for case in cases]


def turns(label: str, case: str, ours: Side, theirs: Side, rounds: int) -> dict[str, Any]:
    repeats = max(1, round(LEAST_SECONDS / min(side.seconds(case, 1) for side in (ours, theirs))))
    pairs = [(ours.seconds(case, repeats), theirs.seconds(case, repeats)) for _ in range(rounds)]
    ratios = [slow / fast for fast, slow in pairs]
    middle = [1e3 * statistics.median(times) for times in zip(*pairs, strict=True)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"{label}: the peer takes {statistics.median(ratios):.2f} ({spread}) x our time")
    print(f"{label}: ours {middle[0]:.2f} ms, peer {middle[1]:.2f} ms")
    seconds = dict(zip(("ours", "peer"), map(list, zip(*pairs, strict=True)), strict=True))
    return {"case": label, "part": case, "ratio": ratios, "seconds": seconds}
