"""What Stage 2 maximised travels with its checkpoint: it is Stage 3's default, and a contradiction is a sentence."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from reinflow.cli import parse
from reinflow.errors import UserError
from reinflow.presets import ONLINE_PRESETS, WEIGHTED_PRESETS
from reinflow.storage.checkpoint import load_checkpoint, save_checkpoint
from reinflow.types import Objective
from tests.small import demo_file, run_stage
from train_aw_shortcut_flow import Config as WeightedConfig
from train_online_finetune import Config as OnlineConfig

SPARSE = ["--gamma", "0.9", "--reward_mode", "sparse", "--terminate_on_success"]
ONE_ITERATION = ["--total_timesteps", "80", "--critic_warmup_steps", "0", "--lr_critic", "0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stage 1, and Stage 2 with choices of its own."""
    folder = tmp_path_factory.mktemp("objective")
    demo_file(folder)
    run_stage(1, folder, "start")
    run_stage(2, folder, "weighted", *SPARSE)
    return folder


def tuned(folder: Path, source: str, name: str, *more: str) -> Path:
    run_stage(3, folder, name, "--pretrained_path", str(folder / "runs" / source), *ONE_ITERATION, *more)
    return folder / "runs" / name


def objective(run: Path) -> Objective | None:
    return load_checkpoint(run).objective


def flags(run: Path) -> dict:
    return json.loads((run / "config.json").read_text())["flags"]


def alarms(run: Path) -> str:
    return " ".join(json.loads((run / "status.json").read_text())["alarms"])


def same_value(first: Path, second: Path) -> bool:
    mine, theirs = load_checkpoint(first).parts["critic"], load_checkpoint(second).parts["critic"]
    return all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_stage_1_has_no_objective_and_leaves_the_defaults(folder):
    assert objective(folder / "runs" / "start") is None
    assert objective(tuned(folder, "start", "from stage 1")) == Objective(0.97, "normalized_dense", False)


def test_stage_3_goes_on_with_the_discount_the_rewards_and_the_ends_of_stage_2(folder):
    chosen = Objective(0.9, "sparse", terminate_on_success=True)
    assert objective(folder / "runs" / "weighted") == chosen
    run = tuned(folder, "weighted", "followed")
    assert objective(run) == chosen
    assert load_checkpoint(run).env_spec.reward_mode == "sparse"
    assert asdict(chosen).items() <= flags(run).items()
    assert same_value(run, folder / "runs" / "weighted")
    assert "V of" not in alarms(run)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--gamma", "0.97"], "gamma 0.9 instead of 0.97"),
        (["--reward_mode", "normalized_dense"], "reward_mode sparse instead of normalized_dense"),
        (["--no-terminate_on_success"], "terminate_on_success True instead of False"),
    ],
    ids=["discount", "rewards", "ends"],
)
def test_a_flag_that_means_another_return_drops_v_with_a_sentence(folder, given, said):
    run = tuned(folder, "weighted", said, *given)
    assert f"was trained for {said}, so it starts anew" in alarms(run)
    assert not same_value(run, folder / "runs" / "weighted")


def test_an_older_checkpoint_does_not_say_what_its_v_predicts_so_it_is_taken(folder):
    old = replace(load_checkpoint(folder / "runs" / "weighted"), objective=None)
    save_checkpoint(folder / "runs" / "old.pt", old)
    run = tuned(folder, "old.pt", "from an old one", "--gamma", "0.5")
    assert same_value(run, folder / "runs" / "old.pt")
    assert "V of" not in alarms(run)
    assert objective(run) == Objective(0.5, "sparse", False)  # the task's reward mode was always there


def test_a_resumed_run_keeps_its_objective_whatever_became_of_the_checkpoint_it_started_from(folder):
    source = folder / "runs" / "replaced.pt"
    chosen = load_checkpoint(folder / "runs" / "weighted")
    save_checkpoint(source, chosen)
    run = tuned(folder, "replaced.pt", "resumed")
    save_checkpoint(source, replace(chosen, objective=Objective(0.5, "normalized_dense", False)))
    run_stage(3, folder, "resumed", "--resume", str(run), "--total_timesteps", "160")
    assert objective(run) == chosen.objective


def test_stage_2_says_when_its_demonstrations_hold_other_rewards(folder):
    with pytest.raises(UserError, match="sparse_success contradicts --reward_mode normalized_dense"):
        run_stage(2, folder, "x", "--reward_source", "sparse_success", "--reward_mode", "normalized_dense")
    run_stage(2, folder, "from successes", "--reward_source", "sparse_success")
    assert objective(folder / "runs" / "from successes") == Objective(0.97, "sparse", False)


def test_presets_and_flags_mean_what_they_did():
    guide = parse(OnlineConfig, ["--preset", "guide"], presets=ONLINE_PRESETS)
    assert guide.ppo.completed(Objective(0.9, "sparse", True)).gamma == 0.99
    assert parse(WeightedConfig, ["--preset", "guide"], presets=WEIGHTED_PRESETS).critics.gamma == 0.99
    plain = parse(OnlineConfig, [])
    assert plain.ppo.completed().gamma == 0.97
    assert plain.env.completed().terminate_on_success is False
    assert parse(OnlineConfig, ["--terminate_on_success"]).env.terminate_on_success is True
