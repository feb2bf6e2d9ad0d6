"""The scale of x_0 travels with the checkpoint through the stages, and each of them can change it."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest

import evaluate
import train_shortcut_flow
from reinflow.cli import parse
from reinflow.errors import UserError
from reinflow.policies import spread
from reinflow.presets import CLONING_PRESETS, ONLINE_PRESETS, WEIGHTED_PRESETS
from reinflow.storage.checkpoint import load_checkpoint
from tests.small import demo_file, run_stage


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations and a clone that starts at half the noise."""
    folder = tmp_path_factory.mktemp("initial_noise")
    demo_file(folder)
    run_stage(1, folder, "start", "--initial_noise_scale", "0.5")
    return folder


def scale(folder: Path, name: str) -> float:
    return load_checkpoint(folder / "runs" / name).policy_spec.initial_noise_scale


@pytest.mark.parametrize("stage", [2, 3])
def test_a_stage_takes_the_checkpoints_scale_unless_it_is_told_another_which_it_stores(folder: Path, stage: int):
    assert scale(folder, "start") == 0.5
    run_stage(stage, folder, f"kept{stage}")
    assert scale(folder, f"kept{stage}") == 0.5
    run_stage(stage, folder, f"told{stage}", "--initial_noise_scale", "0")
    assert scale(folder, f"told{stage}") == 0


@pytest.mark.parametrize(("words", "expected"), [((), 0.5), (("--initial_noise_scale", "1"), 1.0)])
def test_an_evaluation_writes_down_the_scale_that_it_used(folder: Path, tmp_path: Path, words, expected):
    words = ["--checkpoint", str(folder / "runs" / "start"), "--output_dir", str(tmp_path), "--no-cuda", *words]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluate.main(parse(evaluate.Config, [*words, "--num_eval_envs", "4", "--num_eval_episodes", "4"]))
    (row,) = json.loads((tmp_path / "evaluation.json").read_text())["results"]
    assert row["initial_noise_scale"] == expected


def test_counting_x_0_where_there_is_none_is_refused_with_the_way_out(folder: Path):
    words = ["--initial_noise_scale", "0", "--count_initial_noise"]
    with pytest.raises(UserError, match="--preset official takes 1"):
        run_stage(3, folder, "counted", *words)


def test_the_guides_and_the_papers_presets_keep_1_whatever_the_default_is():
    for preset in (
        CLONING_PRESETS["guide"],
        WEIGHTED_PRESETS["guide"],
        *map(ONLINE_PRESETS.get, ("guide", "official")),
    ):
        assert preset["initial_noise_scale"] == 1


def test_a_resumed_run_from_before_the_scale_starts_at_1(folder: Path, tmp_path: Path):
    run = tmp_path / "old"
    shutil.copytree(folder / "runs" / "start", run)
    description = json.loads((run / "config.json").read_text())
    del description["flags"]["initial_noise_scale"]
    (run / "config.json").write_text(json.dumps(description))
    config = parse(train_shortcut_flow.Config, ["--resume", str(run)])
    assert config.policy.initial_noise_scale == 1


def test_an_offline_stage_logs_the_spread_over_x_0_once_and_its_alarm_stays_in_the_status(folder, monkeypatch):
    monkeypatch.setattr(spread, "LONELY_SHARE", -1.0)  # as if every state had several modes
    run_stage(1, folder, "alarmed", "--initial_noise_scale", "0")
    lines = [json.loads(line) for line in (folder / "runs/alarmed/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "policy/action_spread" in line] == [12]
    alarms = json.loads((folder / "runs/alarmed/status.json").read_text())["alarms"]
    assert any("several modes" in alarm for alarm in alarms)
