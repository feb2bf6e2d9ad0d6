"""The training loops of the project: `offline` over batches and `on_policy` over rollouts.

Both leave evaluations and checkpoints to the callbacks they are given, call them between iterations only, and let
`interrupts.check` end them between minibatches, decisions and evaluation steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from reinflow import distributed, interrupts
from reinflow.algos.guard import MOST_IN_A_ROW
from reinflow.types import ChunkEnv, ChunkStep, Obs

if TYPE_CHECKING:
    from reinflow.agent import ReinFlowAgent
    from reinflow.algos.ppo import PPO
    from reinflow.algos.rollout import RolloutBuffer
    from reinflow.run import Run

Metrics = dict[str, Any]


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


class OfflineAlgorithm(Protocol):
    """What `offline` needs: one gradient step that returns tensors (nothing is moved to the host here)."""

    def update(self, batch: Any) -> dict[str, Tensor]: ...


class Diverged(RuntimeError):
    """Training went wrong in a way that going on won't mend; `advice` is for the user."""

    def __init__(self, problem: str, advice: str):
        super().__init__(problem)
        self.advice = advice


def refuse_to_diverge(values: dict[str, float]) -> None:
    """Raise Diverged where logged numbers say that updates stopped being updates."""
    row = max((value for name, value in values.items() if name.endswith("skipped_in_a_row")), default=0.0)
    if row >= MOST_IN_A_ROW:
        raise Diverged(
            f"{row:.0f} updates in a row had a loss or gradient that is not finite",
            "lower the learning rates, or look for extreme values in the data with docs/metrics.md",
        )


def is_due(count: int, every: int, last: bool) -> bool:
    """Whether something that happens each `every` counts happens now; 0 means only at the last count."""
    return last or (every > 0 and count % every == 0)


@dataclass
class OfflineState:
    """Counters of an offline run; they travel with its checkpoints."""

    count: int = 0
    evaluated: bool = False
    """whether the evaluation that may be due at `count` is over"""


def offline(
    algorithm: OfflineAlgorithm,
    draw: Callable[[], Any],
    config: OfflineConfig,
    run: Run,
    *,
    state: OfflineState,
    on_eval: Callable[[int], Metrics],
    on_save: Callable[[int], None],
) -> None:
    """`config.total_iters` gradient iterations of `algorithm` over drawn batches, going on from `state`.

    Raises Diverged, or Interrupted with `state` at a moment from which a resume goes on.
    """
    clock, since = time.perf_counter(), state.count
    unsaved = state.count == 0
    while True:
        last = state.count >= config.total_iters
        if not state.evaluated and is_due(state.count, config.eval_freq, last or state.count == 0):
            run.log(on_eval(state.count), step=state.count)
            state.evaluated = unsaved = True
            clock, since = time.perf_counter(), state.count
        if unsaved and is_due(state.count, config.save_freq, last):
            on_save(state.count)
        if last:
            return
        interrupts.check()
        metrics = algorithm.update(draw())
        state.count += 1
        state.evaluated, unsaved = False, True
        if is_due(state.count, config.log_freq, state.count >= config.total_iters):
            speed = (state.count - since) / (time.perf_counter() - clock)
            metrics = distributed.averaged(metrics)
            values = run.log({**metrics, "charts/SPS": speed}, step=state.count)
            run.progress(state.count, loss=metrics["losses/total"])
            for sentence in offline_worries(values):
                run.alarm(sentence)
            refuse_to_diverge(values)
            clock, since = time.perf_counter(), state.count


@dataclass
class RolloutStats:
    """What happened to the episodes that ended while a rollout was collected; tensors until they are logged."""

    env_steps: Tensor | int = 0
    episodes: Tensor | int = 0
    broken: Tensor | int = 0
    """decisions that are left out because an observation, reward, action or value was not usable"""
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, step: ChunkStep) -> None:
        self.env_steps = self.env_steps + step.executed.sum()
        ended = step.ended
        self.episodes = self.episodes + ended.sum()
        for name, value in vars(step.episode).items():
            total = (value.float() * ended).sum()
            self.sums[name] = self.sums.get(name, 0) + total

    def of_all_processes(self) -> RolloutStats:
        if not distributed.active():
            return self
        own = [self.env_steps, self.episodes, self.broken, *self.sums.values()]
        numbers = torch.stack([torch.as_tensor(value).double().cpu() for value in own])
        steps, episodes, broken, *sums = distributed.total(numbers)
        return RolloutStats(steps, episodes, broken, dict(zip(self.sums, sums, strict=True)))

    def metrics(self) -> Metrics:
        """Means over the ended episodes; success while exploring, not the evaluated success."""
        if int(self.episodes) == 0:
            return {"rollout/broken": self.broken}
        means = {f"rollout/{name.rstrip('_')}": total / self.episodes for name, total in self.sums.items()}
        return means | {"rollout/broken": self.broken}


@torch.no_grad()
def collect(
    agent: ReinFlowAgent, env: ChunkEnv, obs: Obs, buffer: RolloutBuffer, generator: torch.Generator
) -> tuple[Obs, RolloutStats]:
    """Fill `buffer` with decisions of the noisy policy, continuing from `obs`, and compute its advantages."""
    buffer.reset()
    stats = RolloutStats()
    while not buffer.full:
        interrupts.check()
        view = agent.view(agent.augmented(obs, generator))
        chain = agent.get_action(view.cond, generator=generator)
        value = agent.get_value(view.critic)
        step = env.step_chunk(agent.to_action(chain.chunk))
        buffer.add(
            obs=view.stored,
            critic_obs=view.critic_obs,
            actions=chain.states,
            reward=step.reward,
            value=value,
            log_prob=chain.log_prob,
            done=step.ended,
            valid=~step.broken,
            executed=step.executed,
            terminated=step.terminated,
            final_value=final_value(agent, step),
            means=chain.means,
            stds=chain.stds,
        )
        stats.add(step)
        obs = step.obs
    last_value = agent.get_value(agent.view(obs).critic)
    factor = agent.critic.follow_(*buffer.sizes())
    buffer.scale_values_(factor)
    buffer.compute_returns_and_advantages(last_value=last_value * factor)
    stats.broken = (buffer.data["valid"] == 0).sum()
    return obs, stats


def final_value(agent: ReinFlowAgent, step: ChunkStep) -> Tensor:
    """V of the last observations, which counts where an episode ended.

    Encoding pictures costs more than looking whether one did; encoding states costs less than waiting for a GPU.
    """
    if agent.policy.spec.image is not None and not step.ended.any():
        return torch.zeros_like(step.reward)
    return agent.get_value(agent.view(step.final_obs).critic)


@dataclass
class OnPolicyState:
    """Counters of an online run; they travel with its checkpoints."""

    env_steps: int = 0
    iteration: int = 0
    policy_updates: int = 0
    """iterations that trained the policy; the others trained the critic alone"""
    evaluated: bool = False
    """whether the evaluation that may be due at `iteration` is over"""


def left_out(values: dict[str, float]) -> list[str]:
    """Sentences where guards kept something out of training."""
    found = []
    if values.get("rollout/broken", 0.0) > 0:
        found.append(
            "some decisions were left out: an observation, reward, action or value was not usable, or a worker died"
        )
    if any(value > 0 for name, value in values.items() if name.endswith("skipped_steps")):
        found.append("some updates were skipped: their loss or gradient was not finite")
    return found


def offline_worries(values: dict[str, float]) -> list[str]:
    """What is wrong with an offline iteration, from its logged numbers."""
    found = left_out(values)
    if values.get("losses/weights_clipped", 0.0) > 0.5:
        found.append("more than half of the advantage weights were clipped, so they are equal: lower --beta")
    return found


def worries(values: dict[str, float]) -> list[str]:
    """What is wrong with an iteration, from its logged numbers; docs/metrics.md tells the limits and the causes."""
    found = left_out(values)
    if values.get("losses/ratio_deviation", 0.0) > 1e-3:
        found.append("the ratio of the first minibatch is not 1: sampling and scoring disagree, which is a bug")
    if values.get("losses/final_kl", 0.0) > 5.0:
        found.append("an update moved the policy by more than 5 nats: lower --lr or set --target_kl")
    if values.get("losses/clip_fraction", 0.0) > 0.6:
        found.append("more than 60 % of the ratios were clipped: lower --lr or --ppo_epochs")
    if values["charts/critic_warmup"] == 0.0 and values.get("losses/explained_variance", 1.0) < 0.0:
        found.append(
            "the critic explains nothing of the returns: raise --critic_warmup_steps or --lr_critic, "
            "or use the --gamma of Stage 2"
        )
    return found


def on_policy(
    agent: ReinFlowAgent,
    learner: PPO,
    env: ChunkEnv,
    obs: Obs,
    buffer: RolloutBuffer,
    config: OnPolicyConfig,
    run: Run,
    *,
    state: OnPolicyState,
    generator: torch.Generator,
    on_eval: Callable[[OnPolicyState], Metrics],
    on_mark: Callable[[OnPolicyState], None],
    on_save: Callable[[OnPolicyState], None],
) -> None:
    """Rollout, update, evaluate until `total_timesteps` env steps, going on from `state` and `obs`.

    `on_mark` is called at every moment that a resume can go on from. Raises Diverged, or Interrupted anywhere between
    two marks.
    """
    unsaved = state.iteration == 0
    while True:
        last = state.env_steps >= config.total_timesteps
        on_mark(state)
        if not state.evaluated and is_due(state.iteration, config.eval_freq, last or state.iteration == 0):
            run.log(on_eval(state), step=state.env_steps)
            state.evaluated = unsaved = True
            on_mark(state)
        if unsaved and is_due(state.iteration, config.save_freq, last):
            on_save(state)
        if state.iteration:
            run.progress(state.env_steps)
        if last:
            return
        obs = iterate(agent, learner, env, obs, buffer, run, state, generator)
        state.evaluated, unsaved = False, True


def iterate(
    agent: ReinFlowAgent,
    learner: PPO,
    env: ChunkEnv,
    obs: Obs,
    buffer: RolloutBuffer,
    run: Run,
    state: OnPolicyState,
    generator: torch.Generator,
) -> Obs:
    """One rollout and one update; critic warm-up covers whole iterations.

    The noise bounds change only between iterations, so the chain is scored with the bounds it was sampled with.
    """
    began = time.perf_counter()
    agent.update_noise_schedule(step=state.env_steps)
    critic_only = agent.is_in_critic_warmup()
    obs, stats = collect(agent, env, obs, buffer, generator)
    stats = stats.of_all_processes()
    if int(stats.broken) == buffer.buffer_size * distributed.world_size():
        raise Diverged(
            "no decision of an iteration was usable",
            "lower the learning rates, and look at the env's observations and rewards",
        )
    collected = time.perf_counter()
    metrics = distributed.averaged(learner.update(buffer, generator, critic_only=critic_only))
    updated = time.perf_counter()
    steps = int(stats.env_steps)
    state.env_steps += steps
    state.iteration += 1
    state.policy_updates += not critic_only
    values = run.log(
        {
            **{f"losses/{name}": value for name, value in metrics.items()},
            **stats.metrics(),
            "charts/SPS": steps / (updated - began),
            "charts/iteration": state.iteration,
            "charts/critic_warmup": float(critic_only),
            "time/rollout": collected - began,
            "time/update": updated - collected,
        },
        step=state.env_steps,
    )
    for sentence in worries(values):
        run.alarm(sentence)
    run.status(
        phase="warmup" if critic_only else "ppo",
        kl=values.get("losses/final_kl"),
        clip_fraction=values.get("losses/clip_fraction"),
    )
    refuse_to_diverge(values)
    return obs
