"""Runs the jobs of a plan on Slurm, through submitit: one array, a GPU each, back into the queue when preempted.

A job that Slurm takes down saves its run and goes on from there. Compute nodes see the sweep's folder under the same
path. `cluster=local` runs the same on this machine, for a try.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reinflow.errors import UserError
from reinflow.run.directory import lock
from reinflow.sweep.attempt import Slot, cpu_slot, interrupt, new_record, run_to_end, sigterm_as_ctrl_c
from reinflow.sweep.plan import Job
from reinflow.sweep.records import Record, read_record

POLL_SECONDS = 1.0
TIMEOUTS = 100
"""how often a job may run into its time limit and go on"""
DEFAULTS: dict[str, Any] = {"timeout_min": 24 * 60, "gpus_per_node": 1, "cpus_per_task": 4}


@dataclass
class Task:
    """What submitit pickles: a job, and how to give its machine back."""

    job: Job
    slot: Slot
    log_dir: Path
    resume: bool

    def __call__(self) -> Record:
        """Run the job to its end on the node; returns its record."""
        return run_to_end(self.job, self.slot, self.log_dir, self.resume)

    def checkpoint(self) -> Any:
        """Called on preemption and at the time limit: the run saves and ends, and the task is queued again."""
        from submitit.helpers import DelayedSubmission

        record = read_record(self.log_dir, self.job.name)
        if record is not None:
            interrupt(record)
        return DelayedSubmission(self)


def run_on_slurm(
    jobs: list[Job], log_dir: Path, resume: bool, parameters: dict[str, Any], say: Callable[[str], None]
) -> list[Record]:
    """Submit what is not done and wait for it; Ctrl-C cancels it. Returns the records."""
    log_dir = log_dir.resolve()
    parameters = DEFAULTS | parameters
    executor = make_executor(log_dir / "slurm", parameters)
    log_dir.mkdir(parents=True, exist_ok=True)
    jobs = [job.below(log_dir) for job in jobs]
    gpu, cpu = Slot("gpu", {}, folder=Path.cwd()), cpu_slot("cpu", parameters["cpus_per_task"], Path.cwd())
    slot = gpu if parameters["gpus_per_node"] else cpu
    with lock(log_dir), sigterm_as_ctrl_c():
        records = {job.name: new_record(job, log_dir) for job in jobs}
        left = [job for job in jobs if records[job.name].state == "queued"]
        with executor.batch():
            submitted = [executor.submit(Task(job, slot, log_dir, resume)) for job in left]
        pending = dict(zip((job.name for job in left), submitted, strict=True))
        say(f"{len(left)} jobs submitted, {len(jobs) - len(left)} done before")
        try:
            while pending:
                for name in [name for name, job in pending.items() if job.done()]:
                    records[name] = outcome(pending.pop(name), records[name], log_dir)
                    say(f"{name} {records[name].state}" + (f": {records[name].error}" if records[name].error else ""))
                time.sleep(POLL_SECONDS)
        finally:
            for job in pending.values():
                job.cancel()
    return list(records.values())


def make_executor(folder: Path, parameters: dict[str, Any]) -> Any:
    """UserError where submitit or Slurm is missing, or a parameter unknown."""
    try:
        import submitit
    except ImportError:
        raise UserError("--executor slurm needs submitit: pip install -e '.[slurm]'") from None
    cluster = parameters.pop("cluster", "slurm")
    try:
        executor = submitit.AutoExecutor(folder, cluster=cluster, **{f"{cluster}_max_num_timeout": TIMEOUTS})
        executor.update_parameters(name="reinflow", **parameters)
    except RuntimeError as error:
        raise UserError(f"no Slurm on this machine ({error}): run the sweep on a login node") from None
    except (NameError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--slurm: {reason}; parameters are submitit's, as in timeout_min=720 slurm_partition=gpu"
        ) from None
    return executor


def parse_parameters(words: str) -> dict[str, Any]:
    """`timeout_min=720 slurm_partition=gpu` as a dict."""
    found: dict[str, Any] = {}
    for word in words.split():
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise UserError(f'--slurm "{words}" must be name=value pairs, as in --slurm "slurm_partition=gpu"')
        found[name] = int(value) if value.isdigit() else value
    return found


def outcome(job: Any, record: Record, log_dir: Path) -> Record:
    """What the task wrote; a job that ended without a word was cancelled or killed."""
    record = read_record(log_dir, record.name) or record
    if record.state in ("queued", "running"):
        record.state, record.pid, record.ended = "killed", None, time.time()
        record.error = f"Slurm job {job.job_id} ended as {job.state}"
        record.save(log_dir)
    return record
