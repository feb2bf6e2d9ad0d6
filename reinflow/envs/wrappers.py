"""One decision is up to `act_horizon` env steps: the chunk executor and the observation history over any `BatchedEnv`.

Envs of a batch are independent: one that ends in the middle of a chunk is no longer counted while the others finish
theirs. Nothing here loops over envs, or waits for a GPU inside a chunk. Pictures are rendered only of the frames that
end up in a history: with 8 steps a chunk and a history of 2, that is 2 of 8.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reinflow.envs.replay import EpisodeLog
from reinflow.types import BatchedEnv, ChunkStep, EpisodeStats, Obs, StepResult

MOST_REWARD = 1e6
"""a reward beyond is a simulator's accident"""


class ObsHistory:
    """The last `horizon` frames of every env, oldest first."""

    def __init__(self, horizon: int):
        self.horizon = horizon
        self.frames: Obs = {}

    def refill(self, frame: dict[str, Tensor], where: Bool[Tensor, "n"]) -> None:
        """Where a new episode starts, its first frame fills the whole history; other envs keep theirs."""
        for name, value in frame.items():
            filled = value.unsqueeze(1).expand(-1, self.horizon, *value.shape[1:])
            old = self.frames.get(name, filled)
            self.frames[name] = torch.where(_like(where, old), filled, old)

    def push(self, frame: dict[str, Tensor], where: Bool[Tensor, "n"]) -> None:
        """Append a frame in the envs that are still running."""
        for name, value in frame.items():
            old = self.frames[name]
            shifted = torch.cat((old[:, 1:], value.unsqueeze(1)), dim=1)
            self.frames[name] = torch.where(_like(where, old), shifted, old)

    def snapshot(self) -> Obs:
        """The stacked frames; `push` and `refill` make new tensors, so these stay as they are."""
        return dict(self.frames)


class ActionChunk:
    """A `ChunkEnv` over a `BatchedEnv`: keeps histories and statistics, resets ended envs once, at the chunk's end."""

    def __init__(self, env: BatchedEnv, act_horizon: int, obs_horizon: int, gamma: float):
        """`gamma` discounts rewards inside a chunk, per env step."""
        self.env = env
        self.spec = env.spec
        self.num_envs = env.num_envs
        self.device = env.device
        self.act_horizon = act_horizon
        self.obs_horizon = obs_horizon
        self.gamma = gamma
        self.history = ObsHistory(obs_horizon)
        self.low = torch.tensor(env.spec.action_low, device=env.device)
        self.high = torch.tensor(env.spec.action_high, device=env.device)
        self.everywhere = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
        self.stats = self._fresh_stats()
        self.log = EpisodeLog(act_horizon, env.spec.max_episode_steps)

    def reset(self, seed: int | None = None) -> Obs:
        """Start new episodes everywhere."""
        self.log.begin(self.env, seed)
        self.history.refill(self.env.reset(seed=seed), self.everywhere)
        self.stats = self._fresh_stats()
        return self.history.snapshot()

    def step_chunk(self, actions: Float[Tensor, "n e a"]) -> ChunkStep:
        """Execute a chunk in env units, clipped to the env's bounds; where an env ends, the rest is dropped.

        An env whose action, observation or reward is not usable is `broken`: cut and reset at the chunk's end, and the
        others go on as if nothing had happened. Raises ValueError for actions of another shape.
        """
        actions, alive = self._checked(actions)
        reward = torch.zeros(self.num_envs, device=self.device)
        executed = torch.zeros(self.num_envs, dtype=torch.long, device=self.device)
        terminated, truncated = ~self.everywhere, ~self.everywhere
        broken = ~alive
        stats, seen = self.stats, self._frames_seen()
        for index in range(self.act_horizon):
            # on a GPU this test would wait for the simulator; there the dead steps are the cheaper choice
            if self.device.type == "cpu" and not alive.any():
                break
            step = self.env.step(actions[:, index], render=index in seen)
            usable = self._usable(step)
            broken = broken | (alive & ~usable)
            alive = alive & usable
            counted = torch.where(alive, step.reward, 0.0)
            reward = reward + self.gamma**index * counted
            executed = executed + alive
            stats = EpisodeStats(
                return_=stats.return_ + counted,
                length=stats.length + alive,
                success_once=stats.success_once | (step.success & alive),
                success_at_end=torch.where(alive, step.success, stats.success_at_end),
            )
            self.history.push(step.obs, alive)
            terminated = terminated | (alive & step.terminated)
            truncated = truncated | (alive & ~terminated & (stats.length >= self.spec.max_episode_steps))
            alive = ~(terminated | truncated | broken)
        final_obs = self.history.snapshot()
        self.log.add(self.env, actions, ~alive)
        self._restart(~alive, stats)
        self.log.turn(self.env)
        return ChunkStep(self.history.snapshot(), final_obs, reward, executed, terminated, truncated, stats, broken)

    def state(self) -> dict[str, Any] | None:
        log = self.log.state()
        return None if log is None else {"log": log, "frames": self.history.snapshot(), "stats": dict(vars(self.stats))}

    def restore(self, state: dict[str, Any]) -> Obs | None:
        if state is None or any(len(value) != self.num_envs for value in state["frames"].values()):
            return None
        newest = self.log.replay(self.env, state["log"])
        self.history.frames = dict(state["frames"])
        self.stats = EpisodeStats(**state["stats"])
        pictures = () if self.spec.image is None else self.spec.image.names
        compared = [name for name in self.history.frames if name not in pictures]
        exact = all(torch.equal(self.history.frames[name][:, -1], newest[name]) for name in compared)
        return self.history.snapshot() if exact else None

    def close(self) -> None:
        self.env.close()

    def _frames_seen(self) -> set[int]:
        """Steps of the coming chunk whose pictures reach a history: the last ones before its end, or an episode's."""
        if self.spec.image is None:
            return set()
        executes = (self.spec.max_episode_steps - self.stats.length).clamp(max=self.act_horizon)
        ends = executes.unique().tolist()
        return {end - back for end in ends for back in range(1, self.obs_horizon + 1)}

    def _checked(self, actions: Tensor) -> tuple[Float[Tensor, "n e a"], Bool[Tensor, "n"]]:
        """The actions inside their bounds, and in which envs all of them are numbers; elsewhere they are 0."""
        shape = (self.num_envs, self.act_horizon, self.spec.action_dim)
        if tuple(actions.shape) != shape:
            raise ValueError(f"{self.spec.env_id} takes actions of shape {shape}, got {tuple(actions.shape)}")
        finite = actions.isfinite()
        executed = torch.where(finite, actions, 0.0).to(self.device, torch.float32).clamp(self.low, self.high)
        return executed, finite.flatten(1).all(1).to(self.device)

    def _usable(self, step: StepResult) -> Bool[Tensor, "n"]:
        """Where an env's reward and observation are numbers that can be learnt from."""
        usable = step.reward.abs() <= MOST_REWARD  # NaN is not
        for value in step.obs.values():
            if value.is_floating_point():
                usable = usable & value.flatten(1).isfinite().all(1)
        return usable

    def _restart(self, ended: Bool[Tensor, "n"], stats: EpisodeStats) -> None:
        """Reset the ended envs alone; everything of the others stays."""
        self.stats = stats
        env_idx: Int[Tensor, "m"] = ended.nonzero().squeeze(1)
        if len(env_idx) == 0:
            return
        self.history.refill(self.env.reset(env_idx=env_idx), ended)
        fresh = self._fresh_stats()
        self.stats = EpisodeStats(
            **{name: torch.where(ended, getattr(fresh, name), value) for name, value in vars(stats).items()}
        )

    def _fresh_stats(self) -> EpisodeStats:
        nothing = torch.zeros(self.num_envs, device=self.device)
        return EpisodeStats(nothing, nothing.long(), nothing.bool(), nothing.bool())


def _like(where: Bool[Tensor, "n"], value: Tensor) -> Tensor:
    return where.view(-1, *(1,) * (value.dim() - 1))
