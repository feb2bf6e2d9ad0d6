"""Runs the jobs of a plan on one machine: one queue, and each slot, a share of a GPU or of the cores, takes the next.

The jobs end with the sweep: a child gets SIGTERM when its parent dies, however it dies, and the next sweep goes on.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from reinflow.rundir import lock
from reinflow.status import read_status
from reinflow.sweep.plan import Job
from reinflow.sweep.records import Record

POLL_SECONDS = 0.2
GRACE_SECONDS = 15
"""a run that was asked to end gets this long before it is killed"""
ATTEMPTS = 2
USER_ERROR = 2
"""exit code of a mistake in the input, which a second attempt would repeat"""
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Slot:
    """Where one job at a time runs."""

    name: str
    environment: dict[str, str]
    extra: tuple[str, ...] = ()
    """flags that fit a run to the slot without changing its result"""


def gpu_slots(gpus: list[str], jobs_per_gpu: int) -> list[Slot]:
    return [Slot(gpu, {"CUDA_VISIBLE_DEVICES": gpu}) for _ in range(jobs_per_gpu) for gpu in gpus]


def cpu_slots(jobs: int | None) -> list[Slot]:
    """One job per core unless `jobs` says otherwise; a job alone on its core simulates in its own process."""
    cores = os.cpu_count() or 1
    count = jobs or cores
    share = max(cores // count, 1)
    extra = ("--num_threads", str(share), "--num_workers", str(share if share > 1 else 0))
    environment = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(share)}
    return [Slot(f"cpu{index}", environment, extra) for index in range(count)]


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
        self.records = {job.name: self._new_record(job) for job in jobs}
        self.queue = deque(name for name, record in self.records.items() if record.state == "queued")
        self.running: dict[str, tuple[subprocess.Popen[bytes], Slot]] = {}

    def __enter__(self) -> LocalSweep:
        self._handler = signal.signal(signal.SIGTERM, stop)
        return self

    def __exit__(self, *error: object) -> None:
        self._stop_all()
        signal.signal(signal.SIGTERM, self._handler)
        self._lock.close()

    def run(self) -> list[Record]:
        """Run all jobs to their end; returns their records."""
        done = len(self.records) - len(self.queue)
        self.say(f"{len(self.queue)} jobs to run, {done} done before, {len(self.free)} at a time")
        while self.queue or self.running:
            while self.queue and self.free:
                self._start(self.queue.popleft(), self.free.popleft())
            for name in [name for name, (process, _) in self.running.items() if process.poll() is not None]:
                self._finish(name)
            time.sleep(POLL_SECONDS)
        return list(self.records.values())

    def _new_record(self, job: Job) -> Record:
        finished = read_status(job.run_dir / "status.json").get("state") == "done"
        variant = job.variant
        record = Record(job.name, variant.category, variant.name, job.seed, str(job.run_dir))
        if finished:
            record.state, record.attempts = "done", 1
        record.save(self.log_dir)
        return record

    def _start(self, name: str, slot: Slot) -> None:
        job, record = self.jobs[name], self.records[name]
        goes_on = (self.resume or record.attempts > 0) and any(job.run_dir.glob("checkpoints/step_*[0-9]"))
        record.command = job.command(goes_on, slot.extra)
        with (self.log_dir / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                record.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **slot.environment},
                start_new_session=True,  # Ctrl-C reaches the sweep alone, which then ends its children one by one
                preexec_fn=die_with_parent,
            )
        record.state, record.slot, record.pid = "running", slot.name, process.pid
        record.attempts += 1
        record.started, record.error = time.time(), None
        record.save(self.log_dir)
        self.running[name] = (process, slot)
        self.say(f"{name} {'goes on' if goes_on else 'starts'} on {slot.name}")

    def _finish(self, name: str) -> None:
        process, slot = self.running.pop(name)
        self.free.append(slot)
        record, code = self.records[name], process.returncode
        record.ended, record.pid = time.time(), None
        if code == 0:
            record.state = "done"
        else:
            record.state, record.error = "failed", last_line(self.log_dir / f"{name}.log")
            if record.attempts < ATTEMPTS and code != USER_ERROR:
                record.state = "queued"
                self.queue.append(name)
        record.save(self.log_dir)
        ending = record.state if record.state != "queued" else "failed and is tried again"
        self.say(f"{name} {ending}" + (f" (exit {code}): {record.error}" if code else ""))

    def _stop_all(self) -> None:
        for process, _ in self.running.values():
            process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for name, (process, _) in self.running.items():
            try:
                process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self.records[name].state, self.records[name].pid = "killed", None
            self.records[name].save(self.log_dir)
        self.running.clear()


def stop(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends a sweep as Ctrl-C does."""
    raise KeyboardInterrupt


def die_with_parent() -> None:
    """Between fork and exec: ask Linux to send this child SIGTERM when its parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def last_line(log: Path) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"
