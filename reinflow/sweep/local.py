"""Runs the jobs of a plan on one machine: one queue, and each slot, a share of a GPU or of the cores, takes the next.

The jobs end with the sweep: a child gets SIGTERM when its parent dies, however it dies, and the next sweep goes on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from reinflow.run.directory import is_free, lock
from reinflow.sweep.attempt import (
    GRACE_SECONDS,
    POLL_SECONDS,
    Slot,
    conclude,
    cpu_slot,
    is_done,
    launch,
    new_record,
    sigterm_as_ctrl_c,
    stop,
)
from reinflow.sweep.plan import Job
from reinflow.sweep.records import Record


def gpu_slots(gpus: list[str], jobs_per_gpu: int) -> list[Slot]:
    """`jobs_per_gpu` slots for every GPU; jobs spread over GPUs before they share one."""
    return [Slot(gpu, {"CUDA_VISIBLE_DEVICES": gpu}) for _ in range(jobs_per_gpu) for gpu in gpus]


def cpu_slots(jobs: int | None) -> list[Slot]:
    """One job per core unless `jobs` says otherwise."""
    cores = os.cpu_count() or 1
    count = jobs or cores
    return [cpu_slot(f"cpu{index}", max(cores // count, 1)) for index in range(count)]


def visible_gpus() -> list[str]:
    """Indices of the machine's GPUs, or those of CUDA_VISIBLE_DEVICES; asks nvidia-smi, not torch, which is slow."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [word for word in chosen.split(",") if word.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return [str(index) for index, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]


class LocalSweep:
    """A context manager: what still runs at its end is stopped."""

    def __init__(self, jobs: list[Job], slots: list[Slot], log_dir: Path, resume: bool, say: Callable[[str], None]):
        """UserError if another sweep works in `log_dir`."""
        log_dir.mkdir(parents=True, exist_ok=True)
        self._lock = lock(log_dir)
        self.log_dir = log_dir
        self.resume = resume
        self.say = say
        self.free = deque(slots)
        self.jobs = {job.name: job for job in jobs}
        self.records = {job.name: new_record(job, log_dir) for job in jobs}
        self.queue = deque(name for name, record in self.records.items() if record.state == "queued")
        self.running: dict[str, tuple[subprocess.Popen[bytes], Slot]] = {}
        self.waiting: set[str] = set()
        """jobs that an earlier sweep's process still trains"""

    def __enter__(self) -> LocalSweep:
        self._exits = ExitStack()
        self._exits.enter_context(sigterm_as_ctrl_c())
        return self

    def __exit__(self, *error: object) -> None:
        self._stop_all()
        self._exits.close()
        self._lock.close()

    def run(self) -> list[Record]:
        """Run all jobs to their end; returns their records."""
        done = len(self.records) - len(self.queue)
        self.say(f"{len(self.queue)} jobs to run, {done} done before, {len(self.free)} at a time")
        while self.queue or self.running:
            while self.free and (name := self._next()) is not None:
                self._start(name, self.free.popleft())
            for name in [name for name, (process, _) in self.running.items() if process.poll() is not None]:
                self._finish(name)
            time.sleep(POLL_SECONDS)
        return list(self.records.values())

    def _next(self) -> str | None:
        """Take a job from the queue; one whose last process has not ended yet waits."""
        for name in list(self.queue):
            if not is_free(self.jobs[name].run_dir):
                if name not in self.waiting:
                    self.say(f"{name} waits for the process that still trains it")
                    self.waiting.add(name)
                continue
            self.queue.remove(name)
            if name in self.waiting and is_done(self.jobs[name]):
                conclude(self.records[name], 0, self.log_dir)
                continue
            return name
        return None

    def _start(self, name: str, slot: Slot) -> None:
        process = launch(self.jobs[name], self.records[name], slot, self.log_dir, self.resume)
        self.running[name] = (process, slot)
        goes_on = "--resume" in self.records[name].command
        self.say(f"{name} {'goes on' if goes_on else 'starts'} on {slot.name}")

    def _finish(self, name: str) -> None:
        process, slot = self.running.pop(name)
        self.free.append(slot)
        record, code = self.records[name], process.returncode
        conclude(record, code, self.log_dir)
        if record.state == "queued":
            self.queue.append(name)
        ending = record.state if record.state != "queued" else "failed and is tried again"
        self.say(f"{name} {ending}" + (f" (exit {code}): {record.error}" if code else ""))

    def _stop_all(self) -> None:
        for process, _ in self.running.values():
            process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for name, (process, _) in self.running.items():
            stop(process, deadline)
            self.records[name].state, self.records[name].pid = "killed", None
            self.records[name].save(self.log_dir)
        self.running.clear()
