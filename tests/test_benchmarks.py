"""Every benchmark of the learner runs, with sizes that take no time; what it measures there means nothing."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
TINY = {
    "bookkeeping": "--num_envs 4 --act_horizon 3",
    "checkpoint": "--env_id Toy-v0 --net mlp --num_envs 2",
    "encoder": "--batch 1",
    "guards": "--env_id Toy-v0 --num_envs 2",
    "iteration": "--num_envs 4 --decisions 2 --k 2 --horizon 4 --epochs 1 --minibatch_size 4",
    "latency": "--net mlp --k 1 --horizon 4",
    "memory": "--net mlp --rows 2 4 --k 1 2 --horizon 4",
    "rollout": "--num_envs 4 --decisions 2 --k 2 --horizon 4",
    "sampler": "--net mlp --batch 4 --k 2 --horizon 4",
    "shares": "--env_id SyntheticChunk-v0 --obs_mode state --num_envs 2 --decisions 2",
    "scaling": "--num_envs 4 8 --k 1 2 --horizon 4",
    "update": "--net mlp --batch 4 --k 2 --horizon 4",
}


@pytest.fixture
def run(monkeypatch, tmp_path):
    def run(name: str, flags: str) -> dict:
        out = tmp_path / "results" / "rows.json"
        words = [name, *flags.split(), "--rounds", "2", "--out", str(out)]
        monkeypatch.setattr(sys, "argv", words)
        threads = torch.get_num_threads()
        importlib.import_module(f"benchmarks.{name}").main()
        torch.set_num_threads(threads)
        return json.loads(out.read_text())

    return run


@pytest.mark.parametrize("name", TINY)
def test_it_runs_and_writes_its_rows_with_their_machine(run, name, capsys):
    written = run(name, TINY[name])
    assert written["benchmark"] == name
    assert written["rows"]
    assert written["machine"]["torch"] == torch.__version__
    assert capsys.readouterr().out


def test_two_checkouts_take_turns(run, capsys):
    rows = run("peer", f"--peer {ROOT} --rows 2 --horizon 4 --k 1 --threads 1")["rows"]
    assert [row["case"] for row in rows] == ["network", "network and gradient", "sample", "loss and gradient"]
    assert all(len(row["seconds"][side]) == 2 for row in rows for side in ("ours", "peer"))
    assert "x our time" in capsys.readouterr().out


def test_a_checkout_without_the_interface_is_refused_in_one_sentence(tmp_path):
    def refused() -> str:
        words = [sys.executable, "-m", "benchmarks", "peer", "--peer", str(tmp_path)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2
        return done.stderr

    assert "has no package nets" in refused()
    for name in ("nets", "reinflow"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    assert "nets has no ShortCutVelocityUNet1D; it needs the interface of the guide" in refused()
