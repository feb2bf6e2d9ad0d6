"""The one trainer of all loops: starts, resumes and rolls back, evaluates and keeps, whatever is trained and how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reinflow.runtime import distributed
from reinflow.storage.checkpoint import Checkpoint
from reinflow.training.config import EvalConfig
from reinflow.training.health import Diverged
from reinflow.training.keeper import Keeper, fitting
from reinflow.training.learner import Metrics
from reinflow.training.loops import Loop, is_due
from reinflow.training.videos import Camera
from reinflow.types import ChunkEnv, Objective

Inspection = Callable[["Trainer", Metrics], Metrics]
"""Looks at an evaluation's metrics in the first process, may raise alarms, and gives more metrics."""


def no_inspection(trainer: Trainer, metrics: Metrics) -> Metrics:
    """Nothing to say."""
    return {}


class Trainer:
    """Runs `loop` to its end and evaluates its learner in `env`."""

    def __init__(
        self,
        loop: Loop,
        env: ChunkEnv,
        evaluation: EvalConfig,
        objective: Objective | None = None,
        *,
        camera: Camera | None = None,
        prefer_newer: bool = False,
        hand_over: bool = False,
        inspect: Inspection = no_inspection,
    ):
        """`objective` is what the learner's critics predict. `prefer_newer` is explained by `Keeper`.

        With `hand_over` the learner's last critics go with a best policy from before training, beside which none had
        learnt anything.
        """
        self.loop = loop
        self.run = loop.run
        self.generator = loop.generator
        self.env = env
        self.objective = objective
        self.hand_over = hand_over
        self.inspect = inspect
        self.keeper = Keeper(self, env, evaluation, camera, prefer_newer=prefer_newer)

    def train(self) -> None:
        """To the end, from the start or from the state that the run resumes; goes back once where it diverges."""
        learner, loop = self.loop.learner, self.loop
        policy = learner.evaluated
        if warning := policy.steps_warning(policy.spec.num_inference_steps):
            self.run.alarm(warning)
        with self.keeper.saving_when_interrupted(None if loop.interruptible else lambda: loop.step):
            if self.run.resumed:
                self._load(self.keeper.restore(), loop.restore)
            else:
                distributed.broadcast_(learner.state_dict())
            while True:
                try:
                    self._go_on()
                    break
                except Diverged as problem:
                    self._load(self.keeper.roll_back(problem), loop.roll_back)
        if self.hand_over:
            self.keeper.hand_over(learner.parts())

    def snapshot(self) -> Checkpoint:
        """The checkpoint of this moment, without what only a resume needs."""
        learner, evaluated = self.loop.learner, self.loop.learner.evaluated
        return Checkpoint(
            policy_spec=evaluated.spec,
            env_spec=self.env.spec,
            policy_state=evaluated.core.state_dict(),
            parts=learner.parts(),
            objective=self.objective,
            extra=dict(evaluated.extra),
        )

    def training(self) -> dict[str, Any]:
        """What a resume needs beside the snapshot."""
        return {"learner": self.loop.learner.state_dict(), **self.loop.state_dict()}

    def _go_on(self) -> None:
        """Iterate, evaluate and save in the loop's rhythm. Raises Diverged, or Interrupted."""
        loop, config = self.loop, self.loop.config
        loop.begin()
        unsaved = loop.count == 0
        while True:
            self._mark()
            if not loop.state.evaluated and is_due(loop.count, config.eval_freq, loop.over or loop.count == 0):
                self.run.log(self._evaluate(), step=loop.step)
                loop.state.evaluated = unsaved = True
                self._mark()
            if unsaved and is_due(loop.count, config.save_freq, loop.over):
                self._save()
            if loop.over:
                return
            loop.iterate()
            loop.state.evaluated, unsaved = False, True

    def _mark(self) -> None:
        """Remember where an iteration starts, if it may end in its middle."""
        if self.loop.interruptible:
            self.keeper.mark(self.loop.step)

    def _save(self) -> None:
        if not self.loop.interruptible:
            self.keeper.mark(self.loop.step)
        self.keeper.save_mark()

    def _evaluate(self) -> Metrics:
        loop, every = self.loop, self.run.config.keep_every
        keep = every > 0 and is_due(loop.count, every * loop.config.eval_freq, loop.over or loop.count == 0)
        metrics = self.keeper.evaluate(loop.learner.evaluated, loop.step, keep)
        return metrics | self.inspect(self, metrics) if metrics else metrics

    def _load(self, training: dict[str, Any], load_loop: Callable[[dict[str, Any]], None]) -> None:
        with fitting(self.run.dir):
            training = as_written_today(training)
            self.loop.learner.load_state_dict(training["learner"])
            load_loop(training)


def as_written_today(training: dict[str, Any]) -> dict[str, Any]:
    """States from before all loops had one trainer kept the agent beside its optimisers."""
    if "agent" not in training:
        return training
    return training | {"learner": {"agent": training["agent"], **training["learner"]}}
