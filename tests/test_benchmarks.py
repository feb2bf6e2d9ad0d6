"""Every benchmark of the learner runs, with sizes that take no time; what it measures there means nothing."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks._compare import disagreement
from benchmarks._straightforward import LoopedChunks
from reinflow.algos.ppo import PPO
from reinflow.envs.synthetic import SyntheticEnv

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


def test_an_iteration_says_what_its_envs_are_and_where_each_variant_spends_its_time(run, capsys):
    (row,) = run("iteration", TINY["iteration"])["rows"]
    assert "SyntheticChunk-v0, not a simulator" in row["envs"]
    assert "SyntheticChunk-v0, not a simulator" in capsys.readouterr().out
    for shares in (row["shares"]["straightforward"], row["shares"]["product"]):
        assert {"envs", "policy", "critic", "buffer", "update"} <= shares.keys()
        assert sum(shares.values()) == pytest.approx(1)


def test_a_rollout_has_no_update_and_can_use_graphs(run, monkeypatch):
    monkeypatch.setattr("benchmarks.iteration.wants_graphs", lambda args: True)  # on a CPU they are plain code
    (row,) = run("rollout", TINY["rollout"])["rows"]
    assert row["ratio"].keys() == {"product", "product with CUDA graphs"}
    assert "update" not in row["shares"]["product"]


@pytest.mark.parametrize("name", ["iteration", "rollout", "sampler"])
def test_graphs_are_not_claimed_where_there_is_no_gpu(run, name, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as ended:
        run(name, f"{TINY[name]} --cuda_graphs")
    assert ended.value.code == 2
    assert "--cuda_graphs needs a GPU" in capsys.readouterr().err


def wrong(rows: dict, fault: str) -> dict:
    if fault == "another objective":
        return rows | {"advantages": -rows["advantages"]}
    return rows | {"returns": rows["returns"] + 1}


@pytest.mark.parametrize("fault", ["another objective", "other returns"])
def test_an_update_that_computes_something_else_is_not_timed(run, monkeypatch, fault):
    learners, step = [], PPO.step

    def only_the_first_is_right(self, rows):
        learners.append(self) if self not in learners else None
        return step(self, rows if self is learners[0] else wrong(rows, fault))

    monkeypatch.setattr(PPO, "step", only_the_first_is_right)
    with pytest.raises(SystemExit, match="the variants differ by"):
        run("iteration", TINY["iteration"])


def test_a_disagreement_is_a_share_of_its_own_result_and_keeps_a_nan():
    # 1 of 100 under one name, .001 of .002 under another: the second is the larger share, 1/2
    results = [
        {"large": torch.tensor([100.0, 0.0]), "small": torch.tensor([0.002])},
        {"large": torch.tensor([100.0, 1.0]), "small": torch.tensor([0.001])},
    ]
    assert disagreement(results) == pytest.approx(0.5)
    broken = {"large": torch.tensor([100.0, 0.0]), "small": torch.tensor([float("nan")])}
    assert math.isnan(disagreement([results[0], broken]))
    assert disagreement([{"flag": torch.zeros(2)}, {"flag": torch.zeros(2)}]) == 0


def test_straightforward_chunks_stay_on_the_device_of_their_envs():
    env = LoopedChunks(SyntheticEnv(3, "cpu", state_dim=4, action_dim=2, max_episode_steps=3), 2, 2, gamma=0.97)
    env.reset(seed=0)
    actions = torch.zeros(3, 2, 2)
    with torch.device("meta"):  # a tensor made without the env's device lands there, and meets none of the others
        steps = [env.step_chunk(actions) for _ in range(2)]
    assert steps[1].truncated.all()
    assert {value.device.type for step in steps for value in (step.reward, step.terminated, step.broken)} == {"cpu"}


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
