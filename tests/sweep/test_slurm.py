"""A sweep through submitit, on its local executor: the same code as on Slurm, one of the jobs preempted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from reinflow.errors import UserError
from reinflow.sweep import slurm
from reinflow.sweep.records import Record, read_records
from tests.waiting import HANGS, wait_for

ROOT = Path(__file__).resolve().parents[2]
DRIVER = '''
import pathlib, sys
from dataclasses import dataclass
from reinflow.sweep.configs import Variant
from reinflow.sweep.plan import Job
from reinflow.sweep.slurm import run_on_slurm

SCRIPT = """
import json, pathlib, signal, sys, time
run = pathlib.Path(sys.argv[1]); (run / "checkpoints").mkdir(parents=True, exist_ok=True)
def save(*_):
    (run / "checkpoints" / "step_1").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
with (run / "starts").open("a") as file: file.write(("resumed" if sys.argv[2:] else "new") + " ")
if not sys.argv[2:] and "seed1" in run.name:
    signal.pause()
(run / "status.json").write_text(json.dumps({"state": "done", "heartbeat": time.time()}))
"""

@dataclass(frozen=True)
class ScriptJob(Job):
    def command(self, resume=False, extra=()):
        return [sys.executable, "-c", SCRIPT, str(self.run_dir), *(["resumed"] if resume else [])]

folder = pathlib.Path(sys.argv[1])
jobs = [ScriptJob(Variant("warmup", "0"), seed, "guide", {"seed": seed}, folder) for seed in range(2)]
parameters = {"cluster": "local", "gpus_per_node": 0, "cpus_per_task": 1}
for record in run_on_slurm(jobs, folder, False, parameters, say=lambda line: print(line, flush=True)):
    print("final", record.seed, record.state)
'''


def driver(tmp_path: Path) -> subprocess.Popen[str]:
    (tmp_path / "driver.py").write_text(DRIVER)
    return subprocess.Popen(
        [sys.executable, str(tmp_path / "driver.py"), str(tmp_path / "sweep")],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def running(folder: Path, seed: int) -> Record:
    """The job's record, once its script is up."""
    found: list[Record] = []

    def is_up() -> bool:
        found[:] = [record for record in read_records(folder) if record.seed == seed and record.state == "running"]
        return any((Path(record.run_dir) / "starts").exists() for record in found)

    wait_for(is_up)
    return found[0]


def test_a_preempted_job_saves_is_queued_again_and_goes_on(tmp_path):
    pytest.importorskip("submitit", reason="needs the extra: pip install -e '.[slurm]'")
    sweep = driver(tmp_path)
    record = running(tmp_path / "sweep", seed=1)
    # what Slurm sends, to the process that waits for the run
    task = int(Path(f"/proc/{record.pid}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(task, signal.SIGUSR2)
    output, _ = sweep.communicate(timeout=HANGS)
    assert sweep.returncode == 0, output
    assert [f"final {seed} done" in output for seed in range(2)] == [True, True]
    records = {record.seed: record for record in read_records(tmp_path / "sweep")}
    assert [(records[seed].attempts, records[seed].failures) for seed in range(2)] == [(1, 0), (2, 0)]
    assert (Path(records[1].run_dir) / "starts").read_text().split() == ["new", "resumed"]


def test_ctrl_c_cancels_the_jobs(tmp_path):
    pytest.importorskip("submitit", reason="needs the extra: pip install -e '.[slurm]'")
    sweep = driver(tmp_path)
    record = running(tmp_path / "sweep", seed=1)
    sweep.send_signal(signal.SIGINT)
    sweep.communicate(timeout=HANGS)
    wait_for(lambda: not Path(f"/proc/{record.pid}").exists())


def test_a_job_that_ended_without_a_word_was_killed(tmp_path):
    record = Record("noise-exp", "noise", "exp", 0, str(tmp_path), "running", attempts=1)
    record.save(tmp_path)

    class Cancelled:
        job_id, state = "17_3", "CANCELLED"

    ended = slurm.outcome(Cancelled(), record, tmp_path)
    assert (ended.state, ended.error) == ("killed", "Slurm job 17_3 ended as CANCELLED")
    assert json.loads((tmp_path / "jobs/noise-exp.json").read_text())["state"] == "killed"


def test_parameters_are_pairs_and_wrong_ones_are_a_sentence(tmp_path, monkeypatch):
    assert slurm.parse_parameters("slurm_partition=gpu timeout_min=30") == {"slurm_partition": "gpu", "timeout_min": 30}
    with pytest.raises(UserError, match="name=value"):
        slurm.parse_parameters("gpu")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install -e '.\[slurm\]'"):
        slurm.make_executor(tmp_path, {})


def test_a_machine_without_slurm_and_an_unknown_parameter_are_a_sentence(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="needs the extra: pip install -e '.[slurm]'")
    with pytest.raises(UserError, match="--slurm: "):
        slurm.make_executor(tmp_path, {"cluster": "local", "partitoin": "gpu"})
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="no Slurm on this machine"):
        slurm.make_executor(tmp_path, {"cluster": "slurm"})
