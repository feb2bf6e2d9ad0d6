"""Loops: over batches, over rollouts, and what they share with the one over a replay buffer (`off_policy`).

A loop knows how one iteration goes and where it is; `reinflow.training.trainer` runs it, and `interrupts.check` may end
it between minibatches, decisions and evaluation steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch

from reinflow.runtime import distributed, interrupts
from reinflow.runtime.rng import Stream, derived_seed
from reinflow.training.config import OfflineConfig, OnPolicyConfig
from reinflow.training.health import Diverged, left_out, refuse_to_diverge
from reinflow.training.learner import BatchLearner, Learner, Metrics, OnPolicyLearner
from reinflow.training.rollouts import collect
from reinflow.types import ChunkEnv, Obs

if TYPE_CHECKING:
    from reinflow.run.run import Run
    from reinflow.training.validation import Validation


def half_a_batch(config: OfflineConfig) -> list[str]:
    """What makes an offline run smaller on a GPU, by how much."""
    return [f"--batch_size {max(config.batch_size // 2, 1)} halves what a gradient step holds"]


class Rhythm(Protocol):
    """How often a run is evaluated and saved, in iterations."""

    @property
    def eval_freq(self) -> int:
        """Iterations between evaluations; 0 has none between the first and the last."""
        ...

    @property
    def save_freq(self) -> int:
        """Iterations between resumable checkpoints; 0 saves only at the end."""
        ...


class Counters(Protocol):
    """Where a loop is; it travels with its checkpoints."""

    evaluated: bool
    """whether the evaluation that may be due now is over"""


class Loop(Protocol):
    """What a trainer runs."""

    run: Run
    generator: torch.Generator
    interruptible: bool
    """whether an iteration may end in its middle, so that a resume goes back to its start"""

    @property
    def learner(self) -> Learner:
        """What it trains; a trainer evaluates and saves it."""
        ...

    @property
    def config(self) -> Rhythm:
        """How often it is evaluated and saved."""
        ...

    @property
    def state(self) -> Counters:
        """Where it is; the trainer notes in it what was evaluated."""
        ...

    @property
    def count(self) -> int:
        """Iterations so far."""
        ...

    @property
    def step(self) -> int:
        """Where metrics are logged: gradient iterations, or env steps."""
        ...

    @property
    def over(self) -> bool:
        """Whether the run has its whole length."""
        ...

    def begin(self) -> None:
        """Get ready to iterate, from wherever the loop is."""
        ...

    def iterate(self) -> None:
        """One iteration. Raises Diverged, or Interrupted."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that a resume needs beside the learner."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        ...

    def roll_back(self, state: dict[str, Any]) -> None:
        """Go back to a `state_dict` of this very run, with new episodes."""
        ...


def is_due(count: int, every: int, last: bool) -> bool:
    """Whether something that happens each `every` counts happens now; 0 means only at the last count."""
    return last or (every > 0 and count % every == 0)


@dataclass
class OfflineState:
    """Counters of an offline run."""

    count: int = 0
    evaluated: bool = False
    lowest: float | None = None
    """validation loss so far"""
    stale: int = 0
    """evaluations since then"""
    stopped: bool = False
    """whether the validation loss ended the run"""


class Offline:
    """`config.total_iters` gradient iterations over batches of `draw(batch_size, generator)`."""

    interruptible = False

    def __init__(
        self,
        learner: BatchLearner,
        draw: Callable[[int, torch.Generator], Any],
        config: OfflineConfig,
        run: Run,
        generator: torch.Generator,
        state: OfflineState | None = None,
        validation: Validation | None = None,
    ):
        self.learner = learner
        self.validation = validation
        self.draw = draw
        self.config = config
        self.run = run
        self.generator = generator
        self.state = state or OfflineState()
        self.batch_size = distributed.share(config.batch_size, "batch_size")
        self.speed = Speed()

    @property
    def count(self) -> int:
        """Gradient iterations so far, by which metrics are logged too."""
        return self.state.count

    step = count

    @property
    def over(self) -> bool:
        """Whether all `total_iters` gradient iterations are done, or the validation loss said to stop."""
        return self.count >= self.config.total_iters or self.state.stopped

    def begin(self) -> None:
        """Tell the monitor the phase; batches need nothing to start from."""
        self.run.status(phase="offline")

    def iterate(self) -> None:
        """One gradient step on a drawn batch. Raises Interrupted, or Diverged where it logs."""
        interrupts.check()
        began = time.perf_counter()
        metrics = self.learner.update(self.draw(self.batch_size, self.generator))
        self.state.count += 1
        self.speed.add(1, since=began)
        if is_due(self.count, self.config.log_freq, self.over):
            metrics = {**distributed.averaged(metrics), "charts/SPS": self.speed.read()}
            values = logged(self, metrics)
            self.run.progress(self.step, **loss_in(values))
            refuse_to_diverge(values)
        if self.validation and is_due(self.count, self.config.eval_freq, self.over):
            self._validate(self.validation)

    def _validate(self, validation: Validation) -> None:
        """Log the loss on held-out episodes, and stop where it has not fallen for long enough."""
        loss = distributed.averaged({"loss": torch.tensor(validation.loss(self.learner))})["loss"].item()
        self.run.log({"losses/validation": loss}, step=self.step)
        state = self.state
        if state.lowest is None or loss < state.lowest:
            state.lowest, state.stale = loss, 0
            return
        state.stale += 1
        if validation.patience and state.stale >= validation.patience and not self.over:
            state.stopped = True
            self.run.say(
                f"stops at iteration {self.count}: the validation loss was lowest {state.stale} evaluations ago"
            )

    def state_dict(self) -> dict[str, Any]:
        """The counters; the generator that draws batches is saved with the run's other randomness."""
        return {"counters": asdict(self.state)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over the counters, which is also how it is rolled back."""
        self.state = OfflineState(**state["counters"])

    roll_back = restore


@dataclass
class OnPolicyState:
    """Counters of an online run."""

    env_steps: int = 0
    iteration: int = 0
    policy_updates: int = 0
    """iterations that trained the policy; the others trained the critic alone"""
    evaluated: bool = False


ADDED_LATER = {"policy_updates": 1}
"""counters that older states lack; their runs took every policy for a moved one"""


class OnlineRhythm(Rhythm, Protocol):
    """Of a run that acts in envs."""

    @property
    def total_timesteps(self) -> int:
        """Env steps after which the run ends."""
        ...


class OnlineCounters(Counters, Protocol):
    """Where a run that acts in envs is."""

    env_steps: int
    iteration: int


class Online:
    """What the loops share that act in envs: where they are, new episodes, and going on in the old ones."""

    warm_up: ClassVar[str]
    """what the env steps are called before the policy learns"""
    warm_up_flag: ClassVar[str]
    """the flag that says how many they are"""
    learner: Learner
    config: OnlineRhythm
    state: OnlineCounters

    def __init__(self, env: ChunkEnv, run: Run, generator: torch.Generator):
        self.env = env
        self.run = run
        self.generator = generator
        self.obs: Obs | None = None
        """what the policy sees next; None where new episodes have to start"""

    @property
    def count(self) -> int:
        """Iterations so far: rollouts with their update, or decisions of every env."""
        return self.state.iteration

    @property
    def step(self) -> int:
        """Env steps so far, of all envs in all processes."""
        return self.state.env_steps

    @property
    def over(self) -> bool:
        """Whether `total_timesteps` env steps are reached."""
        return self.step >= self.config.total_timesteps

    @property
    def policy_updates(self) -> int:
        """How often the policy was trained."""
        raise NotImplementedError

    def begin(self) -> None:
        """Start new episodes, unless the envs were brought back to where they were."""
        self.obs = started(self.env, self.obs, self.run, self.count)

    def restore(self, state: dict[str, Any]) -> None:
        """Take over everything, the envs included; new episodes where these can't be brought back."""
        self.roll_back(state)
        self.obs = continued(self.env, state["env"], self.run)

    def roll_back(self, state: dict[str, Any]) -> None:
        """Take over all but the envs: `begin` then starts new episodes."""
        raise NotImplementedError


class OnPolicy(Online):
    """Rollout and update, until `config.total_timesteps` env steps."""

    interruptible = True
    warm_up, warm_up_flag = "critic warm-up", "critic_warmup_steps"

    def __init__(
        self, learner: OnPolicyLearner, env: ChunkEnv, config: OnPolicyConfig, run: Run, generator: torch.Generator
    ):
        super().__init__(env, run, generator)
        self.learner: OnPolicyLearner = learner
        self.config: OnPolicyConfig = config
        self.state: OnPolicyState = OnPolicyState()

    @property
    def policy_updates(self) -> int:
        """Iterations that trained the policy."""
        return self.state.policy_updates

    def iterate(self) -> None:
        """One rollout and one update."""
        assert self.obs is not None, "begin() comes first"
        began = time.perf_counter()
        trains_policy = self.learner.begin(self.step)
        if self.learner.group:
            self.obs = self.env.reset(seed=self._group_seeds())
        self.obs, stats = collect(self.learner, self.env, self.obs, self.generator)
        stats = stats.of_all_processes()
        if int(stats.broken) >= stats.decisions:
            raise Diverged(
                "no decision of an iteration was usable",
                "lower the learning rates, and look at the env's observations and rewards",
            )
        collected = time.perf_counter()
        metrics = distributed.averaged(self.learner.update(self.generator))
        updated = time.perf_counter()
        steps = int(stats.env_steps)
        self.state.env_steps += steps
        self.state.iteration += 1
        self.state.policy_updates += trains_policy
        values = logged(
            self,
            {
                **metrics,
                **stats.metrics(),
                "charts/SPS": steps / (updated - began),
                "charts/iteration": self.count,
                "charts/critic_warmup": float(not trains_policy),
                "time/rollout": collected - began,
                "time/update": updated - collected,
            },
        )
        self.run.status(**self.learner.status(values))
        refuse_to_diverge(values)
        self.run.progress(self.step)

    def _group_seeds(self) -> list[int]:
        """A seed per env, the same one within a group, and other ones in every iteration and process."""
        envs, group = self.env.num_envs, self.learner.group
        places = [distributed.rank() * envs + env // group for env in range(envs)]
        return [derived_seed(self.run.config.seed, Stream.GROUP, self.count, place) for place in places]

    def state_dict(self) -> dict[str, Any]:
        """The counters, and where the envs are, between two rollouts."""
        return {"counters": asdict(self.state), "env": where(self.env)}

    def roll_back(self, state: dict[str, Any]) -> None:
        """Take over the counters alone: `begin` then starts new episodes."""
        self.state = OnPolicyState(**ADDED_LATER | state["counters"])
        self.obs = None


class Speed:
    """How many of something happen per second, evaluations and checkpoints left out."""

    def __init__(self) -> None:
        self.amount, self.seconds = 0, 0.0

    def add(self, amount: int, since: float) -> None:
        """Count what began at the time `since` and is over."""
        self.amount += amount
        self.seconds += time.perf_counter() - since

    def read(self) -> float:
        """Per second since the last `read`."""
        speed = self.amount / self.seconds
        self.amount, self.seconds = 0, 0.0
        return speed


def logged(loop: Loop, metrics: Metrics) -> dict[str, float]:
    """Log an iteration, raise alarms on what its numbers say, and give them on the host."""
    values = loop.run.log(metrics, step=loop.step)
    for sentence in (*left_out(values), *loop.learner.worries(values)):
        loop.run.alarm(sentence)
    return values


def loss_in(values: dict[str, float]) -> dict[str, float]:
    """What the progress line shows of logged numbers, where a learner has one loss."""
    return {"loss": values["losses/total"]} if "losses/total" in values else {}


def where(env: ChunkEnv) -> Any:
    """Where the envs are; those of several processes start new episodes."""
    return None if distributed.active() else env.state()


def started(env: ChunkEnv, obs: Obs | None, run: Run, iteration: int) -> Obs:
    """What the envs show; where they have to start, other episodes after every iteration."""
    return env.reset(seed=run.config.seed + iteration) if obs is None else obs


def continued(env: ChunkEnv, state: Any, run: Run) -> Obs | None:
    """Bring the envs to where they were; None, with an alarm, where that can't be and new episodes have to start.

    The envs of several processes always start new ones.
    """
    obs = None if state is None or distributed.active() else env.restore(state)
    if obs is None:
        run.alarm("the envs could not go on where they were: new episodes started")
    return obs
