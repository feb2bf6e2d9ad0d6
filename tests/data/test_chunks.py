"""Windows and transitions of demonstrations, with numbers small enough to check by hand."""

from __future__ import annotations

import pytest
import torch

from reinflow.data.chunks import ChunkDataset, returns_to_go
from reinflow.data.trajectories import Demos, Trajectory
from reinflow.types import StillAction

GAMMA = 0.5


def trajectory(steps: int, start: float, gripper: tuple[float, ...], terminated: bool = False) -> Trajectory:
    """Observation t is `start + t`; action t moves by `start + t` and has the t-th gripper value; reward t is t + 1."""
    time = torch.arange(steps, dtype=torch.float32)
    flags = torch.zeros(steps, dtype=torch.bool)
    last = flags.clone()
    last[-1] = terminated
    return Trajectory(
        obs=(start + torch.arange(steps + 1, dtype=torch.float32))[:, None],
        actions=torch.stack((start + time, torch.tensor(gripper)), 1),
        success=flags,
        terminated=last,
        truncated=flags,
        rewards=time + 1,
    )


MOVES, HOLDS = (0.0, None), (None, None)
"""a delta beside a gripper, and absolute control"""


def dataset(still: StillAction = MOVES, terminated: bool = False) -> ChunkDataset:
    """A trajectory of three steps from 10, one of two steps from 20; windows of two frames and four actions."""
    first = trajectory(3, 10, (1, 1, -1), terminated)
    second = trajectory(2, 20, (1, -1))
    demos = Demos([first, second], "Some-v0", "some_mode")
    return ChunkDataset(demos, obs_horizon=2, pred_horizon=4, act_horizon=2, gamma=GAMMA, still=still)


def every(data: ChunkDataset) -> torch.Tensor:
    return torch.arange(len(data))


def test_every_step_is_the_start_of_a_window():
    assert len(dataset()) == 3 + 2


def test_before_the_start_the_first_observation_repeats():
    obs = dataset().window(every(dataset())).obs["state"][..., 0]
    assert obs.tolist() == [[10, 10], [10, 11], [11, 12], [20, 20], [20, 21]]


def test_delta_control_is_padded_with_no_motion_and_the_nearest_gripper_value():
    chunk = dataset().window(every(dataset())).chunk
    # rows are the times t-1 .. t+2; times -1 and beyond the end don't move
    assert chunk[..., 0].tolist() == [
        [0, 10, 11, 12],
        [10, 11, 12, 0],
        [11, 12, 0, 0],
        [0, 20, 21, 0],
        [20, 21, 0, 0],
    ]
    assert chunk[0, :, 1].tolist() == [1, 1, 1, -1]
    assert chunk[2, :, 1].tolist() == [1, -1, -1, -1]


def test_absolute_control_is_padded_with_the_nearest_action():
    chunk = dataset(HOLDS).window(every(dataset())).chunk
    assert chunk[0, :, 0].tolist() == [10, 10, 11, 12]
    assert chunk[2, :, 0].tolist() == [11, 12, 12, 12]


def test_what_commands_no_motion_may_be_another_number_than_zero():
    # bounds of -1 and 3 that are scaled to [-1, 1]: 0 of them is -.5
    chunk = dataset((-0.5, None)).window(every(dataset())).chunk
    assert chunk[2, :, 0].tolist() == [11, 12, -0.5, -0.5]


def test_a_task_with_another_number_of_actions_is_refused():
    with pytest.raises(ValueError, match="3 numbers for actions of 2"):
        dataset((0.0, 0.0, None))


def test_the_executed_slice_starts_at_the_newest_frame():
    window = dataset().window(every(dataset()))
    # action t moves by the number that observation t shows
    assert window.chunk[:, 1, 0].tolist() == window.obs["state"][:, -1, 0].tolist()


def test_chunk_rewards_discounts_and_successors_by_hand():
    data = dataset()
    step = data.transition(every(data))
    # two steps are executed, one where only one is left: r = 1, 2, 3 and 1, 2
    assert step.reward.tolist() == [1 + 0.5 * 2, 2 + 0.5 * 3, 3, 1 + 0.5 * 2, 2]
    assert step.discount.tolist() == [0.25, 0.25, 0.5, 0.25, 0.5]
    assert step.next_obs["state"][..., 0].tolist() == [[11, 12], [12, 13], [12, 13], [21, 22], [21, 22]]


def test_the_end_of_a_recording_is_a_truncation():
    data = dataset()
    step = data.transition(every(data))
    assert not step.terminated.any()
    assert step.truncated.tolist() == [False, True, True, True, True]


def test_a_recorded_termination_is_not_a_truncation():
    data = dataset(terminated=True)
    step = data.transition(every(data))
    assert step.terminated.tolist() == [False, True, True, False, False]
    assert step.truncated.tolist() == [False, False, False, True, True]


def test_a_chunk_stops_at_a_termination_inside_it():
    one = trajectory(4, 0, (1, 1, 1, 1))
    one.terminated[1] = True
    data = ChunkDataset(Demos([one], "Some-v0", "some_mode"), 1, 4, 4, GAMMA, still=MOVES)
    step = data.transition(torch.tensor([0, 1]))
    # from t = 0 two steps happen, from t = 1 one: rewards 1 + .5 * 2 and 2
    assert step.reward.tolist() == [2, 2]
    assert step.discount.tolist() == [0.25, 0.5]
    assert step.next_obs["state"][:, 0, 0].tolist() == [2, 2]
    assert step.terminated.all()
    assert not step.truncated.any()


def test_statistics_leave_padding_out():
    state, action, pictures = dataset().statistics()
    assert pictures is None
    assert state[:, 0].tolist() == [10, 11, 12, 13, 20, 21, 22]
    assert action[:, 0].tolist() == [10, 11, 12, 20, 21]


def test_draws_repeat_with_the_generator():
    data = dataset()
    first, second = (data.sample(64, torch.Generator().manual_seed(3)).chunk for _ in range(2))
    assert torch.equal(first, second)
    assert len(data.sample_transitions(64, torch.Generator().manual_seed(3)).reward) == 64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_are_made_on_the_device():
    demos = Demos([trajectory(3, 0, (1, 1, 1))], "Some-v0", "some_mode")
    data = ChunkDataset(demos, 2, 4, 2, GAMMA, device="cuda", still=MOVES)
    assert data.sample_transitions(8, torch.Generator("cuda")).next_obs["state"].device.type == "cuda"


def test_the_return_to_go_by_hand():
    # cut after rewards 1, 2, 3: 3 for ever is 3 / (1 - .5) = 6, then 2 + 6 / 2 = 5 and 1 + 5 / 2; of 1, 2: 4 and 3
    assert dataset().transition(every(dataset())).return_to_go.tolist() == [3.5, 5, 6, 3, 4]
    # terminated: 3, 2 + 3 / 2, 1 + 3.5 / 2
    ended = dataset(terminated=True)
    assert ended.transition(every(ended)).return_to_go.tolist() == [2.75, 3.5, 3, 3, 4]


def test_the_return_to_go_is_that_of_a_walk_through_the_recordings():
    generator = torch.Generator().manual_seed(0)
    lengths, gamma = [1, 37, 5, 64], 0.9
    rewards = torch.rand(sum(lengths), generator=generator, dtype=torch.float64)
    terminated = torch.rand(sum(lengths), generator=generator) < 0.05
    left = torch.cat([torch.arange(length, 0, -1) for length in lengths])
    expected, following = [], 0.0
    for reward, ends, remaining in zip(rewards.flip(0), terminated.flip(0), left.flip(0), strict=True):
        if remaining == 1:
            following = reward / (1 - gamma)
        following = reward + gamma * (0.0 if ends else following)
        expected.append(following)
    assert terminated.sum() > 2
    torch.testing.assert_close(returns_to_go(rewards, terminated, left, gamma), torch.stack(expected).flip(0))
