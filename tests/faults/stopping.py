"""F1, F2, F4, F15: kills, failing system calls, signals, and what a long run leaves behind."""

from __future__ import annotations

import json
import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from reinflow.policies import build_policy
from reinflow.storage.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from reinflow.storage.resumable import latest_training, save_training
from reinflow.training import keeper
from tests.faults.runs import (
    Child,
    assert_same,
    complete,
    every_call,
    fork,
    newest_step,
    prepared,
    resume,
    tail,
)
from tests.faults.strikes import Strike, at, hit, on_calls_of_saves, on_checks, since
from tests.small import run_stage
from tests.test_checkpoint import ENV, SPEC

ITERATION = 4 * 5 * 4
"""env steps of an iteration of the small Stage 3: envs, decisions, steps of a chunk"""


def kills(folder: Path, full: bool) -> str:
    """F1: kill -9 at counted calls of the training, some of them at a system call of a save."""
    wanted, in_saves = (50, 16) if full else (4, 2)
    prepared(folder)
    checks, calls = whole_run(folder)
    draw, early = random.Random(0), 0
    for index in range(wanted):
        name, run, note = f"killed{index}", folder / "runs" / f"killed{index}", folder / f"killed{index}.struck"
        if index < in_saves:
            arm = partial(on_calls_of_saves, at(draw.randint(1, calls), partial(hit, signal.SIGKILL, note)))
        else:
            arm = Strike.drawn(draw, signal.SIGKILL, note, (1, checks)).arm
        assert armed(arm, folder, name).wait() == -signal.SIGKILL, f"{name} lived: {tail(folder / f'{name}.log')}"
        found = complete(run)
        for state in found:
            load_checkpoint(run / "checkpoints" / state)
        if found:
            assert newest_step(run) >= int(found[0].split("_")[1].split("-")[0]), f"{name} lost {found[0]}"
        else:  # killed before its first state: there is nothing to resume
            early += 1
        finish(folder, name)
        assert_same(folder, "whole", name)
    resumed = f"all resumed bit-equal but {early} that had no state yet and started again, 0 states lost"
    return f"{wanted} kills, {in_saves} of them inside a save: {resumed}"


def whole_run(folder: Path) -> tuple[int, int]:
    """Run the small Stage 3 undisturbed; how often it checks for signals, and the system calls of its saves."""
    counts = Counter[str]()

    def work() -> None:
        on_checks(partial(counts.update, ["checks"]))
        on_calls_of_saves(partial(counts.update, ["calls"]))
        run_stage(3, folder, "whole", quiet=False)
        (folder / "counts").write_text(f"{counts['checks']} {counts['calls']}")

    assert fork(work, folder / "whole.log").wait() == 0, tail(folder / "whole.log")
    checks, calls = (folder / "counts").read_text().split()
    return int(checks), int(calls)


def armed(arm: Callable[[], None], folder: Path, name: str) -> Child:
    """The small Stage 3 in a process that strikes itself."""

    def work() -> None:
        arm()
        run_stage(3, folder, name, quiet=False)

    return fork(work, folder / f"{name}.log")


def finish(folder: Path, name: str) -> None:
    """Go on with a run that was struck, from its start where it has no state yet."""
    if complete(folder / "runs" / name):
        resume(3, folder, name)
    else:
        run_stage(3, folder, name, "--overwrite")


def failing_calls(folder: Path, full: bool) -> str:
    """F2: every system call of a save fails once, and once the process dies there."""
    weights = build_policy(SPEC).state_dict()

    def save(step: int) -> None:
        save_training(folder, step, Checkpoint(SPEC, ENV, weights, training={"step": step}))
        save_checkpoint(folder / "best_model.safetensors", Checkpoint(SPEC, ENV, weights, meta={"step": step}))

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

            died += die and fork(work, folder / "log").wait() == -signal.SIGKILL
            count += not die and surfaces(work)
            left = latest_training(folder, say=lambda line: None).training or {}
            assert left["step"] in (step - 1, step), f"after call {number} the newest state is {left['step']}"
            assert load_checkpoint(folder).meta["step"] <= step
    return f"{total} system calls: {count} failures surfaced, {died} deaths; a good state was there every time"


def surfaces(work: Callable[[], None]) -> bool:
    """Whether `work` ends in an error of the system."""
    try:
        work()
    except OSError:
        return True
    return False


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
    """F4: SIGTERM at counted calls, once, and again inside the save that it asked for."""
    once, twice = (20, 5) if full else (2, 1)
    prepared(folder)
    checks, _ = whole_run(folder)  # a signal after the last one finds a run that is done
    draw, slowest = random.Random(1), 0.0
    for index in range(once + twice):
        name, run, note = f"stopped{index}", folder / "runs" / f"stopped{index}", folder / f"stopped{index}.struck"
        if index < once:
            arm = Strike.drawn(draw, signal.SIGTERM, note, (1, checks - 2)).arm
        else:
            again = partial(on_calls_of_saves, at(draw.randint(1, 20), partial(hit, signal.SIGTERM, note)))
            first = Strike.drawn(draw, signal.SIGTERM, folder / f"{name}.first", (1, checks - 2))
            arm = partial(first.arm, then=again)
        code = armed(arm, folder, name).wait()
        slowest = max(slowest, since(note))
        assert code == 143, f"{name} ended with {code}: {tail(folder / f'{name}.log')}"
        if index < once:
            lost = logged_steps(run) - newest_step(run)
            assert lost <= ITERATION, f"{name} lost {lost} env steps"
        finish(folder, name)
        assert_same(folder, "whole", name)
    sent = f"{once + twice} signals, {twice} sent twice"
    return f"{sent}: at most one iteration lost, {slowest:.2f} s to the exit, bit-equal"


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
