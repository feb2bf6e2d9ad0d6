"""The training loops of the project: `offline` over batches and `on_policy` over rollouts.

Both stop only at iteration boundaries, evaluate before the first update, and leave checkpoints to the callbacks they
are given.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from reinflow import distributed
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
    rollout_steps: int = 48
    """decisions (action chunks) per env and iteration"""
    total_timesteps: int = 1_000_000
    """env steps after which the run ends"""
    eval_freq: int = 5
    """iterations between evaluations; 0 evaluates only before and after training"""
    save_freq: int = 10
    """iterations between resumable checkpoints; 0 saves only at the end"""


class OfflineAlgorithm(Protocol):
    """What `offline` needs: one gradient step that returns tensors (nothing is moved to the host here)."""

    def update(self, batch: Any) -> dict[str, Tensor]: ...


def is_due(count: int, every: int, last: bool) -> bool:
    """Whether something that happens each `every` counts happens now; 0 means only at the last count."""
    return last or (every > 0 and count % every == 0)


def offline(
    algorithm: OfflineAlgorithm,
    draw: Callable[[], Any],
    config: OfflineConfig,
    run: Run,
    *,
    start: int = 0,
    on_eval: Callable[[int], Metrics],
    on_save: Callable[[int], None],
) -> None:
    """`config.total_iters` gradient iterations of `algorithm` over drawn batches, from iteration `start`."""
    clock, since = time.perf_counter(), start
    for count in range(start + 1, config.total_iters + 1):
        metrics = algorithm.update(draw())
        last = count == config.total_iters
        if is_due(count, config.log_freq, last):
            speed = (count - since) / (time.perf_counter() - clock)
            metrics = distributed.averaged(metrics)
            run.log({**metrics, "charts/SPS": speed}, step=count)
            run.progress(count, loss=metrics["losses/total"])
            clock, since = time.perf_counter(), count
        if is_due(count, config.eval_freq, last):
            run.log(on_eval(count), step=count)
            clock, since = time.perf_counter(), count
        if is_due(count, config.save_freq, last):
            on_save(count)


@dataclass
class RolloutStats:
    """What happened to the episodes that ended while a rollout was collected; tensors until they are logged."""

    env_steps: Tensor | int = 0
    episodes: Tensor | int = 0
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
        own = [self.env_steps, self.episodes, *self.sums.values()]
        numbers = torch.stack([torch.as_tensor(value).double().cpu() for value in own])
        steps, episodes, *sums = distributed.total(numbers)
        return RolloutStats(steps, episodes, dict(zip(self.sums, sums, strict=True)))

    def metrics(self) -> Metrics:
        """Means over the ended episodes; success while exploring, not the evaluated success."""
        if int(self.episodes) == 0:
            return {}
        return {f"rollout/{name.rstrip('_')}": total / self.episodes for name, total in self.sums.items()}


@torch.no_grad()
def collect(
    agent: ReinFlowAgent, env: ChunkEnv, obs: Obs, buffer: RolloutBuffer, generator: torch.Generator
) -> tuple[Obs, RolloutStats]:
    """Fill `buffer` with decisions of the noisy policy, continuing from `obs`, and compute its advantages."""
    buffer.reset()
    stats = RolloutStats()
    while not buffer.full:
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
            executed=step.executed,
            terminated=step.terminated,
            final_value=final_value(agent, step),
            means=chain.means,
            stds=chain.stds,
        )
        stats.add(step)
        obs = step.obs
    buffer.compute_returns_and_advantages(last_value=agent.get_value(agent.view(obs).critic), last_done=step.ended)
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


def worries(values: dict[str, float]) -> list[str]:
    """What is wrong with an iteration, from its logged numbers; docs/metrics.md tells the limits and the causes."""
    found = []
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
    buffer: RolloutBuffer,
    config: OnPolicyConfig,
    run: Run,
    *,
    state: OnPolicyState,
    generator: torch.Generator,
    on_eval: Callable[[OnPolicyState], Metrics],
    on_save: Callable[[OnPolicyState], None],
) -> None:
    """Rollout, update, evaluate until `total_timesteps` env steps; critic warm-up covers whole iterations.

    The noise bounds change only between iterations, so the chain is scored with the bounds it was sampled with.
    """
    obs = env.reset(seed=run.config.seed + state.iteration)
    while state.env_steps < config.total_timesteps:
        began = time.perf_counter()
        agent.update_noise_schedule(step=state.env_steps)
        critic_only = agent.is_in_critic_warmup()
        obs, stats = collect(agent, env, obs, buffer, generator)
        collected = time.perf_counter()
        metrics = distributed.averaged(learner.update(buffer, generator, critic_only=critic_only))
        stats = stats.of_all_processes()
        updated = time.perf_counter()
        steps = int(stats.env_steps)
        state.env_steps += steps
        state.iteration += 1
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
        last = state.env_steps >= config.total_timesteps
        if is_due(state.iteration, config.eval_freq, last):
            run.log(on_eval(state), step=state.env_steps)
        if is_due(state.iteration, config.save_freq, last):
            on_save(state)
        run.progress(state.env_steps)
