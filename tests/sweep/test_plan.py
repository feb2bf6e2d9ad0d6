"""The guide's 22 configurations as command lines."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from reinflow.cli import flat_fields, parse
from reinflow.errors import UserError
from reinflow.presets import ONLINE_PRESETS
from reinflow.sweep.__main__ import Config, extra_flags, plan
from reinflow.sweep.configs import CATEGORIES, VARIANTS, select

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import train_online_finetune  # noqa: E402

DEFAULT_THEN = "runs/aw_shortcut_flow-PickCube-v1-seed0/best_model.pt"


def parsed(words: list[str]) -> dict:
    config = parse(train_online_finetune.Config, words, presets=ONLINE_PRESETS)
    return dict(flat_fields(config))


def test_there_are_one_baseline_and_21_variants_in_the_guides_six_categories():
    counts = {category: len(members) for category, members in CATEGORIES.items()}
    assert counts == {"baseline": 1, "warmup": 3, "noise": 5, "ppo": 5, "lr": 3, "infer": 2, "rollout": 3}
    assert len(VARIANTS) == 22


def test_every_command_line_parses_and_differs_from_the_baseline_in_its_own_flags_alone():
    jobs = plan(Config())
    assert len(jobs) == len({job.id for job in jobs}) == 22
    configs = {job.variant.key: parsed(job.command()[2:]) for job in jobs}
    baseline = configs["baseline:default"]
    for job in jobs:
        flags = configs[job.variant.key]
        differing = {name for name in flags if flags[name] != baseline[name]} - {"exp_name"}
        assert differing == set(job.variant.flags)
        assert all(flags[name] == value for name, value in job.variant.flags.items())


def test_the_baseline_has_the_values_of_the_guides_table():
    flags = parsed(plan(Config())[0].command()[2:])
    expected = {
        "critic_warmup_steps": 5000, "noise_decay_type": "linear", "noise_decay_steps": 500_000, "min_noise_std": 0.01,
        "max_noise_std": 0.3, "clip_ratio": 0.2, "entropy_coef": 0.01, "value_coef": 0.5, "lr": 3e-5, "lr_critic": 1e-4,
        "num_inference_steps": 8, "rollout_steps": 128, "ppo_epochs": 4, "minibatch_size": 64,
    }  # fmt: skip
    assert {name: flags[name] for name in expected} == expected


def test_configurations_are_chosen_by_name_or_by_category():
    assert [v.key for v in select("baseline:default warmup")] == [
        "baseline:default",
        "warmup:0",
        "warmup:2k",
        "warmup:10k",
    ]
    assert select("warmup:0 warmup:0 warmup") == select("warmup")
    with pytest.raises(UserError, match="warmup:2k"):
        select("warmup:3k")


def test_the_identity_is_the_configuration_not_the_folder():
    here, there = plan(Config(log_dir="a"))[0], plan(Config(log_dir="b"))[0]
    assert here.id == there.id
    assert here.id != plan(Config(timesteps=5))[0].id
    assert here.id != plan(Config(seeds="1"))[0].id
    assert len(plan(Config(seeds="0 1 1 2"))) == 66


def test_a_job_is_the_one_of_an_older_sweep_that_named_the_best_policy_by_its_former_name():
    former, now = (plan(Config(pretrained_path=f"runs/a/best_model.{end}"))[0] for end in ("pt", "safetensors"))
    assert former.id == now.id != plan(Config(pretrained_path="runs/b/best_model.pt"))[0].id
    assert plan(Config())[0].id == plan(Config(pretrained_path=DEFAULT_THEN))[0].id


def test_a_variant_that_equals_the_baseline_is_not_run_again():
    # the toy preset warms up for 10,000 env steps already; flags spelt otherwise are the same
    assert [job.variant.key for job in plan(Config(baseline="toy", configs="baseline warmup:0 warmup:10k"))] == [
        "baseline:default",
        "warmup:0",
    ]
    assert plan(Config(flags="--num_envs 16"))[0].id == plan(Config())[0].id


def test_more_flags_reach_every_job():
    assert extra_flags("--num-envs 256 --terminate_on_success") == {"num_envs": "256", "terminate_on_success": True}
    flags = parsed(plan(Config(flags="--num-envs 256", wandb_project="lab"))[3].command()[2:])
    assert (flags["num_envs"], flags["track"], flags["wandb_project_name"]) == (256, True, "lab")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"seeds": "zero"}, "whole numbers"),
        ({"seeds": ""}, "at least one"),
        ({"jobs_per_gpu": 0}, "at least 1"),
        ({"flags": "256"}, "start with a flag"),
    ],
)
def test_impossible_options_are_a_sentence(options, sentence):
    with pytest.raises(UserError, match=sentence):
        plan(Config(**options))


def test_the_guides_dry_run_prints_command_lines(tmp_path):
    words = ["--dry-run", "--gpus", "0 1", "--configs", "baseline:default warmup:0 warmup:2k warmup:10k"]
    done = subprocess.run(
        [str(ROOT / "sweep_reinflow_parallel.sh"), *words], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 4
    assert parsed(shlex.split(lines[1])[2:])["critic_warmup_steps"] == 0
    assert list(tmp_path.iterdir()) == []


def test_a_job_keeps_the_id_that_it_had_before_a_flag_came(monkeypatch):
    now, half = plan(Config())[0].id, plan(Config(flags="--initial_noise_scale 0.5"))[0].id
    monkeypatch.delitem(ONLINE_PRESETS["guide"], "initial_noise_scale")
    assert plan(Config())[0].id == now != half
