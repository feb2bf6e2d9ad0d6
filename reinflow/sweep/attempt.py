"""A job becomes a process: how it is started, what its end means for its record, and how it is stopped."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from reinflow.run.directory import is_free
from reinflow.run.status import read_status
from reinflow.sweep.plan import Job
from reinflow.sweep.records import Record, alive, read_record

POLL_SECONDS = 0.2
GRACE_SECONDS = 15
"""a run that was asked to end gets this long before it is killed"""
FAILURES = 2
"""a job is given up after so many; a lost machine is none"""
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
    folder: Path | None = None
    """that relative paths in a job's flags start from; None is this process's own"""


def cpu_slot(name: str, cores: int, folder: Path | None = None) -> Slot:
    """A run alone on its core simulates in its own process."""
    extra = ("--num_threads", str(cores), "--num_workers", str(cores if cores > 1 else 0))
    return Slot(name, {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(cores)}, extra, folder)


def new_record(job: Job, log_dir: Path) -> Record:
    """The job's record at the start of a sweep: done where its run is done, queued otherwise."""
    variant = job.variant
    record = Record(job.name, variant.category, variant.name, job.seed, str(job.run_dir))
    if is_done(job):
        record.state, record.attempts = "done", 1
    record.save(log_dir)
    return record


def is_done(job: Job) -> bool:
    """Whether the run's own status says that it reached its end."""
    return read_status(job.run_dir / "status.json").get("state") == "done"


def launch(job: Job, record: Record, slot: Slot, log_dir: Path, resume: bool) -> subprocess.Popen[bytes]:
    """Start an attempt, which goes on from a checkpoint of this sweep, or of an earlier one if `resume`."""
    goes_on = (resume or record.attempts > 0) and any(job.run_dir.glob("checkpoints/step_*[0-9]"))
    record.command = job.command(goes_on, slot.extra)
    with (log_dir / f"{job.name}.log").open("ab") as log:
        process = subprocess.Popen(
            record.command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **slot.environment},
            cwd=slot.folder,
            start_new_session=True,  # Ctrl-C reaches the sweep alone, which then ends its children one by one
            preexec_fn=die_with_parent,
        )
    record.runs_as(slot.name, process.pid)
    record.save(log_dir)
    return process


def conclude(record: Record, code: int, log_dir: Path) -> None:
    """Set what an exit code means: done, queued for another attempt, or failed."""
    record.ended, record.pid = time.time(), None
    if code == 0:
        record.state = "done"
    else:
        record.failures += 1
        record.error = last_line(log_dir / f"{record.name}.log") if code > 0 else ended_by(-code)
        again = record.failures < FAILURES and code != USER_ERROR
        record.state = "queued" if again else "failed"
    record.save(log_dir)


def stop(process: subprocess.Popen[bytes], deadline: float) -> None:
    """Ask a process to end, and kill it at `deadline` of the monotonic clock."""
    process.terminate()
    try:
        process.wait(max(deadline - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def run_to_end(job: Job, slot: Slot, log_dir: Path, resume: bool) -> Record:
    """All attempts of a job, for executors whose tasks wait; on any machine that shares `log_dir`.

    What is done is not done again, and what another attempt left behind is continued: an executor may call this for a
    job a second time, on another machine.
    """
    record = read_record(log_dir, job.name) or new_record(job, log_dir)
    while not is_free(job.run_dir):  # an attempt on a machine that was taken for lost
        time.sleep(POLL_SECONDS)
    if is_done(job):
        conclude(record, 0, log_dir)
        return record
    record.state = "queued"
    while record.state == "queued":
        process = launch(job, record, slot, log_dir, resume)
        try:
            code = process.wait()
        except BaseException as error:
            stop(process, time.monotonic() + GRACE_SECONDS)
            # a task that is put back into a cluster's queue leaves by SystemExit
            record.state, record.pid = ("queued" if isinstance(error, SystemExit) else "killed"), None
            record.save(log_dir)
            raise
        conclude(record, code, log_dir)
    return record


def interrupt(record: Record) -> None:
    """End the attempt that a record of this machine names, and wait until it has saved its state and ended."""
    deadline = time.monotonic() + GRACE_SECONDS
    while record.pid is not None and alive(record.pid):
        os.kill(record.pid, signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL)
        time.sleep(POLL_SECONDS)


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """SIGTERM ends a sweep as Ctrl-C does."""

    def interrupted(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def die_with_parent() -> None:
    """Between fork and exec: ask Linux to send this child SIGTERM when its parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def ended_by(number: int) -> str:
    """A process that a signal ended left no word of its own."""
    hint = ", which is how Linux ends a process when memory is short" if number == signal.SIGKILL else ""
    return f"ended by {signal.Signals(number).name}{hint}"


def last_line(log: Path) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"
