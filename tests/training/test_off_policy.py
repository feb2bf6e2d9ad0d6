"""The off-policy loop with a toy learner: it improves on the toy, and a stopped run is the one that never stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from reinflow.data.replay import ReplayBuffer
from reinflow.errors import UserError
from reinflow.run.config import RunConfig
from reinflow.run.run import Run
from reinflow.runtime import interrupts
from reinflow.runtime.interrupts import Interrupted
from reinflow.storage.checkpoint import load_checkpoint
from reinflow.storage.resumable import latest_training
from tests.test_resume import assert_equal, logged, stop_at
from tests.training.toy_learner import trainer

SHORT: dict[str, Any] = {
    "num_envs": 4, "total_timesteps": 200, "learning_starts": 12, "updates_per_step": 2, "batch_size": 16,
    "log_freq": 5, "eval_freq": 6, "save_freq": 4,
}  # fmt: skip


def run(folder: Path, name: str, resume: bool = False, episodes: int = 4, **config: Any) -> Path:
    """One off-policy run, or what is left of it."""
    path = folder / "runs" / name
    own = RunConfig(runs_dir=str(folder / "runs"), exp_name=name, cuda=False, resume=str(path) if resume else None)
    total = config["total_timesteps"]
    with Run.open(own, name=name, full_config=RunConfig(), total=total, unit="env_steps") as opened:
        trainer(opened, episodes, **config).train()
    return path


def test_it_improves_from_nothing(tmp_path):
    config = SHORT | {
        "num_envs": 32, "total_timesteps": 12_800, "learning_starts": 500, "updates_per_step": 4, "batch_size": 128,
        "eval_freq": 0, "save_freq": 0,
    }  # fmt: skip
    path = run(tmp_path, "learns", episodes=20, **config)
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    first, last = (line["eval/return"] for line in lines if "eval/return" in line)
    # 24 steps at a distance of about 1.6 to the goal are 24 * .5 * (1 - 1.6 / 3) = 5.6; up to the wall, .8 away, 8.8
    assert first < 6
    assert last > 7.5
    assert load_checkpoint(path).parts.keys() == {"critic", "q", "raw"}


@pytest.mark.parametrize("count", [3, 9, 14])
def test_a_stopped_run_goes_on_to_the_bit(tmp_path, monkeypatch, count):
    whole = run(tmp_path, "whole", **SHORT)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(interrupts, "check", stop_at(count))
        run(tmp_path, "stopped", **SHORT)
    stopped = run(tmp_path, "stopped", resume=True, **SHORT)
    assert_equal(tmp_path, "whole", "stopped")
    assert logged(whole) == logged(stopped)
    counters = latest_training(whole).training["counters"]
    # 13 decisions of 4 envs x 4 steps are 208; the 3rd makes 12 in the buffer, so 11 iterations update twice
    assert counters == {"env_steps": 208, "iteration": 13, "updates": 22, "evaluated": True}


def test_a_state_of_another_replay_size_is_refused(tmp_path):
    run(tmp_path, "small", **SHORT)
    path = tmp_path / "runs" / "small"
    own = RunConfig(runs_dir=str(tmp_path / "runs"), exp_name="small", cuda=False, resume=str(path))
    with Run.open(own, name="small", full_config=RunConfig(), total=1, unit="env_steps") as opened:
        other = trainer(opened, 4, **SHORT)
        other.loop.replay = ReplayBuffer(10, 0.97)
        with pytest.raises(UserError, match="held 20000 decisions, this one holds 10"):
            other.train()


def test_going_back_starts_new_episodes_with_the_ring_of_that_moment(tmp_path, monkeypatch):
    path = run(tmp_path, "whole", **SHORT)
    state = latest_training(path).training
    own = RunConfig(runs_dir=str(tmp_path / "runs"), exp_name="back", cuda=False)
    with Run.open(own, name="back", full_config=RunConfig(), total=1, unit="env_steps") as opened:
        loop = trainer(opened, 4, **SHORT).loop
        loop.begin()
        loop.iterate()
        loop.roll_back(state)
        assert loop.obs is None
        assert (loop.count, loop.step, len(loop.replay)) == (13, 208, 52)
        assert torch.equal(loop.replay.data["reward"][:52], state["replay"]["rows"]["reward"])
        loop.begin()
        assert loop.obs["state"].shape == (4, 1, 3)
