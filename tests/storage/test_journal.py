"""A ring on disk: what files and checkpoint hold together is the ring, whatever went round, failed or was deleted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reinflow.data.replay import ReplayBuffer
from reinflow.errors import UserError
from reinflow.storage import journal as module
from reinflow.storage.journal import Journal
from tests.data.test_replay import add

SIZE, CAPACITY = 4, 10


def grown(folder: Path, decisions: int) -> tuple[ReplayBuffer, Journal]:
    replay, journal = ReplayBuffer(CAPACITY, gamma=1.0), Journal(folder, SIZE)
    for first in range(decisions):
        add(replay, first, 1)
        journal.offer(replay)
    assert journal.settle() is None
    return replay, journal


def restored(folder: Path, state: dict) -> ReplayBuffer:
    replay = ReplayBuffer(CAPACITY, gamma=1.0)
    Journal(folder, SIZE).restore(replay, state)
    return replay


def files(folder: Path) -> list[int]:
    return sorted(int(path.stem.split("_")[1]) for path in folder.glob("*.safetensors"))


@pytest.mark.parametrize("decisions", [0, 3, 4, 9, 10, 11, 14, 25])
def test_files_and_checkpoint_together_are_the_ring(tmp_path, decisions):
    replay, journal = grown(tmp_path, decisions)
    state = journal.state(replay)
    # whole files of 4; the checkpoint holds the 0 to 3 decisions behind them
    assert len(state["rows"].get("reward", [])) == decisions % SIZE
    again = restored(tmp_path, state)
    assert again.count == decisions
    assert len(again) == len(replay)
    if decisions:
        assert torch.equal(again.data["reward"], replay.data["reward"])


def test_files_that_no_kept_state_needs_are_deleted(tmp_path):
    replay, journal = grown(tmp_path, 14)
    assert files(tmp_path) == [0, 4, 8]
    journal.state(replay)  # 14 - 10 = 4: file 0 held what was overwritten
    assert files(tmp_path) == [4, 8]
    for first in range(14, 33):
        add(replay, first, 1)
        journal.offer(replay)
    journal.settle()
    journal.state(replay)  # the state of 14 is kept yet
    assert files(tmp_path) == [4, 8, 12, 16, 20, 24, 28]
    journal.state(replay)
    journal.state(replay)  # three states of 33: 33 - 10 = 23, so the file from 20 to 23 stays
    assert files(tmp_path) == [20, 24, 28]


def test_going_back_deletes_what_came_later_and_goes_on_from_there(tmp_path):
    replay, journal = grown(tmp_path, 9)
    state = journal.state(replay)
    for first in range(9, 16):
        add(replay, first, 1)
        journal.offer(replay)
    journal.restore(replay, state)
    assert files(tmp_path) == [0, 4]
    assert replay.count == 9
    for first in range(100, 104):
        add(replay, first, 1)
        journal.offer(replay)
    journal.settle()
    assert restored(tmp_path, journal.state(replay)).data["reward"].tolist() == replay.data["reward"].tolist()


def test_what_the_disk_refuses_stays_in_the_checkpoint_and_is_offered_again(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "replace", full)
        replay, journal = ReplayBuffer(CAPACITY, gamma=1.0), Journal(tmp_path, SIZE)
        add(replay, 0, 6)
        journal.offer(replay)
        error = journal.settle()
    assert error is not None and error.errno == 28
    state = journal.state(replay)
    assert state["rows"]["reward"].tolist() == [0, 1, 2, 3, 4, 5]
    assert restored(tmp_path, state).data["reward"].tolist() == replay.data["reward"].tolist()
    journal.offer(replay)
    journal.settle()
    assert journal.state(replay)["rows"]["reward"].tolist() == [4, 5]


def test_a_ring_that_went_round_while_the_disk_refused_lies_in_the_checkpoint(tmp_path):
    replay, journal = ReplayBuffer(CAPACITY, gamma=1.0), Journal(tmp_path, SIZE)
    for first in range(13):
        add(replay, first, 1)
    journal.offer(replay)
    state = journal.state(replay)
    assert state["rows"]["reward"].tolist() == list(range(3, 13))
    assert restored(tmp_path, state).data["reward"].tolist() == replay.data["reward"].tolist()


def test_a_damaged_or_missing_file_and_a_ring_of_another_size_are_refused(tmp_path):
    replay, journal = grown(tmp_path, 9)
    state = journal.state(replay)
    with pytest.raises(ValueError, match="held 10 decisions, this one holds 12"):
        Journal(tmp_path, SIZE).restore(ReplayBuffer(12, gamma=1.0), state)
    path = tmp_path / "rows_000000000004.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="rows_000000000004.*damaged"):
        restored(tmp_path, state)
    path.unlink()
    with pytest.raises(UserError, match="can't be read"):
        restored(tmp_path, state)
