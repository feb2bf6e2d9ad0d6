"""Demonstrations on disk: what is written, what is read back, and what is refused with a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from reinflow.data.config import DemoConfig
from reinflow.data.demos import Demos, Trajectory, load_demos, open_demos
from reinflow.data.writer import TrajectoryWriter
from reinflow.errors import UserError
from reinflow.types import EnvSpec, ImageSpec

STEPS, STATE, ACTION = 5, 3, 7
INFO = {
    "env_id": "PickCube-v1",
    "env_kwargs": {"obs_mode": "state", "control_mode": "pd_ee_delta_pose", "reward_mode": "normalized_dense"},
    "max_episode_steps": 50,
}
SOURCE = {"source_type": "scripted", "source_desc": "test"}
RULES = {
    "env_id": "PickCube-v1",
    "obs_mode": "state",
    "control_mode": "pd_ee_delta_pose",
    "max_episode_steps": 50,
    "terminate_on_success": False,
}


def episode(steps: int = STEPS, **changes: np.ndarray) -> dict:
    success = np.arange(1, steps + 1) >= steps - 1
    data = {
        "obs": np.arange((steps + 1) * STATE, dtype=np.float32).reshape(steps + 1, STATE),
        "actions": np.full((steps, ACTION), 0.5, np.float32),
        "terminated": success,
        "truncated": np.zeros(steps, bool),
        "success": success,
        "env_states": {"actors": {"cube": np.zeros((steps + 1, 13), np.float32)}},
        "rewards": np.linspace(0, 1, steps, dtype=np.float32),
    }
    return {name: value for name, value in (data | changes).items() if value is not None}


def written(folder: Path, *episodes: dict) -> Path:
    path = folder / "trajectory.h5"
    with TrajectoryWriter(path, INFO, SOURCE) as writer:
        for seed, data in enumerate(episodes or (episode(),)):
            writer.add(data, seed=10 + seed, control_mode="pd_ee_delta_pose")
    return path


def test_what_is_written_is_read_back(tmp_path):
    path = written(tmp_path, episode(), episode(steps=3))
    demos = load_demos(path, env_id="PickCube-v1", control_mode="pd_ee_delta_pose", need_rewards=True)
    assert [len(trajectory) for trajectory in demos.trajectories] == [5, 3]
    assert demos.trajectories[0].obs.shape == (6, STATE)
    torch.testing.assert_close(demos.trajectories[0].rewards, torch.tensor([0, 0.25, 0.5, 0.75, 1.0]))
    assert demos.max_episode_steps == 50
    assert len(load_demos(path, num_demos=1).trajectories) == 1


def test_every_episode_names_the_seed_that_reproduces_it(tmp_path):
    episodes = json.loads(written(tmp_path, episode(), episode(3)).with_suffix(".json").read_text())["episodes"]
    assert [e["episode_id"] for e in episodes] == [0, 1]
    assert [e["reset_kwargs"]["seed"] for e in episodes] == [e["episode_seed"] for e in episodes] == [10, 11]
    assert [e["elapsed_steps"] for e in episodes] == [5, 3]


def test_a_failure_while_collecting_leaves_no_file(tmp_path):
    def interrupted():
        with TrajectoryWriter(tmp_path / "t.h5", INFO, SOURCE) as writer:
            writer.add(episode(), seed=0, control_mode="pd_ee_delta_pose")
            assert [p.name.endswith(".partial") for p in tmp_path.iterdir()] == [True]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_existing_demonstrations_are_only_replaced_when_asked(tmp_path):
    path = written(tmp_path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="--overwrite"):
        TrajectoryWriter(path, INFO, SOURCE)
    assert path.read_bytes() == before
    with TrajectoryWriter(path, INFO, SOURCE, overwrite=True) as writer:
        writer.add(episode(2), seed=0, control_mode="pd_ee_delta_pose")
    assert len(load_demos(path).trajectories[0]) == 2


def bad_file(tmp_path: Path, **changes) -> Path:
    return written(tmp_path, episode(), episode(**changes))


NAN = np.full((STEPS, ACTION), np.nan, np.float32)
BAD_EPISODES = {
    "NaN": ({"actions": NAN}, "traj_1, actions holds NaN"),
    "no rewards": ({"rewards": None}, "traj_1 has no rewards.*--reward_source sparse_success"),
    "no observations": ({"obs": None}, "traj_1 has no obs"),
    "one observation short": ({"obs": np.zeros((STEPS, STATE), np.float32)}, "traj_1 has obs .5, 3.*one row more"),
    "rewards of another length": ({"rewards": np.zeros(2, np.float32)}, r"traj_1, rewards has shape \(2,\) for 5"),
    "out of range": ({"actions": np.full((STEPS, ACTION), 3.0, np.float32)}, "traj_1, actions reach 3.00"),
    "another robot": ({"actions": np.zeros((STEPS, 8), np.float32)}, "traj_1 has other dimensions than traj_0"),
    "text": ({"actions": np.full((STEPS, ACTION), b"x")}, "traj_1, actions holds .*not numbers"),
}


@pytest.mark.parametrize("name", BAD_EPISODES)
def test_a_bad_trajectory_is_named_with_its_key(tmp_path, name):
    changes, message = BAD_EPISODES[name]
    with pytest.raises(UserError, match=message):
        load_demos(bad_file(tmp_path, **changes), need_rewards=True)


def test_a_missing_file_names_the_command_that_makes_it(tmp_path):
    with pytest.raises(UserError, match=r"python collect_demos\.py --env_id PushCube-v1"):
        load_demos(tmp_path / "none.h5", env_id="PushCube-v1")


@pytest.mark.parametrize(
    "wanted", [{"env_id": "PushCube-v1"}, {"control_mode": "pd_joint_pos"}, {"obs_mode": "rgb"}], ids=str
)
def test_another_task_or_mode_is_refused(tmp_path, wanted):
    (name,) = wanted
    with pytest.raises(UserError, match=f"recorded with {name}"):
        load_demos(written(tmp_path), **wanted)


def test_a_truncated_file_is_refused(tmp_path):
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(UserError, match="cut short"):
        load_demos(path)


def test_an_empty_file_is_refused(tmp_path):
    path = written(tmp_path)
    with h5py.File(path, "w"):
        pass
    with pytest.raises(UserError, match="holds no trajectory"):
        load_demos(path)


def test_a_recording_without_description_is_refused(tmp_path):
    path = written(tmp_path)
    path.with_suffix(".json").unlink()
    with pytest.raises(UserError, match="copy both files"):
        load_demos(path)


def test_more_demos_than_there_are_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds 1 trajectories, not the 2"):
        load_demos(written(tmp_path), num_demos=2)


def test_sparse_success_replaces_missing_rewards(tmp_path):
    path = written(tmp_path, episode(rewards=None))
    config = DemoConfig(demo_path=str(path), reward_source="sparse_success")
    demos = open_demos(config, SimpleNamespace(**RULES), need_rewards=True)
    # the last two of five steps succeed
    assert demos.trajectories[0].rewards.tolist() == [0, 0, 0, 1, 1]


def test_without_termination_at_success_no_recorded_step_is_terminal(tmp_path):
    config = DemoConfig(demo_path=str(written(tmp_path)))
    kept = open_demos(config, SimpleNamespace(**RULES)).trajectories[0]
    assert len(kept) == 5
    assert not kept.terminated.any()
    cut = open_demos(config, SimpleNamespace(**RULES | {"terminate_on_success": True})).trajectories[0]
    # the fourth step is the first that succeeds
    assert cut.terminated.tolist() == [False, False, False, True]
    assert len(cut.obs) == 5


def test_demos_longer_than_an_episode_are_warned_about():
    trajectories = [blank(steps) for steps in [20] * 9 + [80]]
    demos = Demos(trajectories, "PickCube-v1", "pd_ee_delta_pose")
    # 95th percentile of nine 20s and one 80, between the two last: 20 + .55 * 60 = 53
    assert demos.length_percentile(95) == pytest.approx(53)
    assert demos.length_warning(53) is None
    assert "--max_episode_steps 64" in demos.length_warning(50)


def test_other_dimensions_than_the_task_are_refused():
    demos = Demos([blank(2)], "PickCube-v1", "pd_ee_delta_pose")
    demos.check_fit(task(ACTION))
    with pytest.raises(UserError, match="7 action dimensions but PickCube-v1 has 8"):
        demos.check_fit(task(8))
    with pytest.raises(UserError, match="show no pictures but PickCube-v1 shows rgb of 8x8 from hand"):
        demos.check_fit(task(ACTION, ImageSpec(("hand",), 8, 8, rgb=True, depth=False)))


def task(action_dim: int, image: ImageSpec | None = None) -> EnvSpec:
    bounds = (1.0,) * action_dim
    return EnvSpec("PickCube-v1", "state", "pd_ee_delta_pose", "torch", "dense", STATE, bounds, bounds, 50, image)


def blank(steps: int) -> Trajectory:
    flags = torch.zeros(steps, dtype=torch.bool)
    return Trajectory(torch.zeros(steps + 1, STATE), torch.zeros(steps, ACTION), flags, flags, flags)
