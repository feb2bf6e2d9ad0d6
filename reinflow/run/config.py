"""Where a run lives and what it logs to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunConfig:
    """Name, seed, device and logs of a run."""

    exp_name: str | None = None
    """directory below runs_dir; None makes it from stage, task and seed"""
    seed: int = 0
    """seed of Python, NumPy, torch and the training envs"""
    torch_deterministic: bool = True
    """deterministic cuDNN kernels; a CPU run repeats bit by bit anyway"""
    cuda: bool = True
    """use a GPU when there is one"""
    track: bool = False
    """log to wandb as well; WANDB_MODE=offline needs no network, and so it is where there is no login or no answer"""
    wandb_project_name: str = "ManiSkill_ReinFlow"
    """wandb project"""
    wandb_entity: str | None = None
    """wandb user or team; None is the account's default"""
    capture_video: bool = False
    """film every evaluation, which needs a Vulkan driver: one tiled mp4 in the run's `videos`"""
    num_video_envs: int = 9
    """episodes of a video"""
    keep_every: int = 0
    """evaluations between policies that stay in the run's `kept`, beside the pretrained and the last one; 0 keeps the
    best alone"""
    runs_dir: str = "runs"
    """folder of all runs"""
    resume: str | None = None
    """run directory to continue from its newest checkpoint; its flags are the defaults then"""
    allow_changes: bool = False
    """resume although code, libraries or flags differ; the run is no longer the one that was started"""
    overwrite: bool = False
    """replace an earlier run of the same name"""
    num_threads: int | None = None
    """torch CPU threads; None leaves torch's choice"""
