"""Stage 0: runs a scripted expert in a batched ManiSkill env and records its episodes.

Attempt i starts from seed `seed + i` alone (each env is reset by itself), so a demonstration doesn't depend on how
many envs ran beside it, and on a CPU a stock single env replays it from that seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reinflow.errors import UserError
from reinflow.recording.experts import make_expert

PATIENCE = 200
"""attempts without one success after which collecting gives up"""


@dataclass(frozen=True)
class Episode:
    """One attempt, cut some steps after its first success."""

    seed: int
    success: bool
    """the last step succeeds"""
    success_once: bool
    data: dict[str, Any]
    """what `TrajectoryWriter.add` takes"""


@dataclass
class Tally:
    """What the attempts came to."""

    attempts: int = 0
    successes: int = 0
    """attempts that succeeded at some step"""
    first_success: list[int] = field(default_factory=list)
    """env steps until the first success"""

    @property
    def rate(self) -> float:
        """Share of attempts that succeeded, from 0 to 1; 0 before the first one."""
        return self.successes / max(self.attempts, 1)

    def count(self, episode: Episode) -> None:
        """Add an attempt, and the env step (from 1) of its first success where it had one."""
        self.attempts += 1
        if episode.success_once:
            self.successes += 1
            self.first_success.append(int(episode.data["success"].int().argmax()) + 1)


def attempts(
    env: Any, env_id: str, seed: int, max_episode_steps: int, hold_steps: int, action_noise: float = 0.0
) -> Iterator[Episode]:
    """Episodes of the expert in the order of their seeds, without end; one batch of `env.num_envs` at a time.

    Args:
        env: unwrapped batched ManiSkill env in pd_ee_delta_pose with state observations.
        hold_steps: env steps kept after the first success.
        action_noise: std in normalised action units, added to the translation while the gripper travels.
    """
    expert = make_expert(env_id, env.num_envs, env.device)
    env.reset(seed=seed)
    while True:
        seeds = [seed + index for index in range(env.num_envs)]
        obs = reset_each(env, seeds)
        noise = action_noise * draw_noise(seeds, max_episode_steps)
        expert.reset()
        yield from run_batch(env, expert, obs, seeds, noise.to(env.device), hold_steps)
        seed += env.num_envs


def reset_each(env: Any, seeds: list[int]) -> Float[Tensor, "n s"]:
    """Start every env as a single env with its seed would."""
    for index, seed in enumerate(seeds):
        obs, _ = env.reset(seed=[seed], options={"env_idx": torch.tensor([index], device=env.device)})
    return obs.clone()


def draw_noise(seeds: list[int], steps: int) -> Float[Tensor, "t n 3"]:
    """Standard normal noise for translations, each env's from its own seed alone."""
    draws = [torch.randn(steps, 3, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draws, dim=1)


def run_batch(
    env: Any, expert: Any, obs: Float[Tensor, "n s"], seeds: list[int], noise: Float[Tensor, "t n 3"], hold_steps: int
) -> Iterator[Episode]:
    """One episode per env, all to the end of the slowest one."""
    limit = len(noise)
    frames, states = [obs], [copied(env.get_state_dict())]
    columns: dict[str, list[Tensor]] = {"actions": [], "rewards": [], "success": [], "terminated": []}
    ends = torch.full((env.num_envs,), limit, device=obs.device)
    succeeded = torch.zeros_like(ends, dtype=torch.bool)
    for step in range(1, limit + 1):
        action = expert.act(env, noise[step - 1])
        obs, reward, terminated, _, info = env.step(action)
        row = {"actions": action, "rewards": reward.float(), "success": info["success"], "terminated": terminated}
        for name, value in row.items():
            columns[name].append(value.clone())
        frames.append(obs.clone())
        states.append(copied(env.get_state_dict()))
        fresh = info["success"] & ~succeeded
        ends = torch.where(fresh, min(step + hold_steps, limit), ends)
        succeeded |= info["success"]
        if (ends <= step).all():
            break
    table = {name: torch.stack(values) for name, values in columns.items()}
    table["truncated"] = (torch.arange(1, len(frames), device=obs.device) >= limit)[:, None].expand_as(table["success"])
    yield from cut(torch.stack(frames), stacked(states), table, seeds, ends, succeeded)


def cut(
    frames: Float[Tensor, "t1 n s"],
    states: dict[str, Any],
    table: dict[str, Tensor],
    seeds: list[int],
    ends: Int[Tensor, "n"],
    succeeded: Tensor,
) -> Iterator[Episode]:
    """Each env's rows of a batch as an episode, in the key order of ManiSkill's recorder."""
    for index, (seed, end) in enumerate(zip(seeds, ends.tolist(), strict=True)):
        mine = {name: value[:end, index] for name, value in table.items()}
        data = {
            "obs": frames[: end + 1, index],
            "actions": mine["actions"],
            "terminated": mine["terminated"],
            "truncated": mine["truncated"],
            "success": mine["success"],
            "env_states": mapped(states, partial(rows_of, index, end + 1)),
            "rewards": mine["rewards"],
        }
        yield Episode(seed, bool(mine["success"][-1]), bool(succeeded[index]), data)


def rows_of(env: int, count: int, values: Float[Tensor, "t n ..."]) -> Float[Tensor, "count ..."]:
    """The first `count` steps of one env, out of values for all envs."""
    return values[:count, env]


def collect(episodes: Iterator[Episode], num_demos: int, only_success: bool, keep: Callable[[Episode], None]) -> Tally:
    """Hand `num_demos` episodes to `keep`, in the order of their seeds; only those whose last step succeeds, or all.

    Raises UserError after PATIENCE attempts without success.
    """
    tally, kept = Tally(), 0
    for episode in episodes:
        tally.count(episode)
        if episode.success or not only_success:
            keep(episode)
            kept += 1
        if kept >= num_demos:
            break
        if only_success and not kept and tally.attempts >= PATIENCE:
            raise UserError(
                f"none of {tally.attempts} attempts succeeded: lower --action_noise or raise --max_episode_steps"
            )
    return tally


def measure(episodes: Iterator[Episode], attempts: int) -> Tally:
    """The expert's success over a fixed number of attempts."""
    tally = Tally()
    for _, episode in zip(range(attempts), episodes, strict=False):
        tally.count(episode)
    return tally


def mapped(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A nested dict with `function` applied to every tensor in it."""
    if isinstance(tree, dict):
        return {name: mapped(value, function) for name, value in tree.items()}
    return function(tree)


def copied(tree: Any) -> Any:
    """A snapshot: the simulator writes the next state into its buffers."""
    return mapped(tree, torch.clone)


def stacked(trees: list[Any]) -> Any:
    """Equal nested dicts as one whose tensors have a new first axis, one entry per dict."""
    if isinstance(trees[0], dict):
        return {name: stacked([tree[name] for tree in trees]) for name in trees[0]}
    return torch.stack(trees)
