"""Demonstrations made faster: steps of delta control merged into one, where the sum of their motions is in range.

    actions .2 .2 .2 .2 | .3 .9   at most two into one:   .4 .4 | .3 .9      since .3 + .9 > 1

What a delta controller is told in turn it can be told at once; it then needs fewer steps for the same path.
Translations and joints add up exactly, rotations as long as they are small. A merged step never spans a switch of the
gripper (an action that holds, `StillAction` None), a first success or a termination.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reinflow.data.trajectories import Trajectory
from reinflow.errors import UserError
from reinflow.specs import EnvSpec, StillAction

REST = 0.01
"""of half of its range: a motion below it is none"""
SETTLING = 8
"""steps after a switch of the gripper in which it still moves, so that they are no pause"""


def faster(trajectory: Trajectory, env: EnvSpec, most: int, drop_pauses: bool) -> Trajectory:
    """At most `most` steps merged into one, and with `drop_pauses` any number of steps in which nothing moves.

    UserError where the task's actions aren't deltas, or pictures lie in a file that can't be thinned.
    """
    if most < 1:
        raise UserError(f"--speed_up {most} is too small: 1 keeps the recorded speed")
    if most == 1 and not drop_pauses:
        return trajectory
    refuse_absolute(env)
    if trajectory.pictures is not None:
        raise UserError("--speed_up and --drop_pauses take state observations only: leave them out, or the pictures")
    low, high = torch.tensor(env.action_low), torch.tensor(env.action_high)
    idle = pauses(trajectory.actions, env.still, low, high) if drop_pauses else torch.zeros(len(trajectory)).bool()
    lasts = merged_ends(trajectory, env.still, low, high, most, idle)
    return thinned(trajectory, lasts, env.still)


def refuse_absolute(env: EnvSpec) -> None:
    """UserError for control modes whose actions are positions or velocities: they don't add up."""
    if "delta" not in env.control_mode:
        raise UserError(
            f"--speed_up and --drop_pauses need a control mode of deltas, not {env.control_mode}: replay the "
            "demonstrations in one, such as pd_ee_delta_pose, or leave them out"
        )


def holding(still: StillAction) -> Bool[Tensor, "a"]:
    """Which action dimensions keep their last value instead of moving something by it."""
    return torch.tensor([value is None for value in still])


def motions(
    actions: Float[Tensor, "t a"], still: StillAction, low: Float[Tensor, "a"], high: Float[Tensor, "a"]
) -> Float[Tensor, "t"]:
    """The largest share of half of its range that any moving dimension uses, per step; 0 is standing still."""
    moves = ~holding(still)
    rest = torch.tensor([value or 0.0 for value in still])
    used = (actions - rest).abs() / ((high - low) / 2)
    return used[:, moves].amax(dim=1) if moves.any() else torch.zeros(len(actions))


def switches(actions: Float[Tensor, "t a"], still: StillAction) -> Bool[Tensor, "t"]:
    """Steps whose holding dimensions, such as a gripper, are told something else than in the step before."""
    found = torch.zeros(len(actions), dtype=torch.bool)
    held = actions[:, holding(still)]
    found[1:] = (held[1:] - held[:-1]).abs().gt(REST).any(dim=1)
    return found


def pauses(
    actions: Float[Tensor, "t a"], still: StillAction, low: Float[Tensor, "a"], high: Float[Tensor, "a"]
) -> Bool[Tensor, "t"]:
    """Steps in which nothing is told to move and no gripper still does."""
    since = steps_since(switches(actions, still))
    return (motions(actions, still, low, high) < REST) & (since >= SETTLING)


def steps_since(marks: Bool[Tensor, "t"]) -> Int[Tensor, "t"]:
    """Steps since the last mark, 0 at a mark; very many before the first one."""
    steps = torch.arange(len(marks))
    last = torch.where(marks, steps, -len(marks) - SETTLING).cummax(0).values if len(marks) else steps
    return steps - last


def merged_ends(
    trajectory: Trajectory,
    still: StillAction,
    low: Float[Tensor, "a"],
    high: Float[Tensor, "a"],
    most: int,
    idle: Bool[Tensor, "t"],
) -> list[int]:
    """The last step of each merged one, greedily from the first step on; idle ones don't count towards `most`.

    Idle steps at the start join the first that moves.
    """
    borders = switches(trajectory.actions, still)
    borders[1:] |= trajectory.success[1:] ^ trajectory.success[:-1]
    borders[1:] |= trajectory.terminated[:-1]
    moves = ~holding(still)
    rest = torch.tensor([value or 0.0 for value in still])
    ends: list[int] = []
    total, count = rest.clone(), 0
    for step, action in enumerate(trajectory.actions):
        together = total + action - rest
        fits = bool(((together >= low) & (together <= high))[moves].all())
        joins = step > 0 and not borders[step] and fits and bool(idle[step] or count < most)
        if step and not joins:
            ends.append(step - 1)
        total, count = (together, count) if joins else (action.clone(), 0)
        count += not idle[step]
    return [*ends, len(trajectory) - 1]


def thinned(trajectory: Trajectory, lasts: list[int], still: StillAction) -> Trajectory:
    """One step for each run of steps that ends at `lasts`: motions summed, the rest as of its last step."""
    ends = torch.tensor(lasts)
    rest = torch.tensor([value or 0.0 for value in still])
    sums = (trajectory.actions - rest).double().cumsum(0)[ends]
    sums[1:] -= sums[:-1].clone()
    actions = torch.where(holding(still), trajectory.actions[ends], sums.float() + rest)
    return replace(
        trajectory,
        obs=torch.cat((trajectory.obs[:1], trajectory.obs[ends + 1])),
        actions=actions,
        success=trajectory.success[ends],
        terminated=trajectory.terminated[ends],
        truncated=trajectory.truncated[ends],
        rewards=None if trajectory.rewards is None else trajectory.rewards[ends],
    )
