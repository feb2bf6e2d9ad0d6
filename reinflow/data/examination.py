"""Looks at demonstrations for what keeps a clone from learning them: length, speed, pauses, range used, gripper.

Nothing is simulated: bounds and grippers are guessed from the actions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from reinflow.data.tempo import faster, motions, pauses, switches
from reinflow.data.trajectories import ACTION_SLACK, Demos
from reinflow.specs import EnvSpec, StillAction

HELD, AWAY = 0.8, 0.5
"""a gripper repeats its last value in so many of the steps, and is so far from the middle of its range on average"""
SLOW, LONG, LAZY, FEW = 0.25, 100, 0.1, 50
"""share of the range, env steps, share of pauses, and episodes, from which on there is advice"""
TEMPOS = (2, 3, 4)


@dataclass(frozen=True)
class Examination:
    """What was found; shares are from 0 to 1."""

    episodes: int
    successes: int | None
    """episodes that succeed at some step; None where the recording doesn't say"""
    length_median: float
    """env steps"""
    length_longest: float
    """env steps that 95 % of the episodes don't exceed"""
    range_used: float
    """of half of its range what a moving dimension uses in a step at most, median over the steps that move"""
    range_reached: float
    """the same, exceeded by 5 % of the steps"""
    paused: float
    """share of the steps in which nothing is told to move and no gripper is closing"""
    at_switch: float
    """share of the steps at which a gripper switches; few of them decide the task"""
    clipped: float
    """share of the steps with an action outside -1..1 in a normalised control mode"""
    faster: dict[str, float]
    """median length with steps merged and pauses dropped, by --speed_up; empty without deltas"""


def examined(demos: Demos) -> Examination:
    """Statistics of whole episodes."""
    task = task_guessed(demos)
    low, high = torch.tensor(task.action_low), torch.tensor(task.action_high)
    moves, rests, turns, outside, steps = [], 0, 0, 0, 0
    for one in demos.trajectories:
        used, idle = motions(one.actions, task.still, low, high), pauses(one.actions, task.still, low, high)
        moves.append(used[~idle])
        rests += int(idle.sum())
        turns += int(switches(one.actions, task.still).sum())
        outside += int(((one.actions < low) | (one.actions > high)).any(dim=1).sum())
        steps += len(one)
    moving = torch.cat(moves)
    moving = moving if len(moving) else torch.zeros(1)
    return Examination(
        episodes=len(demos.trajectories),
        successes=sum(bool(one.success.any()) for one in demos.trajectories) if demos.marks_success else None,
        length_median=demos.length_percentile(50),
        length_longest=demos.length_percentile(95),
        range_used=moving.quantile(0.5).item(),
        range_reached=moving.quantile(0.95).item(),
        paused=rests / steps,
        at_switch=turns / steps,
        clipped=outside / steps,
        faster=lengths_at(demos, task) if "delta" in demos.control_mode else {},
    )


def lengths_at(demos: Demos, task: EnvSpec) -> dict[str, float]:
    """Median lengths that `--speed_up` 2, 3 and 4 with `--drop_pauses` would give."""
    found = {}
    for most in TEMPOS:
        lengths = [float(len(faster(one, task, most, drop_pauses=True))) for one in demos.trajectories]
        found[str(most)] = torch.tensor(lengths).quantile(0.5).item()
    return found


def advice(found: Examination, max_episode_steps: int | None) -> Iterator[str]:
    """Sentences on what to try, the most promising first."""
    if found.successes is not None and found.successes < found.episodes:
        failed = found.episodes - found.successes
        yield f"{failed} of {found.episodes} episodes never succeed: cloning leaves them out"
    if found.length_median > LONG or found.range_used < SLOW:
        best = f", which makes {found.faster['3']:.0f} steps of them" if "3" in found.faster else ""
        how = "--speed_up 3" if found.faster else "replaying them in a delta control mode, then --speed_up 3"
        yield (
            f"they are slow ({found.length_median:.0f} steps that use {found.range_used:.0%} of the range): "
            f"try {how}{best}"
        )
    if found.paused > LAZY:
        yield f"{found.paused:.0%} of the steps are pauses, which a clone learns to prolong: try --drop_pauses"
    if max_episode_steps is not None and found.length_longest > max_episode_steps:
        yield (
            f"they take up to {found.length_longest:.0f} steps and an episode ends after {max_episode_steps}: pass "
            f"--max_episode_steps {round(found.length_longest * 1.2)} in every stage, or speed them up"
        )
    if found.episodes < FEW:
        yield f"there are {found.episodes} episodes: 100 or more clone better"
    if found.clipped > 0:
        yield f"{found.clipped:.0%} of the steps have actions outside -1..1, which are clipped"


def lines(found: Examination, demos: Demos) -> list[str]:
    """The examination as a page of text, with its advice."""
    successes = "not recorded" if found.successes is None else f"{found.successes} of {found.episodes}"
    merged = ", ".join(f"{length:.0f} at --speed_up {most}" for most, length in found.faster.items())
    rows = {
        "task": f"{demos.env_id or 'not named'}, {demos.control_mode or 'control mode not named'}",
        "successes": successes,
        "length": f"{found.length_median:.0f} env steps (median), {found.length_longest:.0f} (95 %)",
        "range used": f"{found.range_used:.0%} of it in a step that moves (median), {found.range_reached:.0%} (95 %)",
        "pauses": f"{found.paused:.1%} of the steps",
        "gripper": f"switches in {found.at_switch:.1%} of the steps",
        "merged": merged or "only actions that are deltas can be merged",
    }
    said = list(advice(found, demos.max_episode_steps)) or ["nothing here keeps a clone from learning them"]
    return [f"{name:11} {value}" for name, value in rows.items()] + [f"advice      {one}" for one in said]


def task_guessed(demos: Demos) -> EnvSpec:
    """A task that these actions fit: bounds of 1 unless most actions lie beyond, grippers where values are held."""
    actions = torch.cat([one.actions for one in demos.trajectories])
    beyond = (actions.abs() > 1 + ACTION_SLACK).float().mean(dim=0) > AWAY
    high = torch.where(beyond, actions.amax(dim=0), torch.ones(()))
    low = torch.where(beyond, torch.minimum(actions.amin(dim=0), high - 1e-3), -torch.ones(()))
    return EnvSpec(
        env_id=demos.env_id,
        obs_mode="state",
        control_mode=demos.control_mode,
        sim_backend=demos.sim_backend or "",
        reward_mode=demos.reward_mode or "",
        state_dim=demos.trajectories[0].obs.shape[1],
        action_low=tuple(low.tolist()),
        action_high=tuple(high.tolist()),
        max_episode_steps=demos.max_episode_steps or 0,
        still=still_guessed(demos),
    )


def still_guessed(demos: Demos) -> StillAction:
    """None for dimensions that mostly repeat a value away from the middle, as grippers do."""
    same = torch.cat([one.actions[1:] == one.actions[:-1] for one in demos.trajectories])
    actions = torch.cat([one.actions for one in demos.trajectories])
    share = same.float().mean(dim=0) if len(same) else torch.zeros(actions.shape[1])
    held = (share >= HELD) & (actions.abs().mean(dim=0) >= AWAY)
    return tuple(None if hold else 0.0 for hold in held.tolist())
