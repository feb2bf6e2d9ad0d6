"""Runs the guide's 22-configuration ablation over the GPUs, or the cores, of this machine or of a cluster.

./sweep_reinflow_parallel.sh --gpus "0 1 2 3" --env PickCube-v1 --pretrained-path runs/EXP_NAME
./sweep_reinflow_parallel.sh --configs "baseline:default warmup" --seeds "0 1 2" --dry-run
./sweep_reinflow_parallel.sh --executor slurm --slurm "slurm_partition=gpu timeout_min=720"
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from reinflow.cli import run_script
from reinflow.errors import UserError
from reinflow.storage.names import BEST
from reinflow.sweep.configs import select
from reinflow.sweep.plan import Job, make_plan
from reinflow.sweep.records import Record


@dataclass(frozen=True)
class Config:
    """Stage 3 with one baseline and 21 variants of it. What is done is not run again."""

    gpus: str = ""
    """GPU indices, "0 1 2 3"; empty takes all that are visible, or the cores where there is none"""
    env: str | None = None
    """task; default is the checkpoint's"""
    configs: str = ""
    """configurations, "baseline:default warmup:0 noise" (a category means all of it); empty means all 22"""
    seeds: str = "0"
    """seeds of every configuration, "0 1 2\""""
    pretrained_path: str | None = None
    """checkpoint of Stage 1 or 2; default is the one that Stage 2 writes for the task"""
    log_dir: str = "runs/sweep"
    """folder of the sweep: a run directory and a log per job, and jobs/ with their states"""
    timesteps: int = 1_000_000
    """env steps per job"""
    baseline: Literal["guide", "default", "official", "gpu", "toy"] = "guide"
    """preset that every configuration starts from; `guide` holds the guide's baseline"""
    flags: str = ""
    """more flags of train_online_finetune.py for every job: --flags="--num_envs 256 --rollout_steps 32" """
    control_mode: str | None = None
    """default is the checkpoint's"""
    sim_backend: str | None = None
    """default is auto"""
    wandb_project: str | None = None
    """log every job to this wandb project"""
    jobs_per_gpu: int | None = None
    """runs side by side on each GPU (default 1), or on the cores of a machine without one (default one per core)"""
    executor: Literal["local", "ray", "slurm"] = "local"
    """where the jobs run: on this machine, on a Ray cluster, or as an array of Slurm jobs with a GPU each"""
    address: str = "auto"
    """of the Ray cluster; auto finds the one that this machine belongs to"""
    slurm: str = ""
    """parameters of the Slurm jobs by submitit's names, "slurm_partition=gpu timeout_min=720 gpus_per_node=1\""""
    resume_runs: Annotated[bool, tyro.conf.arg(name="resume")] = False
    """continue interrupted jobs from their checkpoints; otherwise they start again"""
    dry_run: bool = False
    """print the command lines and stop"""


def main(config: Config) -> None:
    """Run the jobs of the plan, or with `--dry-run` print their commands; exits with 1 where one failed."""
    jobs = plan(config)
    if config.dry_run:
        for job in jobs:
            print(shlex.join(["python", *job.command()[1:]]))
        return
    from reinflow.storage.checkpoint import resolve_checkpoint

    resolve_checkpoint(jobs[0].flags["pretrained_path"])
    records = run(config, jobs)
    failed = [record for record in records if record.state == "failed"]
    print(f"{len(records) - len(failed)} of {len(records)} jobs done; watch or read them with ./monitor_reinflow.sh")
    for record in failed:
        print(f"failed: {record.name}: {record.error}", file=sys.stderr)
    if failed:
        raise SystemExit(1)


def say(line: str) -> None:
    """Print at once, also into a pipe."""
    print(line, flush=True)


def run(config: Config, jobs: list[Job]) -> list[Record]:
    """All jobs to their end, where `config` says."""
    log_dir, resume = Path(config.log_dir), config.resume_runs
    if config.executor != "local" and config.gpus:
        raise UserError("--gpus names GPUs of this machine: leave it out, a cluster gives each job its own")
    if config.executor == "slurm" and config.jobs_per_gpu:
        raise UserError("--jobs-per-gpu does not reach Slurm, where every job has its GPU: leave it out")
    if config.executor == "ray":
        from reinflow.sweep.ray import run_on_ray

        return run_on_ray(jobs, log_dir, resume, config.address, config.jobs_per_gpu or 1, say)
    if config.executor == "slurm":
        from reinflow.sweep.slurm import parse_parameters, run_on_slurm

        return run_on_slurm(jobs, log_dir, resume, parse_parameters(config.slurm), say)
    from reinflow.sweep.local import LocalSweep, cpu_slots, gpu_slots, visible_gpus

    gpus = config.gpus.split() or visible_gpus()
    slots = gpu_slots(gpus, config.jobs_per_gpu or 1) if gpus else cpu_slots(config.jobs_per_gpu)
    with LocalSweep(jobs, slots, log_dir, resume, say) as sweep:
        return sweep.run()


def plan(config: Config) -> list[Job]:
    """UserError for seeds or counts that can't be."""
    try:
        seeds = [int(word) for word in config.seeds.split()]
    except ValueError:
        raise UserError(f'--seeds "{config.seeds}" must be whole numbers, as in --seeds "0 1 2"') from None
    if not seeds or min(seeds) < 0:
        raise UserError('--seeds needs at least one number from 0 on, as in --seeds "0 1 2"')
    if config.jobs_per_gpu is not None and config.jobs_per_gpu < 1:
        raise UserError(f"--jobs-per-gpu {config.jobs_per_gpu} must be at least 1")
    env = config.env or "PickCube-v1"
    common: dict[str, Any] = {
        "pretrained_path": config.pretrained_path or f"runs/aw_shortcut_flow-{env}-seed0/{BEST}",
        "env_id": config.env,
        "total_timesteps": config.timesteps,
        "control_mode": config.control_mode,
        "sim_backend": config.sim_backend,
        "wandb_project_name": config.wandb_project,
        **extra_flags(config.flags),
    }
    common = {name: value for name, value in common.items() if value is not None}
    if config.wandb_project:
        common["track"] = True
    return make_plan(select(config.configs), seeds, common, Path(config.log_dir), config.baseline)


def extra_flags(words: str) -> dict[str, Any]:
    """`--num_envs 256 --terminate_on_success` as a dict; UserError if it does not start with a flag."""
    flags: dict[str, Any] = {}
    name = None
    for word in shlex.split(words):
        if word.startswith("--"):
            name = word[2:].replace("-", "_")
            flags[name] = True
        elif name is None:
            raise UserError(f'--flags "{words}" must start with a flag, as in --flags="--num_envs 256"')
        else:
            flags[name] = word if flags[name] is True else f"{flags[name]} {word}"
    return flags


if __name__ == "__main__":
    run_script(main, Config)
