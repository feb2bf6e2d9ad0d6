"""Runs the jobs of a plan on a Ray cluster: each is a task with a share of a GPU, started again where a node is lost.

Every node needs the project in the Python that `ray start` ran in, and sees the sweep's folder under the same path.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reinflow.errors import UserError
from reinflow.run.directory import lock
from reinflow.sweep.attempt import GRACE_SECONDS, Slot, cpu_slot, new_record, run_to_end, sigterm_as_ctrl_c
from reinflow.sweep.plan import Job
from reinflow.sweep.records import Record, read_record

LOST_NODES = 5
"""how often a job is started again because its node was lost"""


def run_on_ray(
    jobs: list[Job], log_dir: Path, resume: bool, address: str, jobs_per_gpu: int, say: Callable[[str], None]
) -> list[Record]:
    """Run all jobs to their end on the cluster at `address`; they end with this process. Returns their records."""
    ray = connected(address)
    log_dir = log_dir.resolve()
    log_dir.mkdir(parents=True, exist_ok=True)
    jobs = [job.below(log_dir) for job in jobs]
    with lock(log_dir), sigterm_as_ctrl_c():
        records = {job.name: new_record(job, log_dir) for job in jobs}
        left = [job for job in jobs if records[job.name].state == "queued"]
        gpus = ray.cluster_resources().get("GPU", 0)
        options = {"num_cpus": 1, "max_retries": LOST_NODES} | ({"num_gpus": 1 / jobs_per_gpu} if gpus else {})
        say(f"{len(left)} jobs to run, {len(jobs) - len(left)} done before, on {len(ray.nodes())} nodes of Ray")
        task = ray.remote(**options)(run_on_node)
        pending = {task.remote(job, log_dir, resume, bool(gpus), Path.cwd()): job.name for job in left}
        try:
            while pending:
                (ref,), _ = ray.wait(list(pending), num_returns=1)
                name = pending.pop(ref)
                records[name] = outcome(ray, ref, records[name], log_dir)
                say(f"{name} {records[name].state}" + (f": {records[name].error}" if records[name].error else ""))
        finally:
            cancel(ray, list(pending))
            ray.shutdown()
    return list(records.values())


def connected(address: str) -> Any:
    """The ray module, connected; UserError where it is not installed or there is no cluster."""
    try:
        import ray
    except ImportError:
        raise UserError("--executor ray needs Ray: pip install -e '.[ray]'") from None
    try:
        ray.init(address=address, log_to_driver=False)
    except ConnectionError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"no Ray cluster at --address {address} ({reason}): start one with `ray start --head`, and "
            "`ray start --address HOST:6379` on the other machines"
        ) from None
    return ray


def run_on_node(job: Job, log_dir: Path, resume: bool, on_gpu: bool, folder: Path) -> Record:
    """The task; Ray shows it its GPU alone."""
    gpu = Slot(os.environ.get("CUDA_VISIBLE_DEVICES", ""), {}, folder=folder)
    slot = gpu if on_gpu else cpu_slot("cpu", cores=1, folder=folder)
    return run_to_end(job, slot, log_dir, resume)


def outcome(ray: Any, ref: Any, record: Record, log_dir: Path) -> Record:
    """The record that the task returned, or what became of the task."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:
        record = read_record(log_dir, record.name) or record
        record.state, record.pid, record.ended = "failed", None, time.time()
        record.error = str(error).strip().splitlines()[-1][:300]
        record.save(log_dir)
        return record


def cancel(ray: Any, refs: list[Any]) -> None:
    """Ask the tasks that run to stop their runs, and wait for them."""
    for ref in refs:
        ray.cancel(ref)
    if refs:
        ray.wait(refs, num_returns=len(refs), timeout=GRACE_SECONDS)
