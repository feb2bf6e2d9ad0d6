"""The memory profiler: real points in processes of their own, verdicts, and points that fail."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from reinflow.errors import UserError
from reinflow.memory import Measurement, Point

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import test_reinflow_memory_real as profiler  # noqa: E402


def measured(used: float, speed: float, limit: float = 100.0) -> Measurement:
    return Measurement(None, None, used, speed, limit)


def point(env_id: str = "Toy-v0", num_envs: int = 8) -> Point:
    return Point(env_id, "state", "auto", num_envs, 16, 2, 2, "mlp")


def test_the_fastest_point_in_half_of_the_memory_is_recommended():
    measurements = [measured(10, 1.0), measured(40, 3.0), measured(45, 2.0), measured(70, 4.0), measured(90, 5.0), None]
    rows = [profiler.Row(point(num_envs=2**n), m, "out of memory") for n, m in enumerate(measurements)]
    profiler.judge(rows)
    verdicts = ["conservative", "recommended", "fits, slower", "aggressive", "maximum", "out of memory"]
    assert [row.verdict for row in rows] == verdicts


def test_the_gpus_memory_counts_where_there_is_one():
    assert Measurement(5.0, 7.0, 900.0, 1.0, 10.0).used_mb == 7.0
    assert Measurement(None, None, 900.0, 1.0, 1000.0).used_mb == 900.0


@pytest.mark.parametrize(
    ("code", "errors", "reason"),
    [
        (-9, "", "out of memory"),
        (1, "torch.OutOfMemoryError: CUDA out of memory. Tried", "out of memory"),
        (1, "Traceback\nValueError: no", "failed (exit 1): ValueError: no"),
    ],
)
def test_why_a_point_failed(code, errors, reason):
    assert profiler.failure(code, errors) == reason


def test_a_point_out_of_memory_is_a_row_and_not_the_end(tmp_path, monkeypatch, capsys):
    def child(command: list[str], **options: object) -> subprocess.CompletedProcess:
        if json.loads(command[-1])["num_envs"] == 8:
            return subprocess.CompletedProcess(command, -9, "", "")
        return subprocess.CompletedProcess(command, 0, json.dumps(asdict(measured(10, 5.0))), "")

    monkeypatch.setattr(profiler.subprocess, "run", child)
    profiler.main(profiler.Config(env="Toy-v0", num_envs=(16, 8, 4), output=str(tmp_path / "memory")))
    with (tmp_path / "memory.csv").open() as file:
        table = list(csv.DictReader(file))
    verdicts = [(row["num_envs"], row["verdict"]) for row in table]
    assert verdicts == [("4", "recommended"), ("8", "out of memory"), ("16", "fits, slower")]
    assert "--num_envs 4" in capsys.readouterr().out


def test_pictures_are_measured_with_a_frozen_encoder_beside_a_trained_one(tmp_path, monkeypatch, capsys):
    def child(command: list[str], **options: object) -> subprocess.CompletedProcess:
        used = 10 if json.loads(command[-1])["freeze_visual_encoder"] else 60
        return subprocess.CompletedProcess(command, 0, json.dumps(asdict(measured(used, 5.0))), "")

    def lines(**options: object) -> list[list[str]]:
        config = profiler.Config(num_envs=(8,), output=str(tmp_path / "memory"), **options)
        profiler.main(config)
        return [line.split() for line in capsys.readouterr().out.splitlines() if line.split()[:2] == ["8", "256"]]

    monkeypatch.setattr(profiler.subprocess, "run", child)
    both = lines(obs_mode="rgb")
    assert [(line[2], line[5], line[-1]) for line in both] == [("frozen", "10", "10%"), ("trained", "60", "60%")]
    assert [line[2] for line in lines(obs_mode="rgb", freeze_visual_encoder=False)] == ["trained"]
    assert [line[2] for line in lines(obs_mode="state")] == ["none"]


def test_real_points_are_measured_in_processes_of_their_own(tmp_path):
    command = [sys.executable, str(ROOT / "test_reinflow_memory_real.py"), "--env", "Toy-v0", "--net", "mlp"]
    command += ["--num-envs", "4", "8", "--minibatch_size", "16", "--rollout_steps", "2", "--output", "memory"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "--num_envs" in done.stdout
    with (tmp_path / "memory.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["num_envs"] for row in table] == ["4", "8"]
    assert all(float(row["host_peak_mb"]) > 100 and float(row["env_steps_per_s"]) > 0 for row in table)
    assert (tmp_path / "memory.png").stat().st_size > 1000


def test_what_cannot_be_measured_is_a_sentence():
    with pytest.raises(UserError, match="Toy-v9"):
        profiler.run_point(point("Toy-v9"), profiler.Config())
    with pytest.raises(UserError, match="at least 1"):
        profiler.main(profiler.Config(num_envs=(0,)))
