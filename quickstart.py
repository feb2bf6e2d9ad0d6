"""The whole story in one command: demonstrations, three training stages, an evaluation after each, on real ManiSkill.

    make quickstart            or            python quickstart.py --env_id PushCube-v1

Every step is one of the project's own scripts, printed before it runs, so that any of them can be repeated by hand. It
ends in `report.html`, a page to look at. Each step is a process of its own, forked from this one, which has imported
what all of them need.
"""

from __future__ import annotations

import json
import runpy
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

from reinflow import report
from reinflow.cli import run_script
from reinflow.envs.headless import render_device_available
from reinflow.errors import UserError
from reinflow.run_page import FILM, SUMMARY

ROOT = Path(__file__).resolve().parent


EVAL_SEED = 20_000
"""first seed of its evaluations (docs/scripts.md lists all ranges)"""
FILMED = 2
"""episodes of the film, from the first seed of the evaluations on"""
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
    film: bool = True
    """film Stage 1 and Stage 3 side by side, where there is a Vulkan driver"""
    output_dir: str = "runs/quickstart"
    """everything goes here; an earlier quick start in it is replaced"""


def main(config: Config) -> None:
    """Run all stages and evaluations below `--output_dir`, which an earlier quick start may have filled."""
    folder = Path(config.output_dir)
    clear(folder)
    started = time.perf_counter()
    import_what_all_steps_need()
    commands: list[str] = []
    common = ["--seed", str(config.seed), "--runs_dir", str(folder), "--preset", "quickstart"]
    demos = folder / "demos" / "trajectory.h5"
    effort = EFFORTS[config.net]
    step(
        commands,
        "Stage 0: demonstrations from a scripted expert",
        ["collect_demos.py", "--env_id", config.env_id, "--num_demos", str(config.num_demos)]
        + ["--seed", str(DEMO_SEEDS * config.seed), "--output", str(demos)],
    )
    results = {}
    step(
        commands,
        "Stage 1: behaviour cloning with a ShortCut Flow",
        ["train_shortcut_flow.py", *common, "--exp_name", "stage1", "--env_id", config.env_id]
        + ["--demo_path", str(demos), *effort.stage1],
    )
    results["Stage 1  behaviour cloning"] = evaluation(commands, folder / "stage1", config)
    step(
        commands,
        "Stage 2: offline improvement by advantage weighting",
        ["train_aw_shortcut_flow.py", *common, "--exp_name", "stage2", "--demo_path", str(demos)]
        + ["--pretrained_path", str(folder / "stage1"), *effort.stage2],
    )
    results["Stage 2  advantage weighted"] = evaluation(commands, folder / "stage2", config)
    step(
        commands,
        "Stage 3: online fine-tuning with ReinFlow",
        ["train_online_finetune.py", *common, "--exp_name", "stage3", "--pretrained_path", str(folder / "stage2")]
        + ["--total_timesteps", str(config.total_timesteps or effort.total_timesteps)],
    )
    results["Stage 3  ReinFlow (PPO)"] = evaluation(commands, folder / "stage3", config)
    if config.film and render_device_available():
        print("\n== Film Stage 1 and Stage 3", flush=True)
        if apart(film, folder):
            print("the page does without a film, whose error stands above")
    summary = {
        "env_id": config.env_id,
        "num_demos": config.num_demos,
        "seed": config.seed,
        "minutes": (time.perf_counter() - started) / 60,
        "results": results,
        "commands": commands,
    }
    summarise(summary, folder, config.num_eval_episodes)


def clear(folder: Path) -> None:
    """Delete an earlier quick start; UserError for a folder of anything else."""
    if not folder.exists():
        return
    if not (folder / "demos").is_dir():
        raise UserError(f"{folder} exists and is not an earlier quick start: pass another --output_dir")
    shutil.rmtree(folder)


def import_what_all_steps_need() -> None:
    """Seconds of each step; where there is a GPU the simulator is left out, whose driver may not survive a fork."""
    import reinflow.agent
    import reinflow.run.run
    import reinflow.training.trainer  # noqa: F401

    if not shutil.which("nvidia-smi"):
        from reinflow.envs.maniskill import quiet_maniskill

        quiet_maniskill()


def step(commands: list[str], title: str, command: list[str]) -> None:
    """Run one script of the project, and add it to `commands`; its own error sentence is enough when it fails."""
    commands.append(f"python {shlex.join(command)}")
    print(f"\n== {title}\n$ {commands[-1]}", flush=True)
    if code := apart(play, command):
        raise SystemExit(code)


def play(command: list[str]) -> None:
    """Be that script."""
    sys.argv = command
    runpy.run_path(str(ROOT / command[0]), run_name="__main__")


def apart(function: Callable[[Any], None], argument: Any) -> int:
    """Call it in a fork of this process; its exit code, as a shell has it."""
    process = get_context("fork").Process(target=function, args=(argument,))
    process.start()
    try:
        process.join()
    except SystemExit:  # SIGTERM; Ctrl-C reaches both processes
        process.terminate()
        process.join()
        raise
    code = process.exitcode or 0
    return code if code >= 0 else 128 - code


def film(folder: Path) -> None:
    """`comparison.mp4`: the policies of Stage 1 and Stage 3 from the same start states."""
    from reinflow.envs import EnvConfig
    from reinflow.storage.checkpoint import load_policy
    from reinflow.training.videos import Camera, write_comparison

    films = []
    for stage in ("stage1", "stage3"):
        policy, checkpoint = load_policy(folder / stage, "cpu")
        with closing(Camera(checkpoint.env_spec, EnvConfig(), policy, EVAL_SEED, FILMED)) as camera:
            films.append(camera.film(policy))
    write_comparison(folder / FILM, films)


def evaluation(commands: list[str], run: Path, config: Config) -> dict:
    """Success of a finished stage's best checkpoint over episodes that no stage trained or selected on."""
    command = ["evaluate.py", "--checkpoint", str(run), "--num_eval_episodes", str(config.num_eval_episodes)]
    step(commands, f"Evaluate {run.name}", [*command, "--eval_seed", str(EVAL_SEED)])
    row = json.loads((run / "evaluation.json").read_text())["results"][0]
    return {name: value for name, value in row.items() if name != "per_episode"}


def summarise(summary: dict[str, Any], folder: Path, episodes: int) -> None:
    """Print the table that the quick start is about, keep it as `summary.json`, and write the page."""
    print(f"\n{summary['env_id']}, {summary['num_demos']} demonstrations, {episodes} episodes each")
    print(f"{'':30} success_once  success_at_end  return")
    for name, row in summary["results"].items():
        print(f"{name:30} {row['success_once']:>11.1%} {row['success_at_end']:>15.1%} {row['return']:>7.1f}")
    print(f"{summary['minutes']:.1f} minutes in all; runs, curves and checkpoints are in {folder}")
    (folder / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
    report.main(report.Config(str(folder)))


if __name__ == "__main__":
    run_script(main, Config)
