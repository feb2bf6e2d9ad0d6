"""The ring of transitions by hand."""

from __future__ import annotations

import pytest
import torch

from reinflow.data.replay import ReplayBuffer
from reinflow.errors import UserError
from reinflow.types import ChunkStep, EpisodeStats


def step(first: int, rows: int, broken: tuple[int, ...] = ()) -> ChunkStep:
    """Rewards count up from `first`, and an env's next observation is ten times its reward."""
    reward = torch.arange(first, first + rows).float()
    flags = torch.zeros(rows, dtype=torch.bool)
    seen = {"state": 10 * reward.view(rows, 1, 1)}
    fresh = {"state": torch.full((rows, 1, 1), -1.0)}
    lost = flags.clone()
    lost[list(broken)] = True
    nothing = EpisodeStats(reward, flags.int(), flags, flags)
    return ChunkStep(fresh, seen, reward, torch.arange(1, rows + 1), reward == 3, reward == 4, nothing, lost)


def add(replay: ReplayBuffer, first: int, rows: int, broken: tuple[int, ...] = ()) -> None:
    """Rows whose observation and action are their reward."""
    outcome = step(first, rows, broken)
    at = outcome.reward.view(rows, 1, 1)
    replay.add({"state": at}, at.expand(rows, 2, 3), outcome)


def test_the_newest_take_the_places_of_the_oldest():
    replay = ReplayBuffer(5, gamma=0.5)
    add(replay, 0, 3)
    assert len(replay) == 3
    add(replay, 3, 3)  # places 3, 4 and 0
    assert len(replay) == 5
    assert replay.data["reward"].tolist() == [5, 1, 2, 3, 4]
    assert replay.data["obs"]["state"].flatten().tolist() == [5, 1, 2, 3, 4]
    assert replay.data["chunk"][0].tolist() == [[5.0] * 3] * 2
    # what came of it is the true last observation, not that of the next episode
    assert replay.data["next_obs"]["state"].flatten().tolist() == [50, 10, 20, 30, 40]
    # gamma to the power of the executed steps, 1, 2 and 3 in both calls
    assert replay.data["discount"].tolist() == [0.125, 0.25, 0.125, 0.5, 0.25]
    assert replay.data["terminated"].tolist() == [False, False, False, True, False]
    assert replay.data["truncated"].tolist() == [False, False, False, False, True]


def test_more_rows_than_it_holds_leave_the_last_ones():
    replay = ReplayBuffer(4, gamma=1.0)
    add(replay, 0, 7)
    assert sorted(replay.data["reward"].tolist()) == [3, 4, 5, 6]


def test_decisions_without_outcome_are_left_out():
    replay = ReplayBuffer(4, gamma=1.0)
    add(replay, 0, 3, broken=(1,))
    assert len(replay) == 2
    assert replay.data["reward"][:2].tolist() == [0, 2]


def test_samples_are_rows_that_were_added_each_about_as_often():
    replay = ReplayBuffer(8, gamma=1.0)
    add(replay, 0, 5)
    batch = replay.sample(5_000, torch.Generator().manual_seed(0))
    assert torch.equal(batch.next_obs["state"].flatten(), 10 * batch.reward)
    counts = torch.bincount(batch.reward.long(), minlength=8)
    assert counts[5:].sum() == 0
    # 1000 each, std sqrt(5000 * .2 * .8) = 28
    assert (counts[:5] - 1000).abs().max() < 5 * 28


def test_a_ring_goes_on_from_its_state():
    whole, half = ReplayBuffer(4, gamma=1.0), ReplayBuffer(4, gamma=1.0)
    add(whole, 0, 3)
    half.load_state_dict(whole.state_dict())
    for replay in (whole, half):
        add(replay, 3, 3)
    assert torch.equal(whole.data["reward"], half.data["reward"])
    assert whole.count == half.count == 6


def test_an_empty_one_has_a_state_too():
    empty = ReplayBuffer(4, gamma=1.0)
    empty.load_state_dict(ReplayBuffer(4, gamma=1.0).state_dict())
    add(empty, 0, 2)
    assert len(empty) == 2


def test_a_ring_of_another_size_is_refused():
    whole = ReplayBuffer(4, gamma=1.0)
    add(whole, 0, 3)
    with pytest.raises(ValueError, match="held 4 decisions, this one holds 5"):
        ReplayBuffer(5, gamma=1.0).load_state_dict(whole.state_dict())


def test_room_for_nothing_is_refused():
    with pytest.raises(UserError, match="at least one"):
        ReplayBuffer(0, gamma=1.0)
