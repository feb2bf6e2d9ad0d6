"""One offline run, as Stages 1 and 2 share it:
evaluate the average policy, keep the best, save what `--resume` needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from reinflow import distributed
from reinflow.algos.bc import BehaviorCloning
from reinflow.checkpoint import Checkpoint
from reinflow.data.chunks import Batch
from reinflow.evaluation import EvalConfig
from reinflow.keeper import Keeper, fitting
from reinflow.loops import Diverged, Metrics, OfflineConfig, OfflineState, offline
from reinflow.policies.flow import FlowPolicy
from reinflow.policies.spread import action_spread
from reinflow.run import Run
from reinflow.types import ChunkEnv, Objective
from reinflow.videos import Camera


class OfflineRun:
    """Trains `learner` on batches of `draw(batch_size, generator)`; its moving average is evaluated and kept."""

    def __init__(
        self,
        learner: BehaviorCloning,
        draw: Callable[[int, torch.Generator], Any],
        run: Run,
        env: ChunkEnv,
        config: OfflineConfig,
        evaluation: EvalConfig,
        *,
        overview: Batch | None = None,
        evaluate_first: bool,
        objective: Objective | None = None,
        critic_state: Callable[[], dict[str, torch.Tensor]] | None = None,
        camera: Camera | None = None,
    ):
        """`overview` are windows of the demonstrations at which the trained policy's spread over x_0 is measured.

        `evaluate_first` makes the policy that it starts from the first candidate for `best_model.pt`.
        `critic_state` gives the critic that goes with the best policy in the end, one of `objective`.
        """
        self.learner = learner
        self.draw = draw
        self.run = run
        self.env = env
        self.config = config
        self.objective = objective
        self.overview = overview
        self.critic_state = critic_state
        self.state = OfflineState(evaluated=not evaluate_first)
        self.batch_size = distributed.share(config.batch_size, "batch_size")
        self.generator = torch.Generator(run.device).manual_seed(run.config.seed)
        self.keeper = Keeper(self, env, evaluation, camera)

    def train(self) -> None:
        """To the end, from the start or from the state that the run resumes; goes back once where it diverges."""
        policy = self.learner.ema.module
        if warning := policy.steps_warning(policy.spec.num_inference_steps):
            self.run.alarm(warning)
        with self.keeper.saving_when_interrupted(lambda: self.state.count):
            if self.run.resumed:
                self._go_back(self.keeper.restore())
            else:
                distributed.broadcast_(self.learner.state_dict())
            while True:
                try:
                    self._go_on()
                    break
                except Diverged as problem:
                    self._go_back(self.keeper.roll_back(problem))
        if self.critic_state:
            self.keeper.hand_over(self.critic_state())

    def snapshot(self) -> Checkpoint:
        averaged = self.learner.ema.module
        return Checkpoint(
            policy_spec=averaged.spec,
            env_spec=self.env.spec,
            policy_state=averaged.state_dict(),
            critic_state=self.critic_state() if self.critic_state else None,
            objective=self.objective,
        )

    def training(self) -> dict[str, Any]:
        """What a resume needs beside the snapshot."""
        return {"learner": self.learner.state_dict(), "counters": asdict(self.state)}

    def _go_on(self) -> None:
        self.run.status(phase="offline")
        offline(
            self.learner,
            lambda: self.draw(self.batch_size, self.generator),
            self.config,
            self.run,
            state=self.state,
            on_eval=self._evaluate,
            on_save=self.keeper.save,
        )

    def _evaluate(self, count: int) -> Metrics:
        policy = self.learner.ema.module
        metrics = self.keeper.evaluate(policy, count)
        over = metrics and count >= self.config.total_iters
        if self.overview is None or not over or not isinstance(policy, FlowPolicy):
            return metrics
        spread = action_spread(policy, self.overview.obs, self.overview.chunk)
        if sentence := spread.warning(policy.spec.initial_noise_scale):
            self.run.alarm(sentence)
        return metrics | spread.metrics()

    def _go_back(self, training: dict[str, Any]) -> None:
        with fitting(self.run.dir):
            self.learner.load_state_dict(training["learner"])
            self.state = OfflineState(**training["counters"])
