"""Every benchmark of the learner runs, with sizes that take no time; what it measures there means nothing."""

from __future__ import annotations

import importlib
import json
import math
import shutil
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from benchmarks._compare import disagreement
from benchmarks._machine import fingerprint
from benchmarks._peer_child import find
from benchmarks._straightforward import LoopedChunks
from benchmarks.latency import timings
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
    "mujoco": "--env_ids Pusher-v5 --num_envs 2 --steps 3",
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
    if name == "mujoco":
        pytest.importorskip("mujoco", reason="needs the extra: pip install -e '.[mujoco]'")
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


@pytest.mark.parametrize("name", ["iteration", "rollout", "sampler", "update", "latency"])
def test_graphs_are_not_claimed_where_there_is_no_gpu(run, name, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as ended:
        run(name, f"{TINY[name]} --cuda_graphs")
    assert ended.value.code == 2
    assert "--cuda_graphs needs a GPU" in capsys.readouterr().err


def test_a_machine_without_a_simulator_is_described_too(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert fingerprint()["mani_skill"] is None


def test_ways_that_decide_otherwise_are_not_timed():
    acts = {"plain": lambda: torch.ones(1, 2, 3), "wrong": lambda: torch.full((1, 2, 3), 1.001)}
    with pytest.raises(SystemExit, match=r"mlp, K = 1: the ways differ by 1\.00e-03"):
        timings("mlp", 1, acts, rounds=1)


def wrong(rows: dict, fault: str) -> dict:
    if fault == "another objective":
        return rows | {"advantages": -rows["advantages"]}
    return rows | {"returns": rows["returns"] + 1}


@pytest.mark.parametrize("fault", ["another objective", "other returns"])
def test_an_update_that_computes_something_else_is_not_timed(run, monkeypatch, fault):
    learners, descend = [], PPO.descend

    def only_the_first_is_right(self, rows):
        learners.append(self) if self not in learners else None
        return descend(self, rows if self is learners[0] else wrong(rows, fault))

    monkeypatch.setattr(PPO, "descend", only_the_first_is_right)
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


def checkout(path: Path, prints: bool = False) -> Path:
    """Our own packages as another implementation."""
    for package in ("nets", "reinflow"):
        shutil.copytree(ROOT / package, path / package, ignore=shutil.ignore_patterns("__pycache__"))
    if prints:
        (path / "nets" / "__init__.py").write_text("print('using a CPU')\n")
    return path


def test_two_checkouts_take_turns_even_where_one_prints(run, capsys, tmp_path):
    peer = checkout(tmp_path / "other", prints=True)
    rows = run("peer", f"--peer {peer} --rows 2 --horizon 4 --k 1 --threads 1")["rows"]
    assert [row["part"] for row in rows] == ["network", "network and gradient", "sample", "loss and gradient"]
    assert all(len(row["seconds"][side]) == 2 for row in rows for side in ("ours", "peer"))
    assert "x our time" in capsys.readouterr().out


PARTS = {
    "sampler": ["network", "sample"],
    "update": ["network and gradient", "loss and gradient"],
    "latency": ["sample"],
}


class InstantSide:
    """Two processes that import torch would take seconds."""

    def __init__(self, path: Path, sizes: dict[str, int]):
        self.pace = 1.0 if path == ROOT else 3.0
        self.cases = ["network", "network and gradient", "sample", "loss and gradient"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def seconds(self, case: str, repeats: int) -> float:
        return self.pace


@pytest.mark.parametrize("name", PARTS)
def test_a_peer_goes_beside_the_benchmark_that_it_belongs_to(run, name, monkeypatch, tmp_path):
    monkeypatch.setattr("benchmarks._peer.Side", InstantSide)
    for package in ("nets", "reinflow"):
        (tmp_path / package).mkdir()
    rows = [row for row in run(name, f"{TINY[name]} --peer {tmp_path}")["rows"] if "part" in row]
    assert list(dict.fromkeys(row["part"] for row in rows)) == PARTS[name]
    assert all(row["ratio"] == [3.0, 3.0] for row in rows)  # the peer's 3 s over our 1 s


@pytest.mark.parametrize("name", ["peer", *PARTS])
def test_a_checkout_without_the_interface_is_refused_in_one_sentence(run, name, tmp_path, capfd):
    def refused() -> str:
        with pytest.raises(SystemExit) as ended:
            run(name, f"{TINY.get(name, '')} --peer {tmp_path} --threads 1")
        assert ended.value.code == 2
        said = capfd.readouterr().err
        assert said.count("\n") == 1
        return said

    assert "has no package nets" in refused()
    if name != "peer":
        return  # the rest is the same for all, and starts a process
    for package in ("nets", "reinflow"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    assert "nets has no ShortCutVelocityUNet1D; it needs the interface of the guide" in refused()


def test_a_package_that_python_takes_from_elsewhere_is_not_timed_as_the_peers(tmp_path, monkeypatch):
    (tmp_path / "elsewhere" / "fake_nets").mkdir(parents=True)
    (tmp_path / "elsewhere" / "fake_nets" / "__init__.py").touch()
    (tmp_path / "peer" / "fake_nets").mkdir(parents=True)  # without __init__.py, so the other one wins
    monkeypatch.chdir(tmp_path / "peer")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    monkeypatch.syspath_prepend(tmp_path / "peer")
    with pytest.raises(LookupError, match=r"took .*elsewhere/fake_nets instead"):
        find("fake_nets", "ShortCutVelocityUNet1D")
