"""Resumable states: complete or absent, newest verified one first, two kept."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from reinflow.errors import UserError
from reinflow.policies import build_policy
from reinflow.runtime.rng import rng_state, set_rng_state
from reinflow.runtime.trees import join, split
from reinflow.storage.checkpoint import Checkpoint, load_checkpoint
from reinflow.storage.resumable import FILES, MANIFEST, latest_training, save_training, states
from tests.test_checkpoint import ENV, SPEC


def training_at(count: int, **fields) -> Checkpoint:
    return Checkpoint(SPEC, ENV, build_policy(SPEC).state_dict(), training={"count": count, **fields})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_two_states_stay_and_latest_points_to_the_newest(tmp_path):
    for step in (5, 10, 1000):
        save_training(tmp_path, step, training_at(step))
    assert names(tmp_path) == ["latest", "step_000000000010", "step_000000001000"]
    assert latest_training(tmp_path).training == {"count": 1000}
    # a state, or the link, is a checkpoint for every --pretrained_path
    assert load_checkpoint(tmp_path / "checkpoints" / "latest").policy_spec == SPEC


def test_a_second_state_of_the_same_step_is_the_newer_one(tmp_path):
    for count in range(4):
        save_training(tmp_path, 7, training_at(count))
    assert latest_training(tmp_path).training == {"count": 3}
    assert names(tmp_path) == ["latest", "step_000000000007-002", "step_000000000007-003"]


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_damaged_state_is_skipped_by_name(tmp_path, name):
    for step in (5, 10):
        save_training(tmp_path, step, training_at(step))
    file = tmp_path / "checkpoints" / "step_000000000010" / name
    whole, said = file.read_bytes(), []
    for place in range(0, len(whole), max(len(whole) // 20, 1)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        file.write_bytes(damaged)
        assert latest_training(tmp_path, say=said.append).training == {"count": 5}
    file.unlink()
    assert latest_training(tmp_path, say=said.append).training == {"count": 5}
    assert all("step_000000000010" in line and "going on from step_000000000005" in line for line in said)
    assert all(name in line or name == MANIFEST for line in said)


def test_sha256sum_reads_the_manifest(tmp_path):
    path = save_training(tmp_path, 5, training_at(5))
    done = subprocess.run(["sha256sum", "--check", MANIFEST], cwd=path, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.count(": OK") == 3


def test_what_a_kill_left_behind_is_no_state_and_is_cleared(tmp_path):
    save_training(tmp_path, 5, training_at(5))
    half = tmp_path / "checkpoints" / "step_000000000010.tmp"
    half.mkdir()
    (half / "state.json").write_text("{")
    assert latest_training(tmp_path).training == {"count": 5}
    save_training(tmp_path, 15, training_at(15))
    assert names(tmp_path) == ["latest", "step_000000000005", "step_000000000015"]


def test_a_damaged_state_that_a_resume_stepped_over_takes_no_good_ones_place_and_is_set_aside(tmp_path):
    for step in (5, 10, 15):
        save_training(tmp_path, step, training_at(step))
    file = tmp_path / "checkpoints" / "step_000000000015" / "state.json"
    file.write_text("{")
    save_training(tmp_path, 12, training_at(12))  # a run that went on from 10
    kept = ["latest", "step_000000000010", "step_000000000012", "step_000000000015.skipped"]
    assert names(tmp_path) == kept
    assert latest_training(tmp_path, say=pytest.fail).training == {"count": 12}
    save_training(tmp_path, 15, training_at(15))
    assert names(tmp_path) == ["latest", "step_000000000012", "step_000000000015", "step_000000000015.skipped"]


def test_a_copy_that_someone_made_is_neither_a_state_nor_deleted(tmp_path):
    copy = shutil.copytree(save_training(tmp_path, 5, training_at(5)), tmp_path / "checkpoints/step_000000000005-mine")
    for count in (5, 6, 7):
        save_training(tmp_path, 5, training_at(count))
    assert latest_training(tmp_path).training == {"count": 7}
    assert load_checkpoint(copy).policy_spec == SPEC


def test_a_forged_state_with_moments_that_are_not_finite_is_not_loaded(tmp_path, monkeypatch):
    save_training(tmp_path, 5, training_at(5))
    monkeypatch.setattr("reinflow.storage.resumable.refuse_not_finite", lambda tensors: None)
    save_training(tmp_path, 10, training_at(10, learner={"weight": torch.tensor([float("nan")])}))
    monkeypatch.undo()
    said = []
    assert latest_training(tmp_path, say=said.append).training == {"count": 5}
    assert "learner/weight" in said[0]


def test_a_run_without_resumable_states_says_so(tmp_path):
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        latest_training(tmp_path)


def test_a_state_of_another_version_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("reinflow.storage.resumable.FORMAT_VERSION", 99)
    save_training(tmp_path, 5, training_at(5))
    monkeypatch.undo()
    with pytest.raises(UserError, match="format 99"):
        latest_training(tmp_path)


def test_weights_that_are_not_finite_are_not_saved_but_a_simulators_state_may_hold_anything(tmp_path):
    bad = torch.tensor([float("inf")])
    save_training(tmp_path, 5, training_at(5, env={"frames": bad}))
    with pytest.raises(OSError, match="learner/weight"):
        save_training(tmp_path, 10, training_at(10, learner={"weight": bad}))
    assert [path.name for path in states(tmp_path)] == ["step_000000000005"]


def test_random_sequences_continue_after_a_resume(tmp_path):
    def draw() -> tuple:
        return (random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item())

    draw()
    checkpoint = training_at(1)
    checkpoint.training["rng"] = rng_state()
    save_training(tmp_path, 1, checkpoint)
    expected = [draw() for _ in range(3)]
    set_rng_state(latest_training(tmp_path).training["rng"])
    assert [draw() for _ in range(3)] == expected


def test_trees_come_back_with_their_types():
    tree = {
        "adam": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2, 3)}, "1": None},
        "items": [1, (2.5, "x"), float("inf"), True],
        "$tensor": "a name",
        "empty": {},
    }
    plain, tensors = split(tree)
    back = join(plain, tensors)
    assert back["items"] == tree["items"]
    assert torch.equal(back["adam"][0]["exp_avg"], torch.ones(2, 3))
    assert (back["adam"]["1"], back["$tensor"], back["empty"]) == (None, "a name", {})
    with pytest.raises(TypeError, match="made/1 is a function"):
        split({"made": [0, lambda: None]})
