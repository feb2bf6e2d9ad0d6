"""Recipes of the learning benchmarks: what they run, what they skip, and the numbers that they make of a curve."""

from __future__ import annotations

import importlib
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import clones, learning
from benchmarks.learning import SUITES, Clone, Lab, Recipe, evaluations, first, named
from benchmarks.x0 import variances
from reinflow.cli import as_words, flat_fields
from tests.small import demo_file, run_stage


def all_recipes() -> list[Recipe]:
    return [recipe for suite in SUITES.values() for recipe in suite]


def test_recipes_are_made_of_flags_that_exist_and_have_names_of_their_own():
    import train_online_finetune
    import train_shortcut_flow

    known = {script: dict(flat_fields(script.Config())) for script in (train_shortcut_flow, train_online_finetune)}
    for recipe in all_recipes():
        assert set(recipe.flags) <= set(known[train_online_finetune]), recipe.name
        assert set(recipe.clone.flags) <= set(known[train_shortcut_flow]), recipe.name
    names = [recipe.name for recipe in all_recipes()]
    assert len(set(names)) == len(names)


def test_flags_become_words():
    words = as_words({"lr": 1e-4, "unet_dims": [32, 64], "overwrite": True, "only_success": False})
    assert words == ["--lr", "0.0001", "--unet_dims", "32", "64", "--overwrite", "--no-only_success"]


def test_clones_of_other_demonstrations_have_folders_of_their_own_and_the_first_ones_keep_theirs():
    assert Clone().name == "PickCube-v1-mlp"
    assert Clone(num_demos=60, action_noise=0.5, net="unet").name == "PickCube-v1-unet-60demos-noise0.5"


def test_a_file_of_recipes_is_taken_beside_the_named_ones(tmp_path: Path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([{"name": "bold", "total_timesteps": 9, "flags": {"lr": 1}, "clone": {"num_demos": 5}}]))
    assert named(["push", str(path)]) == [SUITES["tasks"][0], Recipe("bold", 9, Clone(num_demos=5), {"lr": 1})]


def test_times_to_a_success_with_and_without_evaluations(tmp_path: Path):
    # 60 s a step of training, 30 s an evaluation: the first one is over when the clock starts
    lines = [(0, 0, 0.5), (6, 90, 0.92), (12, 180, 0.96)]
    keys = ("step", "time", "eval/success_once")
    rows = [dict(zip(keys, line, strict=True)) | {"eval/success_at_end": 0.1, "time/eval": 30.0} for line in lines]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    curve = evaluations(tmp_path)
    assert [point["minutes"] for point in curve] == [0, 1.5, 3]
    assert [point["training_minutes"] for point in curve] == [0, 1, 2]
    assert [first(curve, goal).get("env_steps") for goal in (0.9, 0.95, 0.98)] == [6, 12, None]


def test_what_is_finished_is_not_run_again(tmp_path: Path, monkeypatch):
    calls: list[list[str]] = []

    def call(self: Lab, command: list[str], log: Path) -> None:
        calls.append(command)
        options = dict(pairwise(command))
        if "--output" in options:
            Path(options["--output"]).parent.mkdir(parents=True, exist_ok=True)
            Path(options["--output"]).touch()
        elif "--exp_name" in options:
            run = Path(options["--runs_dir"]) / options["--exp_name"]
            run.mkdir(parents=True)
            (run / "status.json").write_text('{"state": "done"}')
        else:
            Path(options["--output_dir"]).mkdir(parents=True, exist_ok=True)
            (Path(options["--output_dir"]) / "evaluation.json").write_text('{"results": [{}]}')

    monkeypatch.setattr(Lab, "call", call)
    recipe = Recipe("x", 100, Clone(num_demos=60, action_noise=0.5), weighted=False)
    lab = Lab(tmp_path, episodes=4)
    lab.run(recipe, seed=1)
    scripts = [command[0] for command in calls]
    assert scripts == [
        "collect_demos.py", "train_shortcut_flow.py", "evaluate.py", "train_online_finetune.py", "evaluate.py"
    ]  # fmt: skip
    assert {"--action_noise", "--no-only_success"} <= set(calls[0])
    lab.run(recipe, seed=1)
    assert len(calls) == 5


def test_the_table_of_clones_has_a_row_per_k_and_a_column_per_scale():
    same: dict[str, Any] = {"env_id": "T", "net": "mlp", "num_demos": 5, "action_noise": 0.0}
    rows = [
        same | {"num_inference_steps": k, "initial_noise_scale": s, "success_once": s, "success_at_end": s / 2}
        for k in (1, 4)
        for s in (0.0, 1.0)
    ]
    assert clones.table(rows).splitlines()[2:] == [
        "| T | mlp | 5 | 0.0 | 1 | 0.0 / 0.0 | 100.0 / 50.0 |",
        "| T | mlp | 5 | 0.0 | 4 | 0.0 / 0.0 | 100.0 / 50.0 |",
    ]


def test_a_table_leaves_out_a_stage_that_was_left_out():
    row = {"recipe": "x", "stage1": {"success_once": 0.5}, "stage2": None}
    row |= {"stage3": {"success_once": 1.0, "success_at_end": 1.0}}
    for goal in (90, 95, 98):
        row |= {f"steps_to_{goal}": 12_000 if goal == 90 else None, f"minutes_to_{goal}": 1.0}
    assert (
        learning.table([row]).splitlines()[-1].startswith("| x | 1 | 50.0 |  | 100.0 | 100.0 | 12k | 1.0 |  (1 never)")
    )


def test_the_variance_within_and_between_states_by_hand():
    # two states with returns (0, 2) and (10, 12): 2 within each, means 1 and 11: 50 - 2/2 = 49 between
    assert variances(torch.tensor([[0.0, 10.0], [2.0, 12.0]])) == (2.0, 49.0)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("x0")
    demo_file(folder)
    run_stage(1, folder, "start")
    return folder / "runs" / "start"


def test_x_0_alone_moves_returns_and_from_the_centre_nothing_does(clone: Path, tmp_path: Path, monkeypatch, capsys):
    out = tmp_path / "x0.json"
    words = ["--states", "6", "--repeats", "3", "--decisions", "4", "--rounds", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["x0", "--checkpoint", str(clone), *words])
    importlib.import_module("benchmarks.x0").main()
    rows = json.loads(out.read_text())["rows"]
    given = {row["case"]: row["variance_given_state"] for row in rows if "case" in row}
    assert given["neither"] < 1e-9 < given["x_0"]
    assert [len(row["explained_variance"]) for row in rows if "explained_variance" in row] == [2, 2]
