"""Raw recordings played again: the observations of the recorded states, and the same path in another control mode."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

import collect_demos
from reinflow.cli import parse
from reinflow.data.demos import load_demos
from reinflow.envs.config import EnvConfig
from reinflow.envs.maniskill import make
from reinflow.errors import UserError
from reinflow.recording.replay import Tape
from reinflow.recording.writer import TrajectoryWriter

STEPS, SEED = 8, 5
TCP = slice(19, 22)
"""place of the gripper in PickCube's state"""


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    """A short reach in joint positions, with what was observed."""
    torch.set_num_threads(1)
    settings = EnvConfig("PickCube-v1", "state", "pd_joint_pos").completed()
    with closing(make(settings, 1, "physx_cpu")) as env:
        tape = Tape(env)
        tape.start(SEED, None)
        target = env.agent.robot.get_qpos()[0, :8].clone()
        target[7] = 1.0
        for _ in range(STEPS):
            target[1] += 0.02
            target[3] += 0.01
            tape.step(target)
    return tape.episode(50).data


@pytest.fixture
def raw(tmp_path: Path, seen: dict[str, Any]) -> Path:
    """As the hub has it: without observations and rewards."""
    path = tmp_path / "trajectory.h5"
    kwargs = {"obs_mode": "none", "control_mode": "pd_joint_pos", "sim_backend": "cpu"}
    info = {"env_id": "PickCube-v1", "env_kwargs": kwargs, "max_episode_steps": 50}
    with TrajectoryWriter(path, info, {"source_type": "motionplanning", "source_desc": "test"}) as writer:
        writer.add(
            {name: value for name, value in seen.items() if name not in ("obs", "rewards")}, SEED, "pd_joint_pos"
        )
    return path


def replayed(path: Path, control_mode: str, *more: str) -> Any:
    """The one episode of a replay."""
    output = path.with_name(f"{control_mode}.h5")
    words = ["--replay", str(path), "--obs_mode", "state", "--control_mode", control_mode, "--output", str(output)]
    collect_demos.main(parse(collect_demos.Config, [*words, "--overwrite", *more]))
    (one,) = load_demos(output, need_rewards=True, control_mode=control_mode).trajectories
    return one


def test_a_replay_observes_what_the_recording_saw(raw, seen, capsys):
    one = replayed(raw, "pd_joint_pos", "--no-only_success")
    assert one.actions.equal(seen["actions"])
    torch.testing.assert_close(one.obs, seen["obs"], atol=2e-3, rtol=1e-3)  # velocities start from written positions
    torch.testing.assert_close(one.rewards, seen["rewards"], atol=1e-3, rtol=1e-3)
    assert "0 of 1 replayed episodes succeeded" in capsys.readouterr().out
    episode = json.loads((raw.parent / "pd_joint_pos.json").read_text())["episodes"][0]
    assert (episode["episode_seed"], episode["elapsed_steps"]) == (SEED, STEPS)


def test_without_states_the_actions_are_replayed_from_the_seed(raw, seen):
    with h5py.File(raw, "r+") as file:
        del file["traj_0/env_states"]
    one = replayed(raw, "pd_joint_pos", "--no-only_success")
    torch.testing.assert_close(one.obs, seen["obs"], atol=1e-5, rtol=1e-5)


def test_a_replay_in_another_control_mode_follows_the_same_path_with_its_own_actions(raw, seen):
    one = replayed(raw, "pd_ee_delta_pose", "--no-only_success")
    assert one.actions.shape[1] == 7 and one.actions.abs().max() <= 1
    # it starts where the recording did and its gripper, which went several centimetres, ends within one of its place
    torch.testing.assert_close(one.obs[0, :9], seen["obs"][0, :9], atol=1e-5, rtol=0)
    path = seen["obs"][:, TCP]
    assert (path[-1] - path[0]).norm() > 0.03
    assert (one.obs[-1, TCP] - path[-1]).norm() < 0.01


def test_failures_are_counted_and_left_out(raw):
    with pytest.raises(UserError, match="none of the 1 replayed episodes ends in success"):
        replayed(raw, "pd_joint_pos")
    assert not (raw.parent / "pd_joint_pos.h5").exists()


def test_what_is_not_converted_or_no_recording_is_refused(raw, tmp_path):
    with pytest.raises(UserError, match="is no ManiSkill trajectory file"):
        replayed(tmp_path / "nothing.h5", "pd_joint_pos")
    about = json.loads(raw.with_suffix(".json").read_text())
    about["env_info"]["env_kwargs"]["control_mode"] = "pd_ee_delta_pose"
    raw.with_suffix(".json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="converts only those of pd_joint_pos and pd_joint_delta_pos"):
        replayed(raw, "pd_joint_pos")
