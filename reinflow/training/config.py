"""Length and rhythm of the loops, and how a policy is evaluated: plain values, without torch."""

from __future__ import annotations

from dataclasses import dataclass

from reinflow.envs.builds import Builds
from reinflow.errors import UserError


@dataclass(frozen=True)
class OfflineConfig:
    """Length and rhythm of an offline run, in gradient iterations."""

    total_iters: int = 30_000
    """gradient iterations"""
    batch_size: int = 256
    """rows per iteration"""
    log_freq: int = 250
    """iterations between logged lines"""
    eval_freq: int = 5_000
    """iterations between evaluations; 0 evaluates only at the end"""
    save_freq: int = 5_000
    """iterations between resumable checkpoints; 0 saves only at the end"""


@dataclass(frozen=True)
class OnPolicyConfig:
    """Length and rhythm of an online run."""

    num_envs: int = 128
    """envs that are simulated side by side"""
    rollout_steps: int = 12
    """decisions (action chunks) per env and iteration"""
    total_timesteps: int = 1_000_000
    """env steps after which the run ends"""
    eval_freq: int = 8
    """iterations between evaluations; 0 evaluates only before and after training"""
    reconfiguration_freq: int | None = None
    """episodes after which all envs get other geometry, in tasks that draw it, and what still runs is truncated; None
    and 0 keep it, but None lets stock single envs follow the task"""
    save_freq: int = 16
    """iterations between resumable checkpoints; 0 saves only at the end"""


@dataclass(frozen=True)
class OffPolicyConfig:
    """Length and rhythm of an off-policy run; an iteration is one decision of every env and the updates after it."""

    num_envs: int = 32
    """envs that are simulated side by side"""
    total_timesteps: int = 1_000_000
    """env steps after which the run ends"""
    learning_starts: int = 1_000
    """decisions in the replay buffer before the first update"""
    updates_at_start: int = 0
    """gradient steps at once, before those of the first iteration that has any"""
    updates_per_step: int = 8
    """gradient steps per iteration"""
    batch_size: int = 256
    """rows per gradient step"""
    demo_share: float = 0.5
    """share of these rows that are demonstrations; 0 needs none"""
    replay_size: int = 200_000
    """decisions that are remembered; the newest take the place of the oldest"""
    replay_gb: float = 8.0
    """GB that they may take: with pictures fewer are remembered"""
    log_freq: int = 50
    """iterations between logged lines"""
    eval_freq: int = 250
    """iterations between evaluations; 0 evaluates only before and after training"""
    save_freq: int = 500
    """iterations between resumable checkpoints; 0 saves only at the end"""

    def __post_init__(self) -> None:
        if not 0 <= self.demo_share <= 1:
            raise UserError(f"--demo_share {self.demo_share} must be from 0 to 1")


@dataclass(frozen=True)
class WithoutDemos(OffPolicyConfig):
    """The rhythm of an algorithm that learns from what it does itself."""

    demo_share: float = 0.0


@dataclass(frozen=True)
class OGPOLoop(OffPolicyConfig):
    """The rhythm of OGPO: more envs, Qs that have learnt before the actor does."""

    num_envs: int = 64
    learning_starts: int = 3_000
    updates_at_start: int = 1_500
    updates_per_step: int = 16


@dataclass(frozen=True)
class WholeEpisodes(OnPolicyConfig):
    """The rhythm of an algorithm whose rollouts are one episode of every env, however long."""

    rollout_steps: int = 1_000


@dataclass(frozen=True)
class EvalConfig:
    """How a policy is evaluated."""

    num_eval_envs: int = 100
    """envs that run side by side"""
    num_eval_episodes: int = 100
    """whole episodes per evaluation"""
    eval_seed: int = 10_000
    """seed of the first episode, the next ones count up; kept apart from the seeds of demonstrations and training"""
    eval_reconfiguration_freq: int | None = None
    """episodes of an env after which it gets other geometry, in tasks that draw it; None is 1: one for each episode"""

    @property
    def envs(self) -> int:
        """No more envs than episodes."""
        return min(self.num_eval_envs, self.num_eval_episodes)

    @property
    def builds(self) -> Builds:
        """Geometry of the envs where it is not drawn for each episode."""
        return Builds(self.eval_seed)

    @property
    def settings(self) -> dict[str, int]:
        """Arguments of `evaluate`."""
        every = self.eval_reconfiguration_freq
        return {
            "episodes": self.num_eval_episodes,
            "seed": self.eval_seed,
            "rebuild_every": 1 if every is None else every,
        }
