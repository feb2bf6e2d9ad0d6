"""F7, F12, F14: dying workers, two trainers in one directory, dying sweeps."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from reinflow.envs.toy import ToyEnv
from reinflow.envs.workers import WorkerChunkEnv
from reinflow.envs.wrappers import ActionChunk
from reinflow.rundir import RunDir
from reinflow.sweep.configs import VARIANTS
from reinflow.sweep.local import LocalSweep, Slot
from reinflow.sweep.plan import Job
from reinflow.sweep.records import read_records
from tests.faults.runs import fork, tail


def toys(num_envs: int, worker: int) -> ActionChunk:
    return ActionChunk(ToyEnv(num_envs), 4, 1, 0.97)


def workers(folder: Path, full: bool) -> str:
    """F7: a worker killed and a worker stopped, many times; the other one goes on as if nothing had happened."""
    deaths = [signal.SIGKILL] * (20 if full else 1) + [signal.SIGSTOP] * (5 if full else 0)
    env, alone = WorkerChunkEnv(toys, 4, 2, 4, chunk_seconds=2.0), toys(2, 0)
    env.reset(seed=0)
    alone.reset(seed=0)
    lost = 0
    actions = torch.full((4, 4, 2), 0.2)
    for number in deaths:
        process = env._workers[1].process
        os.kill(process.pid or 0, number)
        for expected in (2, 0):
            step, own = env.step_chunk(actions), alone.step_chunk(actions[:2])
            assert step.broken.tolist() == [False, False, *[expected == 2] * 2]
            assert torch.equal(step.obs["state"][:2], own.obs["state"]), "the other worker noticed"
            lost += int(step.broken.sum())
        assert not process.is_alive()
    env.close()
    return f"{len(deaths)} deaths and hangs: {lost // 2} chunks of the worker lost, the other worker's bits unchanged"


def two_trainers(folder: Path, full: bool) -> str:
    """F12: a second trainer is refused at once, and a dead one's lock is free."""
    run = folder / "run"
    run.mkdir()
    (run / "config.json").write_text('{"config": {}, "flags": {}, "argv": [], "versions": {}}')

    def hold() -> None:
        held = RunDir.take(run, resume=str(run), overwrite=False)
        (folder / "held").touch()
        time.sleep(60)
        held.release()

    def second() -> None:
        began = time.perf_counter()
        try:
            RunDir.take(run, resume=str(run), overwrite=False)
        finally:
            (folder / "seconds").write_text(str(time.perf_counter() - began))

    first = fork(hold, folder / "log")
    while not (folder / "held").exists():
        time.sleep(0.01)
    assert fork(second, folder / "log").wait() == 2, "a second trainer was let in"
    seconds = float((folder / "seconds").read_text())
    assert seconds < 1
    first.send(signal.SIGKILL)
    first.wait()
    assert fork(second, folder / "log").wait() == 0, "the lock of a dead trainer was kept"
    return f"refused after {seconds * 1e3:.0f} ms; free again after kill -9"


SCRIPT = """
run=$1; mkdir -p "$run"; echo '{"state": "running"}' > "$run/status.json"; sleep 0.3
echo done >> "$run/ends"; echo '{"state": "done"}' > "$run/status.json"
"""


@dataclass(frozen=True)
class ShellJob(Job):
    """A job of a third of a second."""

    def command(self, resume: bool = False, extra: tuple[str, ...] = ()) -> list[str]:
        return ["/bin/sh", "-c", SCRIPT, "job", str(self.run_dir)]


def sweeps(folder: Path, full: bool) -> str:
    """F14: a sweep whose driver and whose jobs are killed while it runs."""
    drivers, kills, count = (5, 10, 22) if full else (1, 1, 6)
    jobs = [ShellJob(variant, 0, "guide", {"seed": 0}, folder / "sweep") for variant in VARIANTS[:count]]
    draw, killed = random.Random(0), 0

    def drive() -> None:
        slots = [Slot(f"cpu{index}", {}) for index in range(3)]
        with LocalSweep(jobs, slots, folder / "sweep", False, print) as sweep:
            sweep.run()

    for _ in range(drivers):
        driver = fork(drive, folder / "log")
        wanted = killed + kills // drivers
        while killed < wanted and driver.running():
            time.sleep(draw.uniform(0.1, 0.3))
            pids = [record.pid for record in read_records(folder / "sweep") if record.state == "running" and record.pid]
            if pids:
                try:
                    os.kill(draw.choice(pids), signal.SIGKILL)
                    killed += 1
                except ProcessLookupError:
                    continue
        driver.send(signal.SIGKILL)
        driver.wait()
    while fork(drive, folder / "log").wait() != 0:
        raise AssertionError(tail(folder / "log"))
    ends = Counter(len((job.run_dir / "ends").read_text().split()) for job in jobs)
    assert ends == Counter({1: count}), f"times that jobs ended: {dict(ends)}"
    assert {record.state for record in read_records(folder / "sweep")} == {"done"}
    return f"{drivers} drivers and {killed} jobs killed: {count}/{count} done exactly once"
