"""F1, F2, F4, F15: kills, failing system calls, signals, and what a long run leaves behind."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from reinflow import keeper
from reinflow.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from reinflow.policies import build_policy
from reinflow.resumable import latest_training, save_training
from tests.faults.runs import (
    assert_same,
    complete,
    every_call,
    fork,
    newest_step,
    prepared,
    resume,
    stage,
    start,
    tail,
)
from tests.small import run_stage
from tests.test_checkpoint import ENV, SPEC

ITERATION = 4 * 5 * 4
"""env steps of an iteration of the small Stage 3: envs, decisions, steps of a chunk"""


def kills(folder: Path, full: bool) -> str:
    """F1: kill -9 at random times, some of them at a random system call of a save."""
    wanted, in_saves = (50, 16) if full else (4, 2)
    prepared(folder)
    began = time.perf_counter()
    assert start(3, folder, "whole").wait() == 0, tail(folder / "whole.log")
    seconds, draw = time.perf_counter() - began, random.Random(0)
    struck, index, early = 0, 0, 0
    while struck < wanted:
        assert index < 3 * wanted, f"only {struck} of {index} kills struck"
        name, run = f"killed{index}", folder / "runs" / f"killed{index}"
        if struck >= in_saves:
            child = start(3, folder, name)
            time.sleep(draw.uniform(0.2, 0.9) * seconds)
            child.send(signal.SIGKILL)
        else:
            child = fork(killed_in_a_save(stage(3, folder, name), draw.randint(20, 75)), folder / f"{name}.log")
        code, index = child.wait(), index + 1
        assert code in (0, -signal.SIGKILL), f"{name} ended with {code}: {tail(folder / f'{name}.log')}"
        struck += code == -signal.SIGKILL
        found = complete(run)
        for state in found:
            load_checkpoint(run / "checkpoints" / state)
        if found:
            assert newest_step(run) >= int(found[0].split("_")[1].split("-")[0]), f"{name} lost {found[0]}"
            resume(3, folder, name)
        else:  # killed before its first state: there is nothing to resume
            early += 1
            run_stage(3, folder, name, "--overwrite")
        assert_same(folder, "whole", name)
    resumed = f"all resumed bit-equal but {early} that had no state yet and started again, 0 states lost"
    return f"{struck} kills, {in_saves} of them inside a save: {resumed}"


def killed_in_a_save(work: Callable[[], None], at: int) -> Callable[[], None]:
    """`work` that dies at the `at`-th system call which its saves make."""

    def doomed() -> None:
        save, count = keeper.save_training, 0

        def step(number: int, name: str) -> None:
            nonlocal count
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

        def saving(*arguments: object) -> Path:
            with every_call(step):
                return save(*arguments)  # type: ignore[arg-type]

        keeper.save_training = saving  # type: ignore[assignment]
        work()

    return doomed


def failing_calls(folder: Path, full: bool) -> str:
    """F2: every system call of a save fails once, and once the process dies there."""
    weights = build_policy(SPEC).state_dict()

    def save(step: int) -> None:
        save_training(folder, step, Checkpoint(SPEC, ENV, weights, training={"step": step}))
        save_checkpoint(folder / "best_model.pt", Checkpoint(SPEC, ENV, weights, meta={"step": step}))

    for step in (1, 2):
        save(step)
    count, step, died = 0, 2, 0
    with every_call(lambda number, name: None):
        save(3)
    total = calls_of(lambda: save(4))
    for number in range(1, total + 1):
        for die in (False, True):
            step = newest_step(folder) + 1

            def strike(at: int, name: str, number: int = number, die: bool = die) -> None:
                if at == number:
                    if die:
                        os.kill(os.getpid(), signal.SIGKILL)
                    raise OSError(5, f"{name} failed")

            def work(step: int = step, strike: Callable[[int, str], None] = strike) -> None:
                with every_call(strike):
                    save(step)

            if die:
                died += fork(work, folder / "log").wait() == -signal.SIGKILL
            else:
                try:
                    work()
                except OSError:
                    count += 1
            left = latest_training(folder, say=lambda line: None).training or {}
            assert left["step"] in (step - 1, step), f"after call {number} the newest state is {left['step']}"
            assert load_checkpoint(folder).meta["step"] <= step
    return f"{total} system calls: {count} failures surfaced, {died} deaths; a good state was there every time"


def calls_of(work: Callable[[], None]) -> int:
    """System calls that `work` makes."""
    count = 0

    def step(number: int, name: str) -> None:
        nonlocal count
        count = number

    with every_call(step):
        work()
    return count


def signals(folder: Path, full: bool) -> str:
    """F4: SIGTERM at random points, once and twice."""
    once, twice = (20, 5) if full else (2, 1)
    prepared(folder)
    began = time.perf_counter()
    assert start(3, folder, "whole").wait() == 0, tail(folder / "whole.log")
    seconds, draw = time.perf_counter() - began, random.Random(1)
    struck, index, slowest = 0, 0, 0.0
    while struck < once + twice:
        assert index < 3 * (once + twice), f"only {struck} of {index} signals struck"
        name, run = f"stopped{index}", folder / "runs" / f"stopped{index}"
        child = start(3, folder, name)
        time.sleep(draw.uniform(0.2, 0.9) * seconds)
        sent = time.perf_counter()
        child.send(signal.SIGTERM)
        if struck >= once:
            time.sleep(0.01)
            child.send(signal.SIGTERM)
        code, index = child.wait(), index + 1
        assert code in (0, 143), f"{name} ended with {code}: {tail(folder / f'{name}.log')}"
        if code == 143:
            slowest = max(slowest, time.perf_counter() - sent)
            if struck < once and complete(run):
                lost = logged_steps(run) - newest_step(run)
                assert lost <= ITERATION, f"{name} lost {lost} env steps"
            struck += 1
        if complete(run):
            resume(3, folder, name)
        else:
            run_stage(3, folder, name, "--overwrite")
        assert_same(folder, "whole", name)
    return f"{struck} signals, {twice} sent twice: at most one iteration lost, {slowest:.2f} s to the exit, bit-equal"


def logged_steps(run: Path) -> int:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)["step"] for line in lines), default=0)


def endurance(folder: Path, full: bool) -> str:
    """F15: many tiny iterations leave memory and open files as they were."""
    iterations = 2000 if full else 120
    prepared(folder)
    samples: list[tuple[int, int]] = []

    def sample() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        samples.append((pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))))

    def work() -> None:
        mark, count = keeper.Keeper.mark, 0

        def counted(self: keeper.Keeper, step: int) -> None:
            nonlocal count
            count += 1
            if count in (iterations // 2, iterations):
                sample()
            mark(self, step)

        keeper.Keeper.mark = counted  # type: ignore[method-assign]
        length = ["--rollout_steps", "1", "--num_envs", "2", "--minibatch_size", "2", "--ppo_epochs", "1"]
        every = ["--eval_freq", "0", "--save_freq", str(iterations // 4), "--total_timesteps", str(8 * iterations + 8)]
        run_stage(3, folder, "long", *length, *every, quiet=False)
        (early, files), (late, files_later) = samples[0], samples[-1]
        growth = late / early - 1
        (folder / "endurance").write_text(f"{growth:.4f} {files} {files_later}")

    code = fork(work, folder / "long.log").wait(600)
    assert code == 0, tail(folder / "long.log")
    growth, files, later = (folder / "endurance").read_text().split()
    assert float(growth) < 0.01, f"memory grew by {float(growth):.1%} in the second half"
    # a state that is being written is one more at either time
    assert int(later) <= int(files) + 1, f"{files} open files became {later}"
    return f"{iterations} iterations: memory {float(growth):+.2%} in the second half, {later} open files at its end"
