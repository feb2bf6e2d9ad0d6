"""Injects every fault and prints what happened.

python -m tests.faults           # small numbers, a minute or two
python -m tests.faults --full    # the numbers that docs/reliability.md reports
python -m tests.faults --only F1 F6
"""

from __future__ import annotations

import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

from reinflow.cli import run_script
from tests.faults.table import FAULTS, Fault


@dataclass(frozen=True)
class Config:
    """Inject faults into small runs and check the promises of docs/reliability.md."""

    full: bool = False
    """the full numbers; about a quarter of an hour"""
    only: tuple[str, ...] = ()
    """numbers of faults, F1 F6; empty means all"""


def main(config: Config) -> None:
    torch.set_num_threads(1)
    chosen = [fault for fault in FAULTS if not config.only or fault.number in config.only]
    results = [one(fault, config.full) for fault in chosen]
    print()
    for fault, (verdict, measured, seconds) in zip(chosen, results, strict=True):
        print(f"| {fault.number} | {fault.injection} | {verdict} | {measured} | {seconds:.0f} s |")
    if any(verdict == "FAILED" for verdict, _, _ in results):
        raise SystemExit(1)


def one(fault: Fault, full: bool) -> tuple[str, str, float]:
    """Verdict, what was measured, and seconds."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix=f"fault-{fault.number}-") as folder:
        try:
            verdict, measured = "passed", fault.inject(Path(folder), full)
        except Exception as error:  # whatever goes wrong is the result that this table is for
            traceback.print_exc()
            verdict, measured = "FAILED", " ".join(f"{type(error).__name__}: {error}".split())[:300]
    seconds = time.perf_counter() - began
    print(f"{fault.number} {verdict} in {seconds:.0f} s: {measured}", flush=True, file=sys.stderr)
    return verdict, measured, seconds


if __name__ == "__main__":
    run_script(main, Config)
