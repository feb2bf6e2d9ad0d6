"""One decision is up to `act_horizon` env steps: the chunk executor and the observation history over any `BatchedEnv`.

Envs of a batch are independent: one that ends in the middle of a chunk is no longer counted while the others finish
theirs. Nothing here loops over envs, or waits for a GPU inside a chunk; after one it waits once, and not at all where
no episode can have ended. Pictures are rendered only of the frames that
end up in a history: with 8 steps a chunk and a history of 2, that is 2 of 8.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reinflow.types import BatchedEnv, ChunkStep, EpisodeStats, Obs, Seed, StepResult

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

    def extend(self, name: str, frames: list[Tensor], kept: Int[Tensor, "n"], looks: bool) -> None:
        """Append to every env the first `kept` of the `frames` of one name; `looks` whether that is all of them."""
        newest = frames[-self.horizon :]
        if looks and len(newest) == self.horizon and bool((kept == len(frames)).all()):
            self.frames[name] = torch.stack(newest, dim=1)
            return
        both = torch.cat((self.frames[name], torch.stack(frames, dim=1)), dim=1)
        window = kept.unsqueeze(1) + torch.arange(self.horizon, device=both.device)
        self.frames[name] = both[torch.arange(len(both), device=both.device).unsqueeze(1), window]

    def snapshot(self) -> Obs:
        """The stacked frames; `extend` and `refill` make new tensors, so these stay as they are."""
        return dict(self.frames)


class ActionChunk:
    """A `ChunkEnv` over a `BatchedEnv`: keeps histories and statistics, resets ended envs once, at the chunk's end."""

    def __init__(self, env: BatchedEnv, act_horizon: int, obs_horizon: int, gamma: float, rebuild_every: int = 0):
        """`gamma` discounts rewards inside a chunk, per env step.

        Once an env has ended `rebuild_every` episodes, unless that is 0, all envs get other geometry, and episodes that
        still run are truncated.
        """
        self.env = env
        self.spec = env.spec
        self.limit = env.spec.max_episode_steps
        self.num_envs = env.num_envs
        self.device = env.device
        self.looks = env.device.type == "cpu"
        """at values, to save work; on a GPU that would wait for the simulator"""
        self.act_horizon = act_horizon
        self.obs_horizon = obs_horizon
        self.history = ObsHistory(obs_horizon)
        self.low = torch.tensor(env.spec.action_low, device=env.device)
        self.high = torch.tensor(env.spec.action_high, device=env.device)
        self.ordinals = torch.arange(1, act_horizon + 1, device=env.device).unsqueeze(1)
        self.discounts = gamma ** (self.ordinals - 1)
        self.everywhere = torch.ones(env.num_envs, dtype=torch.bool, device=env.device)
        self.rebuild_every = rebuild_every
        self.stats = self._fresh_stats()
        self.episodes = torch.zeros(env.num_envs, dtype=torch.long, device=env.device)
        """ended since the scenes were built"""
        self.ends_early = getattr(env, "ends_early", True)
        """whether an episode may end before its limit; an env that doesn't say so may"""
        self.lengths = torch.zeros(env.num_envs, dtype=torch.long)
        """those of `stats`, on the host"""
        self.overdue = ~self.everywhere
        """envs that broke while nobody looked: they wait for their reset, and their decisions are broken too"""
        self._state: dict[str, Any] | None = None
        """of this moment, once somebody asked: an env that forgets twice is not quite where it was after once"""

    def reset(self, seed: Seed = None) -> Obs:
        """Start new episodes everywhere."""
        self._state = None
        self.history.refill(self.env.reset(seed=seed), self.everywhere)
        self.stats = self._fresh_stats()
        self._start_counting(torch.zeros_like(self.lengths))
        return self.history.snapshot()

    def rebuild(self, seeds: list[int] | None = None) -> None:
        """Pass the seeds on and count ended episodes from 0 again."""
        self.env.rebuild(seeds)
        self.episodes = torch.zeros_like(self.episodes)

    def step_chunk(self, actions: Float[Tensor, "n e a"]) -> ChunkStep:
        """Execute a chunk in env units, clipped to the env's bounds; where an env ends, the rest is dropped.

        An env whose action, observation or reward is not usable is `broken`: cut and reset at the chunk's end, and the
        others go on as if nothing had happened. Raises ValueError for actions of another shape.
        """
        actions, sound = self._checked(actions)
        self._state = None
        steps = self._run(actions)
        counted, outcome = self._tally(steps, sound)
        self._remember(steps, counted)
        final_obs = self.history.snapshot()
        ended = outcome.terminated | outcome.truncated | outcome.broken
        ends = True
        if self._nobody_can_end():
            self.stats, self.overdue, ends = outcome.episode, outcome.broken, False
            self.lengths = self.lengths + self.act_horizon
        elif self._wears_out(count := self._look(ended, outcome.episode)):
            self.rebuild()
            self.reset()
            outcome = replace(outcome, truncated=~(outcome.terminated | outcome.broken))
        else:
            self._restart(ended, count, outcome.episode)
            ends = count > 0
        return replace(outcome, obs=self.history.snapshot(), final_obs=final_obs, ends=ends)

    def state(self) -> dict[str, Any] | None:
        """The env's state with histories and statistics; None before the first reset, or where the env has none."""
        if self._state is None and self.history.frames:
            env = self.env.state()
            parts = {"frames": self.history.snapshot(), "stats": dict(vars(self.stats)), "episodes": self.episodes}
            self._state = env and {"env": env, **parts}
        return self._state

    def restore(self, state: Any) -> Obs | None:
        """Histories and statistics come from the state, pictures too: nothing is rendered again."""
        if not isinstance(state, dict) or "env" not in state:  # older versions saved the actions to repeat
            return None
        if any(len(value) != self.num_envs for value in state["frames"].values()):
            return None
        if not self.env.restore(state["env"]):
            return None
        self.history.frames = dict(state["frames"])
        self.stats = EpisodeStats(**state["stats"])
        self.episodes = state["episodes"]
        self._start_counting(self.stats.length)
        self._state = state
        return self.history.snapshot()

    def close(self) -> None:
        """Close the env below."""
        self.env.close()

    def _run(self, actions: Float[Tensor, "n e a"]) -> list[StepResult]:
        """Step all envs to the chunk's end, or where it `looks` until all of them have ended."""
        left = int((self.limit - self.lengths).max()) if self.looks else self.act_horizon
        seen = self._frames_seen()
        steps, over = [], ~self.everywhere
        for index in range(min(self.act_horizon, left)):
            steps.append(self.env.step(actions[:, index], render=index in seen))
            if self.looks and steps[-1].ended.any():
                over = over | steps[-1].ended
                if over.all():
                    break
        return steps

    def _tally(self, steps: list[StepResult], sound: Bool[Tensor, "n"]) -> tuple[Bool[Tensor, "i n"], ChunkStep]:
        """Which env steps count, and what they come to; the observations are not in it yet.

        A step counts until its episode has ended or something of it is not usable.
        """
        reward, success, terminated = (
            torch.stack([getattr(step, name) for step in steps]) for name in ("reward", "success", "terminated")
        )
        usable = self._usable(reward, steps)
        at_limit = self.stats.length + self.ordinals[: len(steps)] >= self.limit
        ends = at_limit | torch.stack([step.ended for step in steps])
        stops = ends | ~usable
        runs = sound & (stops.cumsum(0) - stops.long() == 0)
        counted = runs & usable
        reward = torch.where(counted, reward, 0.0)
        executed = counted.sum(0)
        at_end = success.gather(0, (executed - 1).clamp(min=0).unsqueeze(0)).squeeze(0)
        terminated = (counted & terminated).any(0)
        before = self.stats
        return counted, ChunkStep(
            obs={},
            final_obs={},
            reward=(self.discounts[: len(steps)] * reward).sum(0),
            executed=executed,
            terminated=terminated,
            truncated=(counted & ends).any(0) & ~terminated,
            broken=~sound | (runs & ~usable).any(0),
            episode=EpisodeStats(
                return_=before.return_ + reward.sum(0),
                length=before.length + executed,
                success_once=before.success_once | (counted & success).any(0),
                success_at_end=torch.where(executed > 0, at_end, before.success_at_end),
            ),
        )

    def _remember(self, steps: list[StepResult], counted: Bool[Tensor, "i n"]) -> None:
        """Append the counted frames to the histories; not every frame has pictures."""
        for name in self.history.frames:
            having = [index for index, step in enumerate(steps) if name in step.obs]
            if having:
                frames = [steps[index].obs[name] for index in having]
                self.history.extend(name, frames, counted[having].sum(0), self.looks)

    def _frames_seen(self) -> set[int]:
        """Steps of the coming chunk whose pictures reach a history: the last ones before its end, or an episode's."""
        if self.spec.image is None:
            return set()
        executes = (self.limit - self.lengths).clamp(max=self.act_horizon)
        ends = executes.unique().tolist()
        return {end - back for end in ends for back in range(1, self.obs_horizon + 1)}

    def _checked(self, actions: Tensor) -> tuple[Float[Tensor, "n e a"], Bool[Tensor, "n"]]:
        """The actions inside their bounds, and which envs may execute them; in the others they are 0.

        Those are where an action is no number, and where a reset is overdue.
        """
        shape = (self.num_envs, self.act_horizon, self.spec.action_dim)
        if tuple(actions.shape) != shape:
            raise ValueError(f"{self.spec.env_id} takes actions of shape {shape}, got {tuple(actions.shape)}")
        actions = actions.to(self.device, torch.float32)
        sound = (row_sums(actions).abs() < math.inf) & ~self.overdue
        return torch.where(_like(sound, actions), actions, 0.0).clamp(self.low, self.high), sound

    def _usable(self, reward: Float[Tensor, "i n"], steps: list[StepResult]) -> Bool[Tensor, "i n"]:
        """Where a reward and an observation are numbers that can be learnt from."""
        usable = reward.abs() <= MOST_REWARD  # NaN is not
        for name, value in steps[0].obs.items():
            if value.is_floating_point():
                usable = usable & (torch.stack([row_sums(step.obs[name]) for step in steps]).abs() < math.inf)
        return usable

    def _nobody_can_end(self) -> bool:
        """Whether a GPU need not be asked, because all envs are further from their limits than the chunk is long."""
        return not (self.looks or self.ends_early) and int(self.lengths.max()) + self.act_horizon < self.limit

    def _look(self, ended: Bool[Tensor, "n"], stats: EpisodeStats) -> int:
        """How many envs ended, and on the host how long the others' episodes are: the one wait of a decision.

        Episodes since the scenes were built are counted, too, where they matter.
        """
        if self.rebuild_every:
            self.episodes = self.episodes + ended
        lengths = torch.where(ended, 0, stats.length)
        numbers = torch.cat((lengths, ended.sum().view(1), self.episodes.max().view(1))).cpu()
        self.lengths, count, self.most_episodes = numbers[:-2], int(numbers[-2]), int(numbers[-1])
        return count

    def _wears_out(self, count: int) -> bool:
        """Whether it is time for other geometry, after `count` envs ended."""
        return bool(count and self.rebuild_every and self.most_episodes >= self.rebuild_every)

    def _start_counting(self, lengths: Int[Tensor, "n"]) -> None:
        """After all envs were put somewhere."""
        self.lengths = lengths.cpu()
        self.overdue = torch.zeros_like(self.everywhere)

    def _restart(self, ended: Bool[Tensor, "n"], count: int, stats: EpisodeStats) -> None:
        """Reset the `count` ended envs alone; everything of the others stays."""
        self.stats = stats
        if not count:
            return
        env_idx: Int[Tensor, "m"] = (~ended).int().argsort(stable=True)[:count]  # nonzero() would wait once more
        self.history.refill(self.env.reset(env_idx=env_idx), ended)
        fresh = self._fresh_stats()
        self.stats = EpisodeStats(
            **{name: torch.where(ended, getattr(fresh, name), value) for name, value in vars(stats).items()}
        )
        self.overdue = torch.zeros_like(ended)

    def _fresh_stats(self) -> EpisodeStats:
        nothing = torch.zeros(self.num_envs, device=self.device)
        return EpisodeStats(nothing, nothing.long(), nothing.bool(), nothing.bool())


def _like(where: Bool[Tensor, "n"], value: Tensor) -> Tensor:
    return where.view(-1, *(1,) * (value.dim() - 1))


def row_sums(values: Float[Tensor, "n ..."]) -> Float[Tensor, "n"]:
    """Finite where all values of a row are, and none is near the end of its type's range.

    Twelve times faster than looking at each value.
    """
    return values.flatten(1).sum(1)
