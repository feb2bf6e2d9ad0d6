"""A diffusion policy through the scripts: cloned, its last steps fine-tuned, evaluated by both kinds of weights."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reinflow.cli import as_words, parse
from reinflow.errors import UserError
from reinflow.recipes import flags_of
from reinflow.storage.checkpoint import load_checkpoint, load_policy, save_checkpoint
from tests.small import EVALUATION, demo_file, run_stage


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Runs `start`, of Stage 1, and `tuned`, of Stage 3 by the guide's recipe with few steps."""
    folder = tmp_path_factory.mktemp("diffusion")
    demo_file(folder)
    words = ["--family", "ddpm", "--diffusion_steps", "4", "--num_inference_steps", "4", "--lr", "1e-2"]
    run_stage(1, folder, "start", *words)
    flags = flags_of("ft_ppo_diffusion_mlp", "ft") | {"num_inference_steps": 4, "ft_denoising_steps": 2}
    run_stage(3, folder, "tuned", *as_words({name: value for name, value in flags.items() if value is not None}))
    return folder / "runs"


def evaluated(runs: Path, *words: str) -> dict:
    script = importlib.import_module("evaluate")
    folder = runs / "-".join(word.strip("-") for word in words if "/" not in word)
    script.main(parse(script.Config, [*words, *EVALUATION, "--no-cuda", "--output_dir", str(folder)]))
    assert (folder / "evaluation.png").stat().st_size > 1000
    return json.loads((folder / "evaluation.json").read_text())


def test_fine_tuning_leaves_the_first_steps_to_the_clone(runs):
    cloned, tuned = (load_policy(runs / name, "cpu")[0] for name in ("start", "tuned"))
    assert (tuned.spec.num_inference_steps, tuned.spec.ft_denoising_steps) == (4, 2)
    for name, value in cloned.net.state_dict().items():
        assert torch.equal(tuned.held_net.state_dict()[name], value)
    iterations = [json.loads(line) for line in (runs / "tuned" / "metrics.jsonl").read_text().splitlines()]
    deviations = [row["losses/ratio_deviation"] for row in iterations if "losses/ratio_deviation" in row]
    assert deviations and max(deviations) < 1e-4


def test_an_evaluation_over_steps_has_every_column_and_one_picture(runs):
    rows = evaluated(runs, "--checkpoint", str(runs / "tuned"), "--num_inference_steps", "1", "2", "4")["results"]
    assert [row["num_inference_steps"] for row in rows] == [1, 2, 4]
    for row in rows:
        assert {"success_once", "return", "episode_len", "policy_calls_per_second", "best_reward"} <= row.keys()
        best = [episode["best_reward"] for episode in row["per_episode"]]
        assert row["best_reward"] == pytest.approx(sum(best) / len(best))
        # no decision's mean reward is below that of the whole episode
        assert all(e["best_reward"] >= e["return"] / e["length"] - 1e-6 for e in row["per_episode"])


def test_the_weights_themselves_can_be_evaluated_in_place_of_their_average(runs, tmp_path):
    start = str(runs / "start")
    average, raw = (evaluated(runs, "--checkpoint", start, word)["results"][0] for word in ("--ema", "--no-ema"))
    assert average["per_episode"] != raw["per_episode"]
    checkpoint = load_checkpoint(start)
    assert checkpoint.parts["raw"].keys() == checkpoint.policy_state.keys()
    evaluated(runs, "--checkpoint", str(runs / "tuned"), "--no-ema")  # a fine-tuned policy has no average
    save_checkpoint(tmp_path / "older.pt", replace(checkpoint, parts={}))
    with pytest.raises(UserError, match="--no-ema"):
        evaluated(runs, "--checkpoint", str(tmp_path / "older.pt"), "--no-ema")
