"""The queue: every job once, failures again, nothing left behind. Jobs here are scripts of a second."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from reinflow.errors import UserError
from reinflow.sweep.attempt import Slot
from reinflow.sweep.configs import Variant
from reinflow.sweep.local import LocalSweep, cpu_slots, gpu_slots
from reinflow.sweep.plan import Job
from reinflow.sweep.records import alive, look, read_records
from tests.waiting import HANGS, wait_for

ROOT = Path(__file__).resolve().parents[2]
START = """
import json, os, pathlib, sys, time
run = pathlib.Path(sys.argv[1]); (run / "checkpoints").mkdir(parents=True, exist_ok=True)
with (run / "starts").open("a") as file: file.write(os.environ.get("CUDA_VISIBLE_DEVICES", "?") + " ")
def status(state): (run / "status.json").write_text(json.dumps({"state": state, "heartbeat": time.time()}))
status("running")
"""
FINE = START + "status('done'); print('fine')"
BROKEN = START + "print('no luck'); sys.exit(3)"
MISTAKEN = START + "print('error: no such flag'); sys.exit(2)"
ENDLESS = START + "time.sleep(3600)"
SECOND_TIME = START + "status('done'); sys.exit(0 if len((run / 'starts').read_text().split()) > 1 else 1)"


@dataclass(frozen=True)
class ScriptJob(Job):
    """A job that runs a script instead of Stage 3."""

    script: str = FINE

    def command(self, resume: bool = False, extra: tuple[str, ...] = ()) -> list[str]:
        return [sys.executable, "-c", self.script, str(self.run_dir), *(["resumed"] if resume else [])]


def job(folder: Path, seed: int = 0, script: str = FINE) -> ScriptJob:
    return ScriptJob(Variant("warmup", "0"), seed, "guide", {"seed": seed}, folder, script)


def sweep(folder: Path, jobs: list[ScriptJob], slots: int = 2, resume: bool = False) -> list:
    with LocalSweep(jobs, gpu_slots(["3", "5"][:slots], 1), folder, resume, say=lambda line: None) as running:
        return running.run()


def starts(one: ScriptJob) -> list[str]:
    return (one.run_dir / "starts").read_text().split()


def test_every_job_runs_once_on_a_gpu_of_its_own(tmp_path):
    jobs = [job(tmp_path, seed) for seed in range(4)]
    records = sweep(tmp_path, jobs)
    assert [record.state for record in records] == ["done"] * 4
    assert all(len(starts(one)) == 1 for one in jobs)
    assert {starts(one)[0] for one in jobs} == {"3", "5"}
    assert {record.name for record in read_records(tmp_path)} == {one.name for one in jobs}


def test_a_rerun_finishes_what_is_missing_and_nothing_else(tmp_path):
    first, second = job(tmp_path, 0), job(tmp_path, 1)
    sweep(tmp_path, [first])
    sweep(tmp_path, [first, second])
    assert (len(starts(first)), len(starts(second))) == (1, 1)


def test_a_failed_job_is_tried_once_more_and_then_reported_with_its_last_line(tmp_path):
    good, bad, lucky = job(tmp_path), job(tmp_path, 1, BROKEN), job(tmp_path, 2, SECOND_TIME)
    records = {record.seed: record for record in sweep(tmp_path, [bad, good, lucky])}
    assert [records[seed].state for seed in range(3)] == ["done", "failed", "done"]
    assert (records[1].attempts, records[1].error) == (2, "no luck")
    assert (len(starts(bad)), len(starts(lucky))) == (2, 2)


def test_a_job_that_a_signal_ended_says_which(tmp_path):
    (record,) = sweep(tmp_path, [job(tmp_path, 0, START + "os.kill(os.getpid(), 9)")])
    assert (record.state, record.attempts) == ("failed", 2)
    assert record.error.startswith("ended by SIGKILL")


def test_a_job_that_another_process_still_trains_waits_for_it(tmp_path):
    one = job(tmp_path)
    one.run_dir.mkdir()
    hold = f"""
import pathlib, sys, time
sys.path.insert(0, {str(ROOT)!r})
from reinflow.run.directory import lock
held = lock(pathlib.Path({str(one.run_dir)!r}))
print("held", flush=True)
sys.stdin.read()
"""
    other = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if "waits" in line:
            other.stdin.close()  # it ends

    with LocalSweep([one], [Slot("cpu0", {})], tmp_path, False, say) as running:
        (record,) = running.run()
    assert other.wait(HANGS) == 0
    assert (record.state, record.attempts) == ("done", 1)
    assert said[1].endswith("waits for the process that still trains it")


def test_a_mistake_in_the_input_is_not_tried_again(tmp_path):
    (record,) = sweep(tmp_path, [job(tmp_path, 0, MISTAKEN)])
    assert (record.state, record.attempts, record.error) == ("failed", 1, "error: no such flag")


def test_only_resume_goes_on_from_a_checkpoint_of_an_earlier_sweep(tmp_path):
    one = job(tmp_path)
    (one.run_dir / "checkpoints" / "step_000000000001").mkdir(parents=True)
    (again,) = sweep(tmp_path, [one])
    assert "resumed" not in again.command
    (one.run_dir / "status.json").unlink()
    (continued,) = sweep(tmp_path, [one], resume=True)
    assert "resumed" in continued.command


def test_one_sweep_at_a_time_works_in_a_folder(tmp_path):
    # a lock belongs to a process, so another one has to try
    with LocalSweep([], [Slot("cpu0", {})], tmp_path, False, print):
        code = f"""
from pathlib import Path
from reinflow.sweep.local import LocalSweep
LocalSweep([], [], Path({str(tmp_path)!r}), False, print)
"""
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert UserError.__name__ in other.stderr


DRIVER = """
import sys, pathlib
sys.path[:0] = [{root!r}, {tests!r}]
from test_local import ENDLESS, job, sweep
sweep(pathlib.Path({folder!r}), [job(pathlib.Path({folder!r}), seed, ENDLESS) for seed in range(3)])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_sweep_leaves_no_process_behind_and_its_jobs_say_killed(tmp_path, number):
    code = DRIVER.format(root=str(ROOT), tests=str(Path(__file__).parent), folder=str(tmp_path))
    driver = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)

    def pids() -> list[int | None]:
        return [record.pid for record in read_records(tmp_path) if record.state == "running"]

    wait_for(lambda: len(list(tmp_path.glob("*/status.json"))) == len(pids()) == 2)
    left = pids()
    os.kill(driver.pid, number)
    driver.wait(HANGS)
    wait_for(lambda: not any(alive(pid) for pid in left))
    assert sorted(look(record).state for record in read_records(tmp_path)) == ["killed", "killed", "queued"]


def test_a_run_that_left_its_process_is_noticed(tmp_path):
    one = job(tmp_path)
    (record,) = sweep(tmp_path, [one])
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    record.state, record.pid = "running", gone.pid
    (one.run_dir / "status.json").write_text(json.dumps({"state": "running"}))
    assert look(record).state == "killed"
    record.pid = os.getpid()
    assert look(record).state == "running"


def test_slots_share_gpus_and_cores(monkeypatch):
    assert [slot.name for slot in gpu_slots(["0", "1"], 2)] == ["0", "1", "0", "1"]
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    alone, shared = cpu_slots(None), cpu_slots(2)
    assert (len(alone), alone[0].extra) == (4, ("--num_threads", "1", "--num_workers", "0"))
    assert (len(shared), shared[0].extra) == (2, ("--num_threads", "2", "--num_workers", "2"))
