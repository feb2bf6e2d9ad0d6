"""Tests and benchmarks of a GPU in under nine minutes, most important first, and one table of what came of them."""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks._machine import fingerprint

ROOT = Path(__file__).resolve().parent.parent
TOTAL = 525
"""seconds of all steps, so that the table is there before nine minutes are over"""
WORTH_STARTING = 5
"""seconds that have to be left"""


@dataclass(frozen=True)
class Step:
    """A command of its own process; OUT in its words is the folder of the results."""

    name: str
    words: tuple[str, ...]
    seconds: float
    """after which it is ended"""
    target: str = ""
    """what is hoped for on an H100"""
    dry: tuple[str, ...] = ()
    """more words, which make it tiny"""


@dataclass
class Outcome:
    """What came of a step."""

    step: Step
    seconds: float
    ending: str
    """`ok`, or how it failed"""
    found: list[str] = field(default_factory=list)
    """its results, a line each"""


def benchmark(name: str, words: str, seconds: float, target: str = "", dry: str = "") -> Step:
    """`python -m benchmarks`, its rows in OUT/<name>.json."""
    kind, *_ = name.split("-")
    command = ("-m", "benchmarks", kind, *words.split(), "--out", f"OUT/{name}.json")
    return Step(name, command, seconds, target, tuple(dry.split()))


TINY = "--rounds 1 --k 2 --horizon 4"
ON_GPU = ("--cuda_graphs",)
"""which a dry run leaves out"""
STEPS = (
    Step(
        "tests",
        ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_acceleration.py", "tests/algos/test_precision.py",
         "tests/gpu"),
        110,
        "all pass",
        ("-k", "test_a_replay_reads"),
    ),
    benchmark("sampler", "--rounds 3 --cuda_graphs", 45, "graph = plain within 1e-5", f"--net mlp --batch 4 {TINY}"),
    benchmark("iteration-mlp", "--rounds 3 --cuda_graphs", 70, "<= 100 ms", f"{TINY} --num_envs 4 --decisions 2"),
    benchmark("latency", "--rounds 5 --k 1 8 --cuda_graphs", 50, "UNet >= 5 kHz (K = 1), 800 Hz (8); MLP 3 kHz (8)",
              f"--net mlp {TINY}"),
    benchmark("iteration-unet", "--net unet --rounds 2 --cuda_graphs", 80, "<= 600 ms",
              f"{TINY} --net mlp --num_envs 4 --decisions 2"),
    benchmark("update", "--net unet mlp --batch 256 --horizon 16 --rounds 3 --cuda_graphs", 40, "UNet a third of 50 ms",
              f"{TINY} --net mlp --batch 4"),
    Step(
        "memory",
        ("test_reinflow_memory_real.py", "--env", "SyntheticChunk-v0", "--obs_mode", "rgb", "--num_envs", "256",
         "--timeout", "30", "--output", "OUT/memory"),
        60,
        "frozen, 256 envs: <= 1.3 GB of torch",
        ("--num_envs", "2", "--minibatch_size", "4", "--rollout_steps", "2", "--net", "mlp"),
    ),
    benchmark("iteration-large", "--num_envs 1024 --decisions 32 --horizon 8 --k 4 --minibatch_size 1024 --rounds 2"
              " --cuda_graphs", 45, "<= 260 ms", f"{TINY} --num_envs 4 --decisions 2 --minibatch_size 4"),
    benchmark("cores", "--rounds 3", 25, "3 times 128 envs' speed", "--env_id Toy-v0 --workers 1 --per_worker 2 4"),
)  # fmt: skip


def main() -> int:
    """Run all steps; 1 where one of them failed."""
    flags = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    flags.add_argument("out", type=Path, help="folder of logs, results and table.md")
    flags.add_argument("--dry", action="store_true", help="tiny sizes, which run anywhere and measure nothing")
    args = flags.parse_args()
    outcomes = run_all([dried(step) for step in STEPS] if args.dry else STEPS, args.out.resolve(), TOTAL)
    print(f"wrote {args.out / 'table.md'}")
    return int(any(outcome.ending != "ok" for outcome in outcomes))


def dried(step: Step) -> Step:
    """The same in tiny, without what needs a GPU; of words that come twice the last count."""
    words = tuple(word for word in step.words if word not in ON_GPU)
    return Step(step.name, (*words, *step.dry), step.seconds, step.target)


def run_all(steps: Sequence[Step], out: Path, total: float) -> list[Outcome]:
    """One after the other until `total` seconds are over; the table is written after each."""
    out.mkdir(parents=True, exist_ok=True)
    ends, outcomes = time.monotonic() + total, []
    machine = described()
    for step in steps:
        left = ends - time.monotonic()
        outcomes.append(run(step, out, left) if left > WORTH_STARTING else Outcome(step, 0.0, "no time left"))
        (out / "table.md").write_text(table(machine, outcomes))
        print(f"{step.name:16} {outcomes[-1].ending} after {outcomes[-1].seconds:.0f} s", flush=True)
    return outcomes


def run(step: Step, out: Path, left: float) -> Outcome:
    """A step in a process of its own, its output in OUT/<name>.log."""
    words = [word.replace("OUT", str(out), 1) if word.startswith("OUT/") else word for word in step.words]
    limit, began = min(step.seconds, left), time.monotonic()
    with (out / f"{step.name}.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, *words], stdout=log, stderr=log, cwd=ROOT, start_new_session=True, stdin=subprocess.DEVNULL
        )
        try:
            code = process.wait(limit)
            ending = "ok" if code == 0 else f"exit code {code}: {last_line(Path(log.name))}"
        except subprocess.TimeoutExpired:
            ending = f"ended after {limit:.0f} s"
        finally:
            end_all_of(process)
    return Outcome(step, time.monotonic() - began, ending, list(results(out, step.name)))


def end_all_of(process: subprocess.Popen[bytes]) -> None:
    """And of the processes that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def last_line(log: Path) -> str:
    """Of what a step printed."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "no output"


def results(out: Path, name: str) -> Iterator[str]:
    """The numbers of a step's files, if it wrote any."""
    rows: list[dict[str, Any]] = []
    if (out / f"{name}.json").exists():
        rows = json.loads((out / f"{name}.json").read_text())["rows"]
    elif (out / f"{name}.csv").exists():
        with (out / f"{name}.csv").open() as file:
            rows = list(csv.DictReader(file))
    for row in rows:
        yield from described_row(row)


def described_row(row: dict[str, Any]) -> Iterator[str]:
    """A row of any benchmark, a line per variant."""
    if "case" in row:
        times = {name: statistics.median(seconds) for name, seconds in row["seconds"].items()}
        found = ", ".join(f"{name} {1e3 * seconds:.2f} ms" for name, seconds in times.items())
        yield f"{row['case']}: {found}; they differ by {row['relative_difference']:.1e}"
    elif "hz" in row:
        yield f"{row['net']}, K = {row['k']}, {row.get('way', 'plain')}: {row['hz']:,.0f} Hz"
    elif "per_worker" in row:
        speed = row["workers"] * row["per_worker"] / statistics.median(row["seconds"])
        yield f"{row['workers']} x {row['per_worker']} envs: {speed:,.0f} env steps/s"
    elif "num_envs" in row and "verdict" in row:
        encoder = "frozen" if row["freeze_visual_encoder"] == "True" else "trained"
        peaks = ", ".join(f"{name.split('_')[0]} {megabytes(row.get(name))}" for name in PEAKS)
        yield f"{row['num_envs']} envs, encoder {encoder}: {peaks if row.get(PEAKS[-1]) else row['verdict']}"


PEAKS = ("torch_peak_mb", "device_peak_mb", "host_peak_mb")


def megabytes(number: str | None) -> str:
    """Of a cell that may be empty."""
    return f"{float(number):,.0f} MB" if number else "-"


def described() -> str:
    """Card, driver, versions and commit."""
    facts = {**fingerprint(), "gpu": asked("name"), "driver": asked("driver_version")}
    names = ("gpu", "driver", "cpu", "cores", "torch", "mani_skill", "commit", "date")
    return ", ".join(f"{name} {facts[name]}" for name in names if facts[name] is not None)


def asked(what: str) -> str | None:
    """What nvidia-smi says of the first GPU; None where there is none."""
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout.strip() else None


def table(machine: str, outcomes: Sequence[Outcome]) -> str:
    """Markdown: a row per step, its results below each other."""
    lines = [machine, "", "| step | ending | seconds | target, one H100 | found |", "|---|---|---|---|---|"]
    for one in outcomes:
        found = "<br>".join(one.found).replace("|", "/")
        ending = one.ending.replace("|", "/")
        lines.append(f"| {one.step.name} | {ending} | {one.seconds:.0f} | {one.step.target} | {found} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
