"""The loop over a replay buffer that fills as it goes, beside demonstrations."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from reinflow.algos.advantages import mean_value
from reinflow.data.chunks import TransitionBatch
from reinflow.data.replay import Mixture, ReplayBuffer
from reinflow.errors import UserError
from reinflow.runtime import distributed, interrupts
from reinflow.storage.journal import Journal
from reinflow.training.calibration import Calibration
from reinflow.training.config import OffPolicyConfig
from reinflow.training.health import refuse_to_diverge
from reinflow.training.learner import Metrics, OffPolicyLearner
from reinflow.training.loops import Online, Speed, is_due, logged, loss_in, where
from reinflow.training.rollouts import RolloutStats
from reinflow.types import ChunkEnv

if TYPE_CHECKING:
    from reinflow.run.run import Run


@dataclass
class OffPolicyState:
    """Counters of an off-policy run."""

    env_steps: int = 0
    iteration: int = 0
    updates: int = 0
    """gradient steps"""
    evaluated: bool = False


class OffPolicy(Online):
    """A decision of every env and some updates from what is remembered, until `config.total_timesteps` env steps."""

    interruptible = False
    warm_up, warm_up_flag = "before the first update", "learning_starts"

    def __init__(
        self,
        learner: OffPolicyLearner,
        env: ChunkEnv,
        replay: ReplayBuffer,
        config: OffPolicyConfig,
        run: Run,
        generator: torch.Generator,
        demos: Callable[[int, torch.Generator], TransitionBatch] | None = None,
    ):
        """`demos` draws transitions of demonstrations, which `config.demo_share` of every batch are.

        UserError where several processes share the run: each would need its own part of the replay buffer saved.
        """
        if distributed.active():
            raise UserError("an off-policy run has one process: start it without torchrun")
        super().__init__(env, run, generator)
        self.learner: OffPolicyLearner = learner
        self.config: OffPolicyConfig = config
        self.replay = replay
        self.source = Mixture(replay, demos, config.demo_share if demos else 0.0, learner.evaluated.spec.executed)
        self.journal = Journal(run.dir / "replay")
        self.state: OffPolicyState = OffPolicyState()
        self.stats = RolloutStats()
        """since the last logged line"""
        self.calibration = Calibration(replay.gamma)
        self.speed = Speed()

    @property
    def policy_updates(self) -> int:
        """Gradient steps."""
        return self.state.updates

    def begin(self) -> None:
        """Tell the monitor the phase; start new episodes, unless the envs were brought back to where they were."""
        self.run.status(phase="off_policy")
        super().begin()

    def iterate(self) -> None:
        """One decision of every env, and the updates after it."""
        interrupts.check()
        began = time.perf_counter()
        steps = self._act()
        metrics = self._learn()
        self.state.env_steps += steps
        self.state.iteration += 1
        self.speed.add(steps, since=began)
        if is_due(self.count, self.config.log_freq, self.over):
            more = {"charts/SPS": self.speed.read(), "charts/iteration": self.count, "charts/replay": len(self.replay)}
            values = logged(self, {**metrics, **self.calibration.read(), **self.stats.metrics(), **more})
            self.stats = RolloutStats()
            self.run.progress(self.step, **loss_in(values))
            refuse_to_diverge(values)

    @torch.no_grad()
    def _act(self) -> int:
        """Let every env go on by a decision; gives the env steps of all of them."""
        assert self.obs is not None, "begin() comes first"
        decision = self.learner.act(self.obs, self.generator)
        q = self.learner.judged(self.obs, decision.actions)
        outcome = self.env.step_chunk(decision.actions)
        chunk = decision.actions if decision.chunk is None else decision.chunk
        self.replay.add(self.obs, chunk, outcome)
        self.journal.offer(self.replay)
        final = self.learner.value(outcome.final_obs) if outcome.truncated.any() else 0.0
        self.calibration.add(q, outcome, final)
        self.stats.add(outcome)
        self.stats.broken = self.stats.broken + outcome.broken.sum()
        self.obs = outcome.obs
        return int(outcome.executed.sum())

    def _learn(self) -> Metrics:
        """Metrics of the last update; none before the first."""
        metrics: Metrics = {}
        if len(self.replay) < min(self.config.learning_starts, self.replay.capacity):
            return metrics
        first = 0
        if not self.state.updates:
            first = self.config.updates_at_start
            held = self.replay.rows(self.replay.count - len(self.replay), self.replay.count)
            self.learner.start_at_(mean_value(held["reward"], held["discount"], held["terminated"]))
        for _ in range(first + self.config.updates_per_step):
            metrics = self.learner.update(self.source.sample(self.config.batch_size, self.generator))
            self.state.updates += 1
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """The counters, where the envs are, statistics not yet logged, and of the replay what no file of it holds."""
        if error := self.journal.settle():
            self.run.write_failed("the replay buffer", error)
        return {
            "counters": asdict(self.state),
            "env": where(self.env),
            "replay": self.journal.state(self.replay),
            "stats": self.stats.state_dict(),
            "calibration": self.calibration.state_dict(),
        }

    def roll_back(self, state: dict[str, Any]) -> None:
        """Take over all but the envs: `begin` then starts new episodes."""
        self.state = OffPolicyState(**state["counters"])
        self.journal.restore(self.replay, state["replay"])
        self.stats = RolloutStats(**state["stats"])
        self.calibration = Calibration(**state["calibration"])
        self.calibration.restart()
        self.obs = None

    def restore(self, state: dict[str, Any]) -> None:
        """Take over everything, the envs and their unfinished episodes included, where these can be brought back."""
        super().restore(state)
        if self.obs is not None:
            self.calibration = Calibration(**state["calibration"])
