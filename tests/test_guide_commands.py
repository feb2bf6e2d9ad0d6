"""The command lines of the user's guide parse and mean what they say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from reinflow.cli import flat_fields, parse, run_script, with_flags
from reinflow.presets import ONLINE_PRESETS, beside_the_guide

ROOT = Path(__file__).resolve().parents[1]

BASIC = """--env_id PickCube-v1 --pretrained_path runs/aw_shortcut_flow-PickCube-v1-seed0/best_model.pt
    --num_inference_steps 8 --critic_warmup_steps 5000 --total_timesteps 1000000"""
FULL = """--env_id PickCube-v1 --pretrained_path runs/aw_shortcut_flow-PickCube-v1-seed0/best_model.pt --num_envs 16
    --total_timesteps 1000000 --rollout_steps 128 --ppo_epochs 4 --minibatch_size 64 --lr 3e-5 --lr_critic 1e-4
    --gamma 0.99 --gae_lambda 0.95 --clip_ratio 0.2 --entropy_coef 0.01 --value_coef 0.5 --num_inference_steps 8
    --critic_warmup_steps 5000 --min_noise_std 0.01 --max_noise_std 0.3 --noise_decay_type linear
    --noise_decay_steps 500000 --freeze_visual_encoder --track --wandb_project_name ManiSkill_ReinFlow"""
RECOMMENDED = "--num_envs 256 --minibatch_size 256 --num_inference_steps 8"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("command", [BASIC, FULL, RECOMMENDED])
@pytest.mark.parametrize("dashes", [False, True])
def test_the_guides_commands_parse_with_underscores_and_dashes(command: str, dashes: bool):
    words = command.split()
    if dashes:
        words = [word.replace("_", "-") if word.startswith("--") else word for word in words]
    config = parse(script("train_online_finetune").Config, words)
    assert config.num_inference_steps == 8


def test_the_full_command_sets_what_it_names():
    config = parse(script("train_online_finetune").Config, FULL.split())
    assert (config.online.num_envs, config.online.rollout_steps, config.online.total_timesteps) == (16, 128, 1_000_000)
    assert (config.ppo.lr, config.ppo.lr_critic, config.ppo.minibatch_size) == (3e-5, 1e-4, 64)
    assert (config.ppo.gamma, config.ppo.gae_lambda, config.ppo.clip_ratio) == (0.99, 0.95, 0.2)
    assert (config.noise.min_noise_std, config.noise.max_noise_std, config.noise.noise_decay_steps) == (
        0.01,
        0.3,
        500_000,
    )
    assert config.noise.initial_bounds(config.num_inference_steps) == (0.01, 0.3)
    assert config.run.track
    assert config.run.wandb_project_name == "ManiSkill_ReinFlow"


def test_the_guide_preset_holds_the_guides_baseline():
    module = script("train_online_finetune")
    config = parse(module.Config, ["--preset", "guide"], presets=module.ONLINE_PRESETS)
    assert (config.ppo.clip_ratio, config.ppo.entropy_coef, config.ppo.value_coef) == (0.2, 0.01, 0.5)
    assert (config.ppo.lr, config.ppo.lr_critic, config.ppo.critic_warmup_steps) == (3e-5, 1e-4, 5000)
    assert (config.online.rollout_steps, config.ppo.ppo_epochs, config.num_inference_steps) == (128, 4, 8)
    assert config.noise.noise_decay_type == "linear"
    assert config.noise.initial_bounds(8) == (0.01, 0.3)


TABLE = [
    "critic_warmup_steps", "noise_decay_type", "noise_decay_steps", "min_noise_std", "max_noise_std", "clip_ratio",
    "entropy_coef", "value_coef", "lr", "lr_critic", "num_inference_steps", "rollout_steps", "ppo_epochs",
    "minibatch_size",
]  # fmt: skip
"""the rows of the guide's baseline that are flags"""


def announced(words: list[str], capsys) -> list[str]:
    """What Stage 3 says before it starts."""
    module = script("train_online_finetune")
    run_script(lambda config: None, module.Config, presets=module.ONLINE_PRESETS, notice=beside_the_guide, argv=words)
    return capsys.readouterr().out.splitlines()


def test_the_basic_command_hears_in_one_line_what_else_the_guides_baseline_has(capsys):
    (line,) = announced(BASIC.split(), capsys)
    config = dict(flat_fields(parse(script("train_online_finetune").Config, BASIC.split())))
    guide = dict(flat_fields(with_flags(script("train_online_finetune").Config(), ONLINE_PRESETS["guide"])))
    for name in TABLE:
        assert (f"{name} {guide[name]} (here {config[name]})" in line) == (guide[name] != config[name]), name
    assert line.count("(here ") == 14


def test_the_full_command_differs_from_the_guides_baseline_in_what_the_guide_does_not_name(capsys):
    (line,) = announced(FULL.split(), capsys)
    for difference in ("initial_noise_scale 1.0 (here None)", "logprob_reduction sum (here sqrt)"):
        assert difference in line
    assert line.count("(here ") == 2


@pytest.mark.parametrize(
    "words", [["--preset", "guide", "--lr", "1e-5"], ["--preset", "toy", *BASIC.split()], ["--num_envs", "16"], []]
)
def test_nothing_is_said_of_the_guide_where_nobody_asked_for_it(words, capsys):
    assert announced(words, capsys) == []
