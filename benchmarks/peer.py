"""Network, sampling and update of another implementation of the guide's interface, timed beside ours.

    python -m benchmarks peer --peer PATH

PATH is a checkout with packages `nets` and `reinflow`. Both sides run in a process of their own and take turns.
Results are not compared: two implementations may define noise and log-probability differently.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks._compare import parser, save
from reinflow.cli import USER_ERROR, fail

ROOT = Path(__file__).resolve().parent.parent
CHILD = Path(__file__).with_name("_peer_child.py")
LEAST_SECONDS = 0.05


class Side:
    """An implementation in a process of its own."""

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

    def ask(self, question: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        if not answer or answer.startswith("error: "):
            reason = answer.removeprefix("error: ") or "it ended without an answer"
            fail(f"--peer {self.path} can't be timed: {reason}; it needs the interface of the guide", USER_ERROR)
        return json.loads(answer)

    def seconds(self, case: str, repeats: int) -> float:
        return self.ask([case, repeats])


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--peer", type=Path, required=True, help="checkout of the other implementation")
    flags.add_argument("--rows", type=int, default=64, help="rows of a batch")
    flags.add_argument("--horizon", type=int, default=16, help="predicted env steps")
    flags.add_argument("--k", type=int, default=8, help="denoising steps")
    args = flags.parse_args()
    for package in ("nets", "reinflow"):
        if not (args.peer / package).is_dir():
            fail(f"--peer {args.peer} has no package {package}: pass a checkout of another implementation", USER_ERROR)
    sizes = {"rows": args.rows, "horizon": args.horizon, "k": args.k, "action_dim": 7, "cond_dim": 84}
    sizes["threads"] = args.threads or os.cpu_count() or 1
    ours, theirs = Side(ROOT, sizes), Side(args.peer.resolve(), sizes)
    rows = []
    for case in ours.cases:
        repeats = max(1, round(LEAST_SECONDS / min(side.seconds(case, 1) for side in (ours, theirs))))
        pairs = [(ours.seconds(case, repeats), theirs.seconds(case, repeats)) for _ in range(args.rounds)]
        ratios = [slow / fast for fast, slow in pairs]
        middle = [1e3 * statistics.median(times) for times in zip(*pairs, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{case}: the peer takes {statistics.median(ratios):.2f} ({spread}) x our time")
        print(f"{case}: ours {middle[0]:.2f} ms, peer {middle[1]:.2f} ms")
        seconds = dict(zip(("ours", "peer"), map(list, zip(*pairs, strict=True)), strict=True))
        rows.append({"case": case, "ratio": ratios, "seconds": seconds})
    save("peer", args, rows)


if __name__ == "__main__":
    main()
