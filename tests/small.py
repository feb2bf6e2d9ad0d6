"""Runs of the real stage scripts that take a second: the toy, a tiny network, a handful of iterations, one process."""

from __future__ import annotations

import contextlib
import importlib
import io
from pathlib import Path

import torch

from reinflow.cli import parse
from reinflow.envs.toy import EPISODE, toy_demos
from reinflow.recording.writer import TrajectoryWriter

STAGES = (1, 2, 3)
SCRIPTS = {1: "train_shortcut_flow", 2: "train_aw_shortcut_flow", 3: "train_online_finetune"}
NET = ["--net", "mlp", "--mlp_hidden_dim", "16", "--mlp_depth", "1", "--diffusion_step_embed_dim", "8",
       "--obs_horizon", "2", "--act_horizon", "4", "--pred_horizon", "8"]  # fmt: skip
EVALUATION = ["--num_eval_envs", "4", "--num_eval_episodes", "4"]
OFFLINE = ["--total_iters", "12", "--batch_size", "16", "--log_freq", "2", "--eval_freq", "4", "--save_freq", "4"]
ONLINE = ["--num_envs", "4", "--rollout_steps", "5", "--total_timesteps", "320", "--minibatch_size", "10",
          "--ppo_epochs", "2", "--critic_warmup_steps", "50", "--eval_freq", "2", "--save_freq", "2",
          "--noise_decay_steps", "300"]  # fmt: skip


def demo_file(folder: Path, episodes: int = 6) -> Path:
    """Demonstrations of the toy in ManiSkill's format."""
    path = folder / "demos.h5"
    info = {
        "env_id": "Toy-v0",
        "env_kwargs": {"obs_mode": "state", "control_mode": "toy"},
        "max_episode_steps": EPISODE,
    }
    with TrajectoryWriter(path, info, {"source_type": "scripted", "source_desc": "toy"}, overwrite=True) as writer:
        for seed, demo in enumerate(toy_demos(episodes, noise=0.3, seed=0)):
            nothing = torch.zeros(len(demo["actions"]), dtype=torch.bool)
            writer.add({**demo, "terminated": nothing, "truncated": nothing}, seed, control_mode="toy")
    return path


def flags(stage: int, folder: Path, name: str) -> list[str]:
    """The command line of a stage."""
    words = ["--exp_name", name, "--runs_dir", str(folder / "runs"), "--no-cuda", *EVALUATION]
    if stage == 3:
        return [*words, "--pretrained_path", str(folder / "runs" / "start"), *ONLINE]
    words += ["--env_id", "Toy-v0", "--demo_path", str(folder / "demos.h5"), *OFFLINE]
    return words + (NET if stage == 1 else ["--pretrained_path", str(folder / "runs" / "start"), "--num_qs", "2"])


def run_stage(stage: int, folder: Path, name: str, *more: str, quiet: bool = True) -> None:
    """Run a stage's `main` in this process; with `--resume DIR` in `more` the other flags are those of that run."""
    script = importlib.import_module(SCRIPTS[stage])
    words = [*more] if "--resume" in more else [*flags(stage, folder, name), *more]
    config = parse(script.Config, words)
    if not quiet:
        script.main(config)
        return
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        script.main(config)
