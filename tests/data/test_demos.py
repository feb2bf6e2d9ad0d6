"""Demonstrations on disk: what is written, what is read back, and what is refused with a sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from reinflow.data.config import DemoConfig
from reinflow.data.demos import load_demos, open_demos
from reinflow.data.trajectories import Demos, Trajectory
from reinflow.envs.arguments import EnvArguments
from reinflow.envs.suite import Task
from reinflow.errors import UserError
from reinflow.recording.writer import TrajectoryWriter
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
    "task": Task("pd_ee_delta_pose"),
    "arguments": EnvArguments(),
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
    "no rewards": ({"rewards": None}, "traj_1 has no rewards.*--reward_mode sparse"),
    "no observations": ({"obs": None}, "traj_1 has no obs"),
    "one observation short": ({"obs": np.zeros((STEPS, STATE), np.float32)}, "traj_1 has obs .5, 3.*one row more"),
    "rewards of another length": ({"rewards": np.zeros(2, np.float32)}, r"traj_1, rewards has shape \(2,\) for 5"),
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


def opened(path: Path, source: str | None = None, reward_mode: str | None = None, **rules: object) -> Demos:
    config = DemoConfig(demo_path=str(path), reward_source=source)
    return open_demos(config, SimpleNamespace(**RULES | rules), need_rewards=True, reward_mode=reward_mode)


@pytest.mark.parametrize(("source", "mode"), [("sparse_success", None), (None, "sparse"), ("sparse_success", "sparse")])
@pytest.mark.parametrize("recorded", [None, np.ones(STEPS, np.float32)], ids=["no rewards", "dense rewards"])
def test_sparse_rewards_are_made_from_recorded_successes(tmp_path, source, mode, recorded):
    demos = opened(written(tmp_path, episode(rewards=recorded)), source, mode)
    # the last two of five steps succeed
    assert demos.trajectories[0].rewards.tolist() == [0, 0, 0, 1, 1]
    assert demos.reward_mode == "sparse"


def test_recorded_sparse_rewards_stay_since_a_task_may_take_one_off_for_a_failure(tmp_path):
    rewards = np.array([0, -1, 0, 1, 1], np.float32)
    path = written(tmp_path, episode(rewards=rewards))
    describe(path, reward_mode="sparse")
    for mode in (None, "sparse"):
        assert opened(path, reward_mode=mode).trajectories[0].rewards.tolist() == rewards.tolist()


def test_rewards_of_another_mode_are_refused(tmp_path):
    path = written(tmp_path)
    assert opened(path).reward_mode == opened(path, reward_mode="normalized_dense").reward_mode == "normalized_dense"
    with pytest.raises(UserError, match="holds normalized_dense rewards, not dense: pass --reward_mode normalized_de"):
        opened(path, reward_mode="dense")
    with pytest.raises(UserError, match="holds normalized_dense rewards, not sparse"):
        opened(path, "recorded", "sparse")
    with pytest.raises(UserError, match="sparse_success contradicts --reward_mode dense"):
        opened(path, "sparse_success", "dense")
    describe(path)  # says nothing of its rewards, as many recordings
    assert opened(path, reward_mode="dense").reward_mode is None


def test_sparse_rewards_need_a_recorded_success(tmp_path):
    never = episode(success=np.zeros(STEPS, bool))
    assert opened(written(tmp_path, never, episode()), reward_mode="sparse").trajectories[0].rewards.sum() == 0
    with TrajectoryWriter(tmp_path / "failures.h5", INFO, SOURCE) as writer:
        writer.add(never, seed=0, control_mode="pd_ee_delta_pose")
    with pytest.raises(UserError, match="marks no step as a success"):
        opened(tmp_path / "failures.h5", reward_mode="sparse")
    with h5py.File(tmp_path / "failures.h5", "a") as file:
        del file["traj_0/success"]
    with pytest.raises(UserError, match="traj_0 has no success"):
        opened(tmp_path / "failures.h5", reward_mode="sparse")


def describe(path: Path, **settings: str) -> None:
    """Replace what the description says of the rewards."""
    beside = path.with_suffix(".json")
    info = json.loads(beside.read_text())
    del info["env_info"]["env_kwargs"]["reward_mode"]
    info["env_info"]["env_kwargs"] |= settings
    beside.write_text(json.dumps(info))


@pytest.mark.parametrize("marked", [True, False], ids=["marked as terminated", "recorded without terminations"])
def test_without_termination_at_success_no_recorded_step_is_terminal(tmp_path, marked):
    path = written(tmp_path, episode() if marked else episode(terminated=np.zeros(STEPS, bool)))
    kept = opened(path).trajectories[0]
    assert len(kept) == 5
    assert not kept.terminated.any()
    cut = opened(path, terminate_on_success=True, reward_mode="sparse").trajectories[0]
    # the fourth step is the first that succeeds
    assert cut.terminated.tolist() == cut.success.tolist() == [False, False, False, True]
    assert cut.rewards.tolist() == [0, 0, 0, 1]
    assert len(cut.obs) == 5


def test_an_episode_that_ends_at_success_also_ends_at_a_recorded_failure(tmp_path):
    failed = np.array([False, True, False, False, False])
    cut = opened(written(tmp_path, episode(terminated=failed)), terminate_on_success=True).trajectories[0]
    assert cut.terminated.tolist() == [False, True]


def test_demos_longer_than_an_episode_are_warned_about():
    trajectories = [blank(steps) for steps in [20] * 9 + [80]]
    demos = Demos(trajectories, "PickCube-v1", "pd_ee_delta_pose")
    # 95th percentile of nine 20s and one 80, between the two last: 20 + .55 * 60 = 53
    assert demos.length_percentile(95) == pytest.approx(53)
    assert demos.length_warning(53) is None
    assert "--max_episode_steps 64" in demos.length_warning(50)


def test_other_dimensions_than_the_task_are_refused():
    demos = Demos([blank(2)], "PickCube-v1", "pd_ee_delta_pose")
    demos.fit_(task(ACTION))
    with pytest.raises(UserError, match="7 action dimensions but PickCube-v1 has 8"):
        demos.fit_(task(8))
    with pytest.raises(UserError, match="show no pictures but PickCube-v1 shows rgb of 8x8 from hand"):
        demos.fit_(task(ACTION, ImageSpec(("hand",), 8, 8, rgb=True, depth=False)))


def test_actions_outside_the_bounds_of_the_task_are_clipped_and_counted_in_any_control_mode(capsys):
    wide = replace(task(2), control_mode="pd_joint_pos", action_low=(-3.0, 0.0), action_high=(3.0, 10.0))
    demos = Demos([acting(0.0, 0.0), acting(-3.0, 10.0)], "PickCube-v1", "pd_joint_pos")
    demos.fit_(wide)
    # a ten-thousandth of half of the range, 5, is rounding: .0005
    demos.trajectories[1] = acting(0.0, 10.0004)
    demos.fit_(wide)
    assert capsys.readouterr().out == ""
    demos.trajectories[1] = acting(-3.5, 12.0)
    demos.fit_(wide)
    assert demos.trajectories[1].actions.tolist() == [[-3.0, 10.0]] * 2
    # two episodes of two steps each, of which both of the second are outside, by .5 and by 2
    assert "2 of 4 recorded actions were outside pd_joint_pos's bounds" in (said := capsys.readouterr().out)
    assert "up to 12.00 in dimension 1, whose bounds are [0, 10]" in said


def test_older_ants_and_humanoids_fit_a_task_without_contact_forces(capsys):
    ant = replace(task(8), env_id="Ant-v5", state_dim=27)
    flags = torch.zeros(1, dtype=torch.bool)
    demos = Demos([Trajectory(torch.arange(222.0).view(2, 111), torch.zeros(1, 8), flags, flags, flags)], "Ant-v2", "")
    with pytest.raises(UserError, match="111 state dimensions but Ant-v2 has 28"):
        demos.fit_(replace(ant, state_dim=28))
    demos.fit_(ant)
    assert demos.trajectories[0].obs[1].tolist() == list(range(111, 138))
    assert "the last 84 of 111 recorded numbers" in capsys.readouterr().out


def acting(*action: float) -> Trajectory:
    return replace(blank(2), actions=torch.tensor([action, action]), name="traj_1")


@pytest.mark.parametrize(
    ("terminates_on", "terminate_on_success", "ends"),
    [
        ("success", False, []),  # nothing ends it, and the value of its last frame counts
        ("success", True, [False, True]),
        ("failure", False, [False, False, False, True]),  # no value lies beyond the fall at the fourth step
        ("failure", True, [False, True]),
    ],
)
def test_a_fall_ends_an_episode_whatever_success_does(terminates_on, terminate_on_success, ends):
    marks = torch.eye(4, dtype=torch.bool)
    # the second step succeeds and is marked as terminated, the fourth falls
    fallen = Trajectory(
        torch.zeros(5, STATE), torch.zeros(4, ACTION), marks[1], marks[1] | marks[3], torch.zeros(4, dtype=torch.bool)
    )
    kept = fallen.under_rules(terminate_on_success, terminates_on)
    assert kept.terminated.tolist() == (ends or [False] * 4)
    assert len(kept.obs) == len(kept) + 1


def test_a_file_in_no_known_format_is_refused_with_those_there_are(tmp_path):
    (tmp_path / "x.h5").write_text("hello")
    with pytest.raises(UserError, match="cut short, damaged, or in another format than maniskill"):
        load_demos(tmp_path / "x.h5")


def task(action_dim: int, image: ImageSpec | None = None) -> EnvSpec:
    low, high = (-1.0,) * action_dim, (1.0,) * action_dim
    return EnvSpec("PickCube-v1", "state", "pd_ee_delta_pose", "torch", "dense", STATE, low, high, 50, image)


def blank(steps: int) -> Trajectory:
    flags = torch.zeros(steps, dtype=torch.bool)
    return Trajectory(torch.zeros(steps + 1, STATE), torch.zeros(steps, ACTION), flags, flags, flags)
