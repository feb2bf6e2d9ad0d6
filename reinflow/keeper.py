"""Evaluates a policy while it trains and keeps what is worth keeping: `best_model.pt` and resumable checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from reinflow import distributed
from reinflow.checkpoint import (
    Checkpoint,
    latest_training,
    load_checkpoint,
    rng_state,
    save_checkpoint,
    save_training,
    set_rng_state,
)
from reinflow.evaluation import EvalConfig, evaluate
from reinflow.policies.base import Policy
from reinflow.run import Run
from reinflow.types import ChunkEnv
from reinflow.videos import Camera, write_film


class Keeper:
    """One per run; `snapshot` builds the checkpoint of the moment."""

    def __init__(
        self,
        run: Run,
        env: ChunkEnv,
        config: EvalConfig,
        generator: torch.Generator,
        snapshot: Callable[[], Checkpoint],
        camera: Camera | None = None,
    ):
        """`camera` films every evaluation."""
        self.run = run
        self.env = env
        self.config = config
        self.generator = generator
        self.snapshot = snapshot
        self.camera = camera
        self.best: tuple[float, float] | None = None
        """(success_once, success_at_end) of best_model.pt"""
        self.first = math.nan
        """success_once of the first evaluation, which in Stages 2 and 3 is the pretrained policy's"""

    def evaluate(self, policy: Policy, step: int) -> dict[str, Any]:
        """Metrics of whole episodes; a new best is written to `best_model.pt`. The first process does both."""
        if not distributed.leads():
            return {}
        started = time.perf_counter()
        result = evaluate(policy, self.env, episodes=self.config.num_eval_episodes, seed=self.config.eval_seed)
        metrics = result.metrics()
        score = (metrics["eval/success_once"], metrics["eval/success_at_end"])
        if math.isnan(self.first):
            self.first = score[0]
        if self.best is None or score > self.best:
            self.best = score
            checkpoint = self.snapshot()
            checkpoint.meta |= {"step": step, "metrics": metrics}
            save_checkpoint(self.run.dir / "best_model.pt", checkpoint)
        if self.camera is not None:
            write_film(self.run.dir / "videos" / f"eval_{step:09d}.mp4", self.camera.film(policy))
        self.run.status(success=score[0], best_success=self.best[0])
        return {**metrics, "eval/best_success_once": self.best[0], "time/eval": time.perf_counter() - started}

    def hand_over(self, critic_state: dict[str, Tensor]) -> None:
        """Give the best policy this critic: one that trained on beside it while the policy was not surpassed."""
        if not distributed.leads():
            return
        path = self.run.dir / "best_model.pt"
        save_checkpoint(path, replace(load_checkpoint(path), critic_state=critic_state))

    def save(self, step: int, training: dict[str, Any]) -> None:
        """Write a resumable checkpoint: the snapshot, `training`, and every random state of every process."""
        randomness = distributed.gathered({"rng": rng_state(), "generator": self.generator.get_state()})
        if not distributed.leads():
            return
        checkpoint = self.snapshot()
        checkpoint.training = training | {
            "step": step,
            "best": list(self.best) if self.best else None,
            "first": self.first,
            "randomness": randomness,
        }
        save_training(self.run.dir, step, checkpoint)

    def restore(self) -> dict[str, Any]:
        """What `save` was given (with its `step`), after the best score and the random states are back in place."""
        training = latest_training(self.run.dir, self.run.device).training or {}
        self.best = tuple(training["best"]) if training["best"] else None
        self.first = training["first"]
        saved = training["randomness"]
        if len(saved) == distributed.world_size():
            own = saved[distributed.rank()]
            set_rng_state(own["rng"])
            self.generator.set_state(own["generator"].cpu())
        else:
            self.run.alarm(f"saved by {len(saved)} processes, so random states start anew: not the same run bit by bit")
        self.run.rewind(training["step"])
        return training
