"""Small runs in forked processes, which may be killed, and what is left of them."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from reinflow.errors import UserError
from reinflow.runtime.trees import split
from reinflow.storage.resumable import latest_training, states
from tests.small import demo_file, run_stage
from tests.waiting import HANGS


@dataclass
class Child:
    """A forked process; `wait` gives its exit code, negative for the signal that ended it."""

    pid: int
    code: int | None = None

    def running(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is None

    def send(self, number: int) -> None:
        if self.running():
            os.kill(self.pid, number)

    def wait(self, seconds: float = HANGS) -> int:
        deadline = time.monotonic() + seconds
        while self.running():
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"the process was still running after {seconds:.0f} s")
            time.sleep(0.002)
        return self.code if self.code is not None else -1


def fork(work: Callable[[], Any], log: Path) -> Child:
    """Run `work` in a copy of this process, which starts at once; what it prints goes to `log`."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return Child(pid)
    code = 1
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        work()
        code = 0
    except UserError as error:
        print(f"error: {error}")
        code = 2
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def prepared(folder: Path) -> Path:
    """A folder with demonstrations and a checkpoint of Stage 1."""
    if not (folder / "runs" / "start").exists():
        folder.mkdir(parents=True, exist_ok=True)
        demo_file(folder)
        run_stage(1, folder, "start")
    return folder


def stage(number: int, folder: Path, name: str, *more: str) -> Callable[[], None]:
    return lambda: run_stage(number, folder, name, *more, quiet=False)


def start(number: int, folder: Path, name: str, *more: str) -> Child:
    return fork(stage(number, folder, name, *more), folder / f"{name}.log")


def resume(number: int, folder: Path, name: str) -> None:
    """Go on with a run until it is done."""
    code = start(number, folder, name, "--resume", str(folder / "runs" / name)).wait()
    assert code == 0, f"the resume of {name} ended with {code}: {tail(folder / f'{name}.log')}"


def tail(path: Path) -> str:
    return path.read_text(errors="replace")[-1500:]


def final(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """All tensors of a run's newest state."""
    return split(latest_training(folder / "runs" / name).training)[1]


def assert_same(folder: Path, first: str, second: str) -> None:
    """Both runs ended with equal weights, moments, env states and random states, and the same best model."""
    mine, theirs = final(folder, first), final(folder, second)
    assert mine.keys() == theirs.keys()
    different = [name for name in mine if not torch.equal(mine[name], theirs[name])]
    assert not different, f"{second} differs from {first} in {different[:3]}"
    best = [(folder / "runs" / name / "best_model.safetensors").read_bytes() for name in (first, second)]
    assert best[0] == best[1], f"{second} kept another best model"


def newest_step(run: Path) -> int:
    """Step of the newest state that verifies; -1 where there is none."""
    with suppress(UserError):
        return int((latest_training(run, say=lambda line: None).training or {})["step"])
    return -1


def complete(run: Path) -> list[str]:
    """Names of the states that stand at their place, newest first."""
    return [path.name for path in states(run)] if run.exists() else []


def status(run: Path) -> dict[str, Any]:
    return json.loads((run / "status.json").read_text())


CALLS = ("open", "write", "fsync", "close", "mkdir", "rename", "replace", "symlink", "unlink", "rmdir", "ftruncate")
"""of `os`: every change of the disk that a save makes"""


@contextmanager
def every_call(act: Callable[[int, str], None]) -> Iterator[None]:
    """While the block runs, `act(number, name)` comes before each system call that changes the disk."""
    count, plain = 0, {name: getattr(os, name) for name in CALLS}

    def wrapped(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            act(count, name)
            return plain[name](*arguments, **options)

        return call

    for name in CALLS:
        setattr(os, name, wrapped(name))
    try:
        yield
    finally:
        for name, function in plain.items():
            setattr(os, name, function)
