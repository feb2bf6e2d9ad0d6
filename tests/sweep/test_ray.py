"""A sweep on a Ray cluster of two nodes, one of which dies in the middle. Their GPUs are numbers that Ray counts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reinflow.errors import UserError
from reinflow.sweep import ray as ray_executor
from reinflow.sweep.records import read_records
from tests.waiting import HANGS

ROOT = Path(__file__).resolve().parents[2]
DRIVER = '''
import pathlib, sys, threading, time
from dataclasses import dataclass
from ray.cluster_utils import Cluster
from reinflow.sweep.configs import Variant
from reinflow.sweep.plan import Job
from reinflow.sweep.ray import run_on_ray
from reinflow.sweep.records import alive, read_records

SCRIPT = """
import json, pathlib, sys, time
run = pathlib.Path(sys.argv[1]); run.mkdir(parents=True, exist_ok=True)
with (run / "starts").open("a") as file: file.write("start ")
deadline = time.monotonic() + 600
while not (run.parent / "killed").exists() and time.monotonic() < deadline:
    time.sleep(0.1)
with (run / "ends").open("a") as file: file.write("end ")
(run / "status.json").write_text(json.dumps({"state": "done", "heartbeat": time.time()}))
"""

@dataclass(frozen=True)
class ScriptJob(Job):
    def command(self, resume=False, extra=()):
        return [sys.executable, "-c", SCRIPT, str(self.run_dir)]

folder = pathlib.Path(sys.argv[1])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1, "include_dashboard": False})
victim = cluster.add_node(num_cpus=1, num_gpus=1)

def kill_a_node_when_both_work():
    while len(list(folder.glob("*/starts"))) < 2:
        time.sleep(0.1)
    pids = [record.pid for record in read_records(folder) if record.pid]
    cluster.remove_node(victim, allow_graceful=False)
    while all(alive(pid) for pid in pids):  # a dead node's processes follow it with a delay
        time.sleep(0.1)
    (folder / "killed").touch()
    print("node killed", flush=True)

threading.Thread(target=kill_a_node_when_both_work, daemon=True).start()
jobs = [ScriptJob(Variant("warmup", "0"), seed, "guide", {"seed": seed}, folder) for seed in range(4)]
for record in run_on_ray(jobs, folder, False, cluster.address, 2, say=lambda line: print(line, flush=True)):
    print("final", record.seed, record.state)
cluster.shutdown()
'''


def test_every_job_ends_exactly_once_although_a_node_is_killed(tmp_path):
    pytest.importorskip("ray", reason="needs the extra: pip install -e '.[ray]'")
    (tmp_path / "driver.py").write_text(DRIVER)
    folder = tmp_path / "sweep"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, str(tmp_path / "driver.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2.5 * HANGS, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "node killed" in done.stdout
    assert [f"final {seed} done" in done.stdout for seed in range(4)] == [True] * 4
    records = read_records(folder)
    ends = [(Path(record.run_dir) / "ends").read_text().split() for record in records]
    starts = [(Path(record.run_dir) / "starts").read_text().split() for record in records]
    assert ends == [["end"]] * 4
    assert sorted(map(len, starts)) == [1, 1, 1, 2]  # the one on the killed node began again elsewhere
    assert {(record.state, record.failures, record.slot) for record in records} == {("done", 0, "0")}


def test_without_ray_or_a_cluster_there_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install -e '.\[ray\]'"):
        ray_executor.run_on_ray([], tmp_path, False, "auto", 1, print)
