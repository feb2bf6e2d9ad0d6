"""The whole story in one command: demonstrations, three training stages, an evaluation after each, on real ManiSkill.

    make quickstart            or            python quickstart.py --env_id PushCube-v1

Every step is one of the project's own scripts, printed before it runs, so that any of them can be repeated by hand.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reinflow.cli import run_script
from reinflow.errors import UserError

ROOT = Path(__file__).resolve().parent


EVAL_SEED = 20_000
"""first seed of its evaluations (docs/scripts.md lists all ranges)"""
DEMO_SEEDS = 1_000
"""between the first seeds of two quick starts' demonstrations, so that none are in both"""


@dataclass(frozen=True)
class Effort:
    """What a network takes on CPU cores, besides the preset."""

    stage1: tuple[str, ...]
    """flags of Stage 1"""
    stage2: tuple[str, ...]
    """flags of Stage 2"""
    total_timesteps: int
    """env steps of Stage 3"""


EFFORTS = {
    "unet": Effort(
        ("--net", "unet", "--unet_dims", "32", "64", "128", "--total_iters", "2000"),
        ("--total_iters", "400", "--num_threads", "1"),
        330_000,
    ),
    "mlp": Effort((), ("--total_iters", "400", "--num_threads", "1"), 250_000),
}


@dataclass(frozen=True)
class Config:
    """Collect, clone, improve offline, fine-tune online, evaluate."""

    env_id: str = "PickCube-v1"
    """a task with a scripted expert"""
    num_demos: int = 20
    """demonstrations to clone"""
    seed: int = 0
    """seed of every step"""
    net: Literal["unet", "mlp"] = "mlp"
    """the MLP, or the ShortCut UNet, which takes longer"""
    total_timesteps: int | None = None
    """env steps of Stage 3; None takes what suits the network"""
    num_eval_episodes: int = 200
    """episodes of each evaluation"""
    output_dir: str = "runs/quickstart"
    """everything goes here; an earlier quick start in it is replaced"""


def main(config: Config) -> None:
    """Run all stages and evaluations below `--output_dir`, which an earlier quick start may have filled."""
    folder = Path(config.output_dir)
    if folder.exists():
        if not (folder / "demos").is_dir():
            raise UserError(f"{folder} exists and is not an earlier quick start: pass another --output_dir")
        shutil.rmtree(folder)
    started = time.perf_counter()
    common = ["--seed", str(config.seed), "--runs_dir", str(folder), "--preset", "quickstart"]
    demos = folder / "demos" / "trajectory.h5"
    effort = EFFORTS[config.net]
    step(
        "Stage 0: demonstrations from a scripted expert",
        ["collect_demos.py", "--env_id", config.env_id, "--num_demos", str(config.num_demos)]
        + ["--seed", str(DEMO_SEEDS * config.seed), "--output", str(demos)],
    )
    results = {}
    step(
        "Stage 1: behaviour cloning with a ShortCut Flow",
        ["train_shortcut_flow.py", *common, "--exp_name", "stage1", "--env_id", config.env_id]
        + ["--demo_path", str(demos), *effort.stage1],
    )
    results["Stage 1  behaviour cloning"] = evaluation(folder / "stage1", config)
    step(
        "Stage 2: offline improvement by advantage weighting",
        ["train_aw_shortcut_flow.py", *common, "--exp_name", "stage2", "--demo_path", str(demos)]
        + ["--pretrained_path", str(folder / "stage1"), *effort.stage2],
    )
    results["Stage 2  advantage weighted"] = evaluation(folder / "stage2", config)
    step(
        "Stage 3: online fine-tuning with ReinFlow",
        ["train_online_finetune.py", *common, "--exp_name", "stage3", "--pretrained_path", str(folder / "stage2")]
        + ["--total_timesteps", str(config.total_timesteps or effort.total_timesteps)],
    )
    results["Stage 3  ReinFlow (PPO)"] = evaluation(folder / "stage3", config)
    summarise(results, folder, time.perf_counter() - started, config)


def step(title: str, command: list[str]) -> None:
    """Run one script of the project; its own error sentence is enough when it fails."""
    print(f"\n== {title}\n$ python {shlex.join(command)}", flush=True)
    done = subprocess.run([sys.executable, str(ROOT / command[0]), *command[1:]], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


def evaluation(run: Path, config: Config) -> dict:
    """Success of a finished stage's best checkpoint over episodes that no stage trained or selected on."""
    command = ["evaluate.py", "--checkpoint", str(run), "--num_eval_episodes", str(config.num_eval_episodes)]
    step(f"Evaluate {run.name}", [*command, "--eval_seed", str(EVAL_SEED)])
    row = json.loads((run / "evaluation.json").read_text())["results"][0]
    return {name: value for name, value in row.items() if name != "per_episode"}


def summarise(results: dict[str, dict], folder: Path, seconds: float, config: Config) -> None:
    """Print the table that the quick start is about and keep it as `summary.json`."""
    print(f"\n{config.env_id}, {config.num_demos} demonstrations, {config.num_eval_episodes} episodes each")
    print(f"{'':30} success_once  success_at_end  return")
    for name, row in results.items():
        print(f"{name:30} {row['success_once']:>11.1%} {row['success_at_end']:>15.1%} {row['return']:>7.1f}")
    print(f"{seconds / 60:.1f} minutes in all; runs, curves and checkpoints are in {folder}")
    summary = {"env_id": config.env_id, "seed": config.seed, "minutes": seconds / 60, "results": results}
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    run_script(main, Config)
