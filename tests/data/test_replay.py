"""The ring of transitions by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from reinflow.data.chunks import TransitionBatch
from reinflow.data.replay import Mixture, ReplayBuffer, joined
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
    half.refill(3, [(0, whole.rows(0, 3))])
    for replay in (whole, half):
        add(replay, 3, 3)
    assert torch.equal(whole.data["reward"], half.data["reward"])
    assert whole.count == half.count == 6


def test_an_empty_one_has_rows_too():
    empty = ReplayBuffer(4, gamma=1.0)
    empty.refill(0, [(0, ReplayBuffer(4, gamma=1.0).rows(0, 0))])
    add(empty, 0, 2)
    assert len(empty) == 2


def test_a_ring_that_went_round_is_filled_from_parts_that_also_hold_what_is_too_old():
    whole, other = ReplayBuffer(4, gamma=1.0), ReplayBuffer(4, gamma=1.0)
    history = ReplayBuffer(10, gamma=1.0)
    for replay in (whole, history):
        for first in (0, 3, 6):
            add(replay, first, 3)
    # 9 were added: 5, 6, 7 and 8 are left, at places 1, 2, 3 and 0
    other.refill(9, [(4, history.rows(4, 7)), (7, history.rows(7, 9))])
    assert other.data["reward"].tolist() == whole.data["reward"].tolist() == [8, 5, 6, 7]
    assert len(other) == 4
    add(other, 9, 1)
    assert other.data["reward"].tolist() == [8, 9, 6, 7]


def test_what_is_remembered_stays_within_its_bytes():
    replay = ReplayBuffer(1_000, gamma=1.0, max_gb=450e-9)
    add(replay, 0, 3)
    # a row: two observations of 1 float, a chunk of 2 x 3, reward and discount, two flags: 10 * 4 + 2 = 42 bytes
    assert replay.capacity == 10
    assert len(replay) == 3


def demonstrations(rows: int, generator: torch.Generator) -> TransitionBatch:
    """Rewards from 100 on, and chunks of 4 actions whose second and third are executed."""
    own = ReplayBuffer(rows, gamma=1.0)
    outcome = step(100, rows)
    at = outcome.reward.view(rows, 1, 1)
    own.add({"state": at}, at.expand(rows, 4, 3) + torch.arange(4).view(1, 4, 1), outcome)
    return own.sample(rows, generator)


def test_a_fixed_share_of_a_batch_are_demonstrations_cut_to_what_own_decisions_hold():
    replay = ReplayBuffer(8, gamma=1.0)
    add(replay, 0, 5)
    mixture = Mixture(replay, demonstrations, 0.25, slice(1, 3))
    batch = mixture.sample(8, torch.Generator().manual_seed(0))
    assert (batch.reward[:6] < 100).all()
    assert (batch.reward[6:] >= 100).all()
    assert batch.demonstrated.tolist() == [False] * 6 + [True] * 2
    # positions 1 and 2 of a chunk that counts up from its reward
    torch.testing.assert_close(batch.chunk[6:, :, 0] - batch.reward[6:, None], torch.tensor([[1.0, 2.0]] * 2))
    assert torch.equal(batch.next_obs["state"].flatten(), 10 * batch.reward)
    for share, first in ((0.0, True), (1.0, False)):
        batch = Mixture(replay, demonstrations, share, slice(1, 3)).sample(4, torch.Generator())
        assert ((batch.reward < 100) == first).all()


def test_a_column_that_only_demonstrations_know_is_left_out_of_a_mixture():
    one = torch.ones(1)
    no = torch.zeros(1, dtype=torch.bool)
    own = TransitionBatch({"state": one}, one, one, one, {"state": one}, no, no)
    both = joined(own, replace(own, return_to_go=one))
    assert both.return_to_go is None
    assert joined(replace(own, return_to_go=2 * one), replace(own, return_to_go=one)).return_to_go.tolist() == [2, 1]


def test_room_for_nothing_is_refused():
    with pytest.raises(UserError, match="at least one"):
        ReplayBuffer(0, gamma=1.0)
