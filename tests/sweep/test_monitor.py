"""The table of a sweep, and one short sweep of Stage 3 itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from reinflow.envs import EnvConfig, make_env
from reinflow.errors import UserError
from reinflow.policies import PolicySpec, build_policy
from reinflow.storage.checkpoint import Checkpoint, save_checkpoint
from reinflow.sweep.monitor import Config, bar, main, sweep_eta, table, trend
from reinflow.sweep.records import Record, View, read_records

ROOT = Path(__file__).resolve().parents[2]


def view(variant: str, state: str, error: str | None = None, **status: object) -> View:
    record = Record(f"noise-{variant}", "noise", variant, 0, "nowhere", state, slot="0", attempts=1, error=error)
    return View(record, state, {"heartbeat": time.time() - 3, **status})


VIEWS = [
    view("exp", "running", step=600, total=1000, phase="ppo", success=0.78, best_success=0.81, sps=10, eta=40.0,
         success_history=[[0, 0.0], [300, 0.5], [600, 0.78]], alarms=["success fell below the pretrained 0.90"]),
    view("constant", "done", step=1000, total=1000, success=1.0, best_success=1.0),
    view("fast", "failed", error="RuntimeError: out of memory"),
    view("low_init", "killed", step=100, total=1000),
    View(Record("noise-high_init", "noise", "high_init", 1, "nowhere"), "queued", {}),
]  # fmt: skip


def test_a_table_of_80_columns_tells_all_five_states_apart():
    lines = table(Path("runs"), VIEWS).splitlines()
    assert all(len(line) <= 80 and line.isascii() for line in lines)
    assert lines[0].startswith("5 jobs: 1 done 1 running 1 queued 1 failed 1 killed  elapsed 0:00  ETA 2:20")
    rows = {line.split()[1]: line for line in lines[2:7]}
    assert "ppo" in rows["noise:exp"]
    assert "[####..] 60% 0.78 0.81" in rows["noise:exp"]
    assert re.search(r" 0:40 +\d+s$", rows["noise:exp"])  # the last column is not cut off
    for variant, state in (("constant", "done"), ("fast", "failed"), ("low_init", "killed"), ("high_init", "queued")):
        assert state in rows[f"noise:{variant}"]
    assert "! noise:exp seed 0: success fell below the pretrained 0.90" in lines
    assert "! noise:fast seed 0: RuntimeError: out of memory" in lines


def test_a_task_of_returns_shows_them():
    running = view("exp", "running", step=1, total=2, headline="return", success=0.0, return_history=[[0, -9], [1, -4]],
                   **{"return": -33.2, "best_return": 889.4})  # fmt: skip
    line = table(Path("runs"), [running]).splitlines()[2]
    assert "[###...] 50%  -33  889 _@" in line


def test_a_wide_table_adds_kl_clip_fraction_and_speed():
    running = view("exp", "running", step=1, total=2, kl=0.0123, clip_fraction=0.08, sps=410.0)
    lines = table(Path("runs"), [running], width=100).splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert lines[2].endswith("0.012    8%   410")
    assert lines[1].endswith("KL clip%   SPS")


def test_eta_counts_the_queue():
    # 40 s left of the running one, then one queued job of 1000 steps at 10 per second
    assert sweep_eta(VIEWS) == 40 + 100
    assert sweep_eta([]) is None


def test_bar_and_trend():
    assert bar(0.25) == "[##....] 25%"
    assert bar(1.15) == "[######]100%"
    assert trend([[0, 0.0], [1, 0.5], [2, 1.0]]) == "_+@"


def test_a_folder_without_a_sweep_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="not the folder of a sweep"):
        main(Config(log_dir=str(tmp_path), once=True))


def toy_checkpoint(path: Path) -> Path:
    env = make_env(EnvConfig("Toy-v0"), 1, act_horizon=4, obs_horizon=1, gamma=1.0)
    spec = PolicySpec.of(
        net="mlp", obs_horizon=1, act_horizon=4, pred_horizon=4, mlp_hidden_dim=16, mlp_depth=1,
        state_dim=env.spec.state_dim, action_dim=env.spec.action_dim,
    )  # fmt: skip
    save_checkpoint(path, Checkpoint(spec, env.spec, build_policy(spec).state_dict()))
    return path


def test_a_sweep_of_stage_3_runs_is_watched_and_is_done_the_second_time(tmp_path):
    words = ["--pretrained-path", str(toy_checkpoint(tmp_path / "toy.pt")), "--log-dir", str(tmp_path / "sweep")]
    words += ["--configs", "baseline:default infer:4steps", "--timesteps", "128"]
    words += ["--flags=--num_envs 4 --rollout_steps 4 --minibatch_size 8 --num_eval_envs 4 --num_eval_episodes 4"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

    def call(script: str, *words: str) -> str:
        command = [str(ROOT / script), *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "2 of 2 jobs done" in call("sweep_reinflow_parallel.sh", *words)
    records = read_records(tmp_path / "sweep")
    assert [record.state for record in records] == ["done", "done"]
    report = call("monitor_reinflow.sh", "--log-dir", str(tmp_path / "sweep"), "--once", "--json")
    assert all(job["status"]["state"] == "done" and job["status"]["step"] == 128 for job in json.loads(report))
    assert "0 jobs to run, 2 done before" in call("sweep_reinflow_parallel.sh", *words)
    assert "2 done" in call("monitor_reinflow.sh", "--log-dir", str(tmp_path / "sweep"))
