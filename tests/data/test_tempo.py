"""Demonstrations made faster, by arithmetic on deltas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from reinflow.data.tempo import faster, pauses
from reinflow.data.trajectories import Trajectory
from reinflow.errors import UserError
from reinflow.types import EnvSpec

STILL = (0.0, 0.0, None)
"""two dimensions that move and a gripper that holds"""
ENV = EnvSpec("T", "state", "pd_ee_delta_pos", "torch", "dense", 1, (-1.0,) * 3, (1.0,) * 3, 50, still=STILL)


def moved(x: list[float], gripper: list[float] | None = None, success: list[int] | None = None) -> Trajectory:
    """Motions along one of the two directions; a state is the sum of those before it."""
    steps = len(x)
    actions = torch.zeros(steps, 3)
    actions[:, 0], actions[:, 2] = torch.tensor(x), torch.tensor(gripper or [1.0] * steps)
    marks = torch.tensor(success or [0] * steps).bool()
    nothing = torch.zeros(steps, dtype=torch.bool)
    obs = torch.cat((torch.zeros(1), torch.tensor(x).cumsum(0))).unsqueeze(1)
    return Trajectory(obs, actions, marks, nothing, nothing.clone(), torch.arange(steps).float())


def merged(trajectory: Trajectory, most: int, drop_pauses: bool = False) -> Trajectory:
    result = faster(trajectory, ENV, most, drop_pauses)
    # whatever is merged, each state is still the sum of the motions before it, and the path ends where it did
    torch.testing.assert_close(result.obs[:, 0], torch.cat((torch.zeros(1), result.actions[:, 0].cumsum(0))))
    assert result.obs[-1] == trajectory.obs[-1]
    result.check("here")
    return result


def x_of(trajectory: Trajectory) -> list[float]:
    return [round(value, 5) for value in trajectory.actions[:, 0].tolist()]


def test_motions_add_up_while_they_are_in_range():
    # .2 + .2, .2 + .2, then .3 + .9 would be above 1
    fast = merged(moved([0.2, 0.2, 0.2, 0.2, 0.3, 0.9]), most=2)
    assert x_of(fast) == [0.4, 0.4, 0.3, 0.9]
    assert fast.rewards.tolist() == [1, 3, 4, 5]  # what the last step of each is worth
    assert x_of(merged(moved([0.2] * 7), most=3)) == [0.6, 0.6, 0.2]
    assert x_of(merged(moved([0.6, 0.6]), most=4)) == [0.6, 0.6]
    assert x_of(merged(moved([-0.6, 0.6, 0.6]), most=3)) == [0.6]


def test_a_step_never_spans_a_switch_of_the_gripper_or_a_first_success():
    fast = merged(moved([0.1] * 6, gripper=[1, 1, 1, -1, -1, -1]), most=4)
    assert x_of(fast) == [0.3, 0.3]
    assert fast.actions[:, 2].tolist() == [1, -1]
    fast = merged(moved([0.1] * 4, success=[0, 1, 1, 1]), most=4)
    assert x_of(fast) == [0.1, 0.3]
    assert fast.success.tolist() == [False, True]


def test_pauses_join_the_step_before_whatever_their_number():
    fast = merged(moved([0.5, 0, 0, 0, 0.005, 0.5, 0.5]), most=1, drop_pauses=True)
    assert x_of(fast) == [0.505, 0.5, 0.5]
    # those at the start have nothing before them and join the first motion
    assert x_of(merged(moved([0, 0, 0.5]), most=1, drop_pauses=True)) == [0.5]
    # what little they move stays in range, too: .995 + .004 and not .004 more
    assert x_of(merged(moved([0.995, 0.004, 0.004]), most=1, drop_pauses=True)) == [0.999, 0.004]


def test_a_gripper_has_time_to_close():
    closing = moved([0.5] + [0.0] * 12 + [0.5], gripper=[1.0] + [-1.0] * 13)
    low, high = torch.tensor(ENV.action_low), torch.tensor(ENV.action_high)
    # it switches in the second step, in which and for 7 more it still moves
    assert pauses(closing.actions, STILL, low, high).nonzero().flatten().tolist() == [9, 10, 11, 12]
    assert len(merged(closing, most=1, drop_pauses=True)) == 10


def test_the_recorded_speed_is_the_recorded_trajectory():
    one = moved([0.1, 0.2])
    assert faster(one, ENV, 1, False) is one


def test_positions_do_not_add_up():
    with pytest.raises(UserError, match="need a control mode of deltas, not pd_joint_pos"):
        faster(moved([0.1]), replace(ENV, control_mode="pd_joint_pos"), 2, False)
    with pytest.raises(UserError, match="--speed_up 0 is too small"):
        faster(moved([0.1]), ENV, 0, False)
