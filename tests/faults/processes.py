"""F7, F12, F14: dying workers, two trainers in one directory, dying sweeps."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from reinflow.envs.toy import ToyEnv
from reinflow.envs.workers import CHUNK_SECONDS, Worker, WorkerChunkEnv
from reinflow.envs.wrappers import ActionChunk
from reinflow.run.directory import RunDir
from reinflow.sweep.configs import VARIANTS
from reinflow.sweep.local import LocalSweep, Slot
from reinflow.sweep.plan import Job
from reinflow.sweep.records import alive, read_records
from tests.faults.runs import fork, tail
from tests.waiting import wait_for


def toys(num_envs: int, first: int) -> ActionChunk:
    return ActionChunk(ToyEnv(num_envs), 4, 1, 0.97)


def workers(folder: Path, full: bool) -> str:
    """F7: a worker killed and a worker stopped, many times; the other one goes on as if nothing had happened."""
    deaths = [signal.SIGKILL] * (20 if full else 1) + [signal.SIGSTOP] * (5 if full else 0)
    env, alone = WorkerChunkEnv(toys, 4, 2, 4), toys(2, 0)
    env.reset(seed=0)
    alone.reset(seed=0)
    lost = 0
    actions = torch.full((4, 4, 2), 0.2)
    for number in deaths:
        worker = env._workers[1]
        process = worker.process
        os.kill(process.pid or 0, number)
        if number == signal.SIGSTOP:
            give_up_soon_on(worker)
        for expected in (2, 0):
            step, own = env.step_chunk(actions), alone.step_chunk(actions[:2])
            assert step.broken.tolist() == [False, False, *[expected == 2] * 2]
            assert torch.equal(step.obs["state"][:2], own.obs["state"]), "the other worker noticed"
            lost += int(step.broken.sum())
        assert not process.is_alive()
    env.close()
    return f"{len(deaths)} deaths and hangs: {lost // 2} chunks of the worker lost, the other worker's bits unchanged"


def give_up_soon_on(worker: Worker) -> None:
    """The wait for this worker's answer is cut short; for those that live it stays generous."""
    pipe = worker.pipe

    class Impatient:
        def poll(self, seconds: float) -> bool:
            assert seconds == CHUNK_SECONDS
            return pipe.poll(0.1)

        def __getattr__(self, name: str) -> Any:
            return getattr(pipe, name)

    worker.pipe = Impatient()  # type: ignore[assignment]


def two_trainers(folder: Path, full: bool) -> str:
    """F12: a second trainer is refused at once, and a dead one's lock is free."""
    run = folder / "run"
    run.mkdir()
    (run / "config.json").write_text('{"config": {}, "flags": {}, "argv": [], "versions": {}}')

    def hold() -> None:
        held = RunDir.take(run, resume=str(run), overwrite=False)
        (folder / "held").touch()
        signal.pause()
        held.release()

    def second() -> None:
        began = time.perf_counter()
        try:
            RunDir.take(run, resume=str(run), overwrite=False)
        finally:
            (folder / "seconds").write_text(str(time.perf_counter() - began))

    first = fork(hold, folder / "log")
    wait_for((folder / "held").exists)
    assert fork(second, folder / "log").wait() == 2, "a second trainer was let in"
    assert first.running(), "the second trainer waited for the first"
    seconds = float((folder / "seconds").read_text())
    first.send(signal.SIGKILL)
    first.wait()
    assert fork(second, folder / "log").wait() == 0, "the lock of a dead trainer was kept"
    return f"refused after {seconds * 1e3:.0f} ms; free again after kill -9"


SCRIPT = """
run=$1; mkdir -p "$run"; echo '{"state": "running"}' > "$run/status.json"; sleep 0.1
if rm "$run/doom" 2> /dev/null; then kill -9 $$; fi
trap '' TERM  # the end is one step: a signal comes before it or after it
echo done >> "$run/ends"; echo '{"state": "done"}' > "$run/status.json"
"""


@dataclass(frozen=True)
class ShellJob(Job):
    """A job of a tenth of a second, which kills itself at its end where a file `doom` is in its folder."""

    def command(self, resume: bool = False, extra: tuple[str, ...] = ()) -> list[str]:
        return ["/bin/sh", "-c", SCRIPT, "job", str(self.run_dir)]


def sweeps(folder: Path, full: bool) -> str:
    """F14: sweeps whose jobs are killed, and then their driver; each takes over from the one before."""
    drivers, kills, share, count = (5, 2, 4, 22) if full else (1, 1, 5, 6)
    jobs = [ShellJob(variant, 0, "guide", {"seed": 0}, folder / "sweep") for variant in VARIANTS[:count]]
    draw = random.Random(0)

    def drive(most: int, say: Callable[[str], None] = print) -> None:
        slots = [Slot(f"cpu{index}", {}) for index in range(3)]
        with LocalSweep(jobs[:most], slots, folder / "sweep", False, say) as sweep:
            sweep.run()

    for first in range(0, drivers * share, share):
        doomed = draw.sample(jobs[first : first + share], kills)
        for job in doomed:
            job.run_dir.mkdir(parents=True)
            (job.run_dir / "doom").touch()
        said = dies_after(kills, draw.randint(0, 1))
        assert fork(partial(drive, first + share, said), folder / "log").wait() == -signal.SIGKILL, tail(folder / "log")
        assert not any((job.run_dir / "doom").exists() for job in doomed)
        wait_for(lambda: not any(alive(record.pid) for record in read_records(folder / "sweep")))
    assert fork(partial(drive, count), folder / "log").wait() == 0, tail(folder / "log")
    ends = Counter(len((job.run_dir / "ends").read_text().split()) for job in jobs)
    assert ends == Counter({1: count}), f"times that jobs ended: {dict(ends)}"
    assert {record.state for record in read_records(folder / "sweep")} == {"done"}
    return f"{drivers} drivers and {drivers * kills} jobs killed: {count}/{count} done exactly once"


def dies_after(kills: int, lines: int) -> Callable[[str], None]:
    """What a driver says its lines to; it dies `lines` after that of the last kill, before that job is done."""
    said: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        said.append(line)
        places = [place for place, earlier in enumerate(said) if "SIGKILL" in earlier]
        if len(places) == kills and len(said) > places[-1] + lines:
            os.kill(os.getpid(), signal.SIGKILL)

    return say
