"""ManiSkill's motion planner as a source of demonstrations."""

from __future__ import annotations

from importlib import metadata

import pytest

from reinflow.data.demos import load_demos
from reinflow.errors import UserError
from reinflow.recording import planner
from reinflow.recording.writer import TrajectoryWriter


def test_numpy_2_is_refused_before_the_planner_crashes(monkeypatch):
    versions = {"numpy": "2.1.0", "mplib": "0.1.1"}
    monkeypatch.setattr(planner.metadata, "version", versions.__getitem__)
    with pytest.raises(UserError, match="NumPy 2"):
        planner.refuse_without_planner()


def test_a_tool_that_fails_is_quoted():
    with pytest.raises(UserError, match=r"no_such_module failed \(exit 1\): .*No module named"):
        planner.launch("no_such_module", [])


def planner_works() -> bool:
    try:
        planner.refuse_without_planner()
    except UserError:
        return False
    return True


@pytest.mark.skipif(not planner_works(), reason=f"mplib with NumPy 1.26 is needed, found {metadata.version('numpy')}")
def test_planned_demonstrations_have_rewards_in_the_control_mode_asked_for(tmp_path):
    path = tmp_path / "planned.h5"
    info = {
        "env_id": "PickCube-v1",
        "env_kwargs": {"obs_mode": "state", "control_mode": "pd_ee_delta_pose"},
        "max_episode_steps": 50,
    }
    with TrajectoryWriter(path, info, {}) as writer:
        planner.plan_demos("PickCube-v1", 1, "pd_ee_delta_pose", writer)
    (demo,) = load_demos(path, control_mode="pd_ee_delta_pose", need_rewards=True).trajectories
    assert demo.actions.shape[1] == 7
    assert demo.success[-1]
    assert demo.rewards[-1] == 1
