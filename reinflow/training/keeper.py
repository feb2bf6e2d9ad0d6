"""Evaluates a policy while it trains and keeps what is worth keeping: `best_model.safetensors` and resumable states."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from reinflow.errors import UserError
from reinflow.policies.wrapped import Acting
from reinflow.run.compatibility import compared, refuse
from reinflow.run.run import Run
from reinflow.run.status import HEADLINES
from reinflow.runtime import distributed
from reinflow.runtime.interrupts import Interrupted, deferred
from reinflow.runtime.rng import rng_state, set_rng_state
from reinflow.runtime.trees import copied
from reinflow.storage.checkpoint import Checkpoint, load_checkpoint, rename_former_best, save_checkpoint
from reinflow.storage.names import BEST
from reinflow.storage.resumable import latest_training, save_training
from reinflow.training.config import EvalConfig
from reinflow.training.evaluation import evaluate
from reinflow.training.health import Diverged
from reinflow.training.ranking import Score, restored, score_of
from reinflow.training.videos import Camera, write_film
from reinflow.types import ChunkEnv, Headline

KEPT = "kept"
"""folder of a run with the policies of every `--keep_every`-th evaluation, a checkpoint for each"""
SEED_OF_A_SECOND_TRY = 7919
"""added to the seed after a rollback: the same random numbers would lead to the same place"""
DECIDED = frozenset({"max_denoising_steps", "step_size_mode", "still", "robot"})
"""what older states lack; flags, task and control mode decide it, and those are compared"""


class Trainer(Protocol):
    """What a keeper keeps the results of."""

    run: Run
    generator: torch.Generator

    def snapshot(self) -> Checkpoint:
        """The checkpoint of this moment."""
        ...

    def training(self) -> dict[str, Any]:
        """What a resume needs beside the snapshot."""
        ...


class Keeper:
    """One per run."""

    def __init__(
        self,
        trainer: Trainer,
        env: ChunkEnv,
        config: EvalConfig,
        camera: Camera | None = None,
        *,
        prefer_newer: bool = False,
    ):
        """`camera` films every evaluation.

        With `prefer_newer`, `best_model.safetensors` is the newest policy whose score is less than a standard error
        below the highest one: of noisy evaluations the highest is a lucky one, and a policy that trained on is mostly
        better.
        """
        self.trainer = trainer
        self.run = trainer.run
        self.generator = trainer.generator
        self.env = env
        self.config = config
        self.camera = camera
        self.prefer_newer = prefer_newer
        self.best: Score | None = None
        """the highest one"""
        self.first: Score | None = None
        """of the first evaluation, which in Stages 2 and 3 is the pretrained policy's"""
        self._mark: tuple[int, Checkpoint] | None = None
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._pending: tuple[int, Future[Path]] | None = None
        self._rolled_back = False

    def evaluate(self, policy: Acting, step: int, keep: bool = False) -> dict[str, Any]:
        """Metrics of whole episodes; a new best is written to `best_model.safetensors`. The first process does both.

        With `keep` the policy stays in `kept/` as well, however good it is.
        """
        if not distributed.leads():
            return {}
        started = time.perf_counter()
        result = evaluate(policy, self.env, **self.config.settings)
        metrics = result.metrics()
        score = self.score(metrics)
        if self.first is None:
            self.first = score
        best = self._worth_keeping(score)
        if best or keep:
            self._keep(step, metrics, score if best else None, keep)
        if self.camera is not None:
            path, film = self.run.dir / "videos" / f"eval_{step:09d}.mp4", self.camera.film(policy)
            self._written("a film", lambda: write_film(path, film))
        highest = (self.best or score).value
        self._show(metrics, highest)
        return {
            **metrics,
            f"eval/best_{self.headline}": highest,
            "time/eval": time.perf_counter() - started,
        }

    def _keep(self, step: int, metrics: dict[str, float], best: Score | None, keep: bool) -> None:
        """Write the policy of this moment, as the best one where it has such a score, and to `kept/` with `keep`."""
        checkpoint = self.trainer.snapshot()
        checkpoint.meta |= {"step": step, "metrics": metrics}
        if best and self._written(BEST, lambda: save_checkpoint(self.run.dir / BEST, checkpoint)):
            self.best = max(self.best or best, best)
        if keep:
            path = self.run.dir / KEPT / f"step_{step:012d}.safetensors"
            self._written(f"the policy of step {step}", lambda: save_checkpoint(path, checkpoint))

    @property
    def headline(self) -> Headline:
        """What the task's policies are ranked by."""
        return self.env.spec.headline

    def score(self, metrics: dict[str, float]) -> Score:
        """What an evaluation with these metrics is ranked by."""
        return score_of(metrics, self.headline, self.config.num_eval_episodes)

    def hand_over(self, parts: dict[str, dict[str, Tensor]]) -> None:
        """Give these critics to a best policy from before training, beside which none had learnt anything.

        Any other best policy keeps those of its own iteration.
        """
        if not distributed.leads() or self.best is None:
            return
        path = self.run.dir / BEST
        best = load_checkpoint(path)
        if best.meta["step"] == 0:
            self._written(BEST, lambda: save_checkpoint(path, replace(best, parts=parts)))

    def mark(self, step: int) -> None:
        """Remember this moment, in memory of the first process, as the one that an interruption goes back to."""
        randomness = distributed.gathered({"rng": rng_state(), "generator": self.generator.get_state()})
        if not distributed.leads():
            return
        now = self._now(step, randomness)
        parts = {name: copied(getattr(now, name)) for name in ("policy_state", "parts", "training")}
        self._mark = (step, replace(now, **parts))

    def save(self, step: int) -> None:
        """Mark this moment and write it as a resumable state."""
        self.mark(step)
        self.save_mark()

    def save_mark(self) -> None:
        """Write the mark as a resumable state, beside the training that goes on; only the first process has one."""
        self._settle()
        if self._mark is not None:
            step, checkpoint = self._mark
            self._pending = step, self._writer.submit(save_training, self.run.dir, step, checkpoint)

    def restore(self) -> dict[str, Any]:
        """What `training` gave for the newest state that verifies, after the best score and the random states are back.

        UserError where there is none, or with a table where its policy or task is another one.
        """
        training = self._load()
        with fitting(self.run.dir):
            self.best, self.first = (
                restored(training[name], self.config.num_eval_episodes) for name in ("best", "first")
            )
            self._continue_random_sequences(training["randomness"])
            self.run.rewind(training["step"])
        if distributed.leads():
            rename_former_best(self.run.dir)
        return training

    def _continue_random_sequences(self, saved: list[dict[str, Any]]) -> None:
        if len(saved) != distributed.world_size():
            self.run.alarm(f"saved by {len(saved)} processes, so random states start anew: not the same run bit by bit")
            return
        own = saved[distributed.rank()]
        set_rng_state(own["rng"])
        self.generator.set_state(own["generator"].cpu())

    def roll_back(self, problem: Diverged) -> dict[str, Any]:
        """As `restore`, with new random numbers and the best score as it is.

        A second time, or where there is no state yet, UserError tells the problem.
        """
        if self._rolled_back:
            raise UserError(f"{problem}, again after going back to a good checkpoint: {problem.advice}") from None
        try:
            training = self._load()
        except UserError:
            raise UserError(f"{problem}, before the first checkpoint: {problem.advice}") from None
        self._rolled_back = True
        self.run.alarm(f"{problem}: went back to step {training['step']}")
        seed = self.run.config.seed + SEED_OF_A_SECOND_TRY
        torch.manual_seed(seed)
        self.generator.manual_seed(seed)
        return training

    @contextmanager
    def saving_when_interrupted(self, step: Callable[[], int] | None = None) -> Iterator[None]:
        """Write a resumable state before a signal ends the run: the mark, or with `step` this moment.

        A signal ends several processes at once and without: they can't agree any more on a moment.
        """
        several = distributed.active()
        if several:
            self.run.say("a signal ends several processes without saving: the last checkpoint is what --resume takes")
        with nullcontext() if several else deferred():
            try:
                yield
            except Interrupted:
                if not several:
                    if step is not None:
                        self.mark(step())
                    self.save_mark()
                raise
            finally:
                self._settle()
                self._writer.shutdown()

    def _now(self, step: int, randomness: list[dict[str, Any]]) -> Checkpoint:
        """The snapshot with everything that a resume needs, random states of every process; its tensors are live."""
        checkpoint = self.trainer.snapshot()
        checkpoint.meta |= {"step": step}
        checkpoint.training = self.trainer.training() | {
            "step": step,
            "best": self.best.saved() if self.best else None,
            "first": self.first.saved() if self.first else None,
            "randomness": randomness,
        }
        return checkpoint

    def _load(self) -> dict[str, Any]:
        self._settle()
        distributed.meet()  # the first process has written what all of them read
        checkpoint = latest_training(self.run.dir, say=self.run.say)
        now = self.trainer.snapshot()
        differences = compared(checkpoint.policy_spec.to_dict(), now.policy_spec.to_dict(), "policy ", DECIDED)
        differences += compared(asdict(checkpoint.env_spec), asdict(now.env_spec), "task ", DECIDED)
        refuse(self.run.dir, differences, "it was started with another policy or task")
        return checkpoint.training or {}

    def _worth_keeping(self, score: Score) -> bool:
        return self.best is None or score > self.best or (self.prefer_newer and score.is_near(self.best))

    def _show(self, metrics: dict[str, float], best: float) -> None:
        """Tell the status."""
        shown = {short: metrics[f"eval/{name}"] for name, short in HEADLINES.items()}
        self.run.status(headline=self.headline, **shown, **{f"best_{HEADLINES[self.headline]}": best})

    def _settle(self) -> None:
        """Wait for the state that is being written."""
        if self._pending is not None:
            (step, future), self._pending = self._pending, None
            self._written(f"the checkpoint of step {step}", future.result)

    def _written(self, what: str, write: Callable[[], Any]) -> bool:
        """Training goes on when the disk refuses: what was written before is still there."""
        try:
            write()
        except OSError as error:
            self.run.write_failed(what, error)
            return False
        return True


@contextmanager
def fitting(run_dir: Path) -> Iterator[None]:
    """What torch and Python say of a state of other dimensions or another version, as one sentence."""
    try:
        yield
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"the checkpoint of {run_dir} is of another version or configuration ({type(error).__name__}: {reason}): "
            "resume it with the code that wrote it, or start it again with --overwrite"
        ) from None
