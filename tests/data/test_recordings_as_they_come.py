"""ManiSkill recordings as people have them: without observations, unclipped, half failed, held open by a recorder."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest

from reinflow.data.chunks import ChunkDataset
from reinflow.data.config import DemoConfig
from reinflow.data.demos import load_demos, open_demos
from reinflow.errors import UserError
from tests.data import test_pictures as pictures
from tests.data.test_demos import ACTION, RULES, STATE, episode, opened, task, written

FAILED = {"success": np.zeros(5, bool), "terminated": np.zeros(5, bool)}


def described(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the .json beside a recording."""
    beside = path.with_suffix(".json")
    info = json.loads(beside.read_text())
    change(info)
    beside.write_text(json.dumps(info))
    return path


def settings(path: Path, **changes: Any) -> Path:
    """Change what gym.make was called with; None takes it out."""

    def change(info: dict[str, Any]) -> None:
        kwargs = info["env_info"]["env_kwargs"] | changes
        info["env_info"]["env_kwargs"] = {name: value for name, value in kwargs.items() if value is not None}

    return described(path, change)


def test_what_gym_make_did_not_name_is_read_from_the_episodes(tmp_path):
    path = settings(written(tmp_path), control_mode=None, obs_mode=None)
    demos = load_demos(path, control_mode="pd_ee_delta_pose", obs_mode="state")
    assert demos.control_mode == "pd_ee_delta_pose"
    with pytest.raises(UserError, match="control_mode pd_ee_delta_pose, not pd_joint_pos"):
        load_demos(path, control_mode="pd_joint_pos")
    described(path, lambda info: info["episodes"].append({"control_mode": "pd_joint_pos"}))
    with pytest.raises(UserError, match="episodes of pd_ee_delta_pose and pd_joint_pos: replay"):
        load_demos(path)


def test_a_recording_without_observations_names_the_one_command_that_makes_them(tmp_path):
    path = settings(written(tmp_path, episode(obs=None)), obs_mode="none", control_mode="pd_joint_pos")
    command = rf"python collect_demos.py --replay {path} --obs_mode state --control_mode pd_ee_delta_pose"
    with pytest.raises(UserError, match=rf"{command}$"):
        load_demos(path, control_mode="pd_ee_delta_pose")
    with pytest.raises(UserError, match=r"--replay .*trajectory\.h5 --obs_mode state"):
        load_demos(settings(path, obs_mode=None))


def test_the_parts_of_a_state_dict_are_joined_in_their_order(tmp_path):
    whole = episode()["obs"]
    parts = {"agent": {"qpos": whole[:, :2]}, "extra": {"is_grasped": whole[:, 2] > 8}}
    path = settings(written(tmp_path, episode(obs=parts)), obs_mode="state_dict")
    (one,) = load_demos(path).trajectories
    # 3 t + 2 is above 8 from the fourth of six frames on
    assert one.obs[:, 2].tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(one.obs[:, :2], whole[:, :2])


@pytest.mark.parametrize("mode", ["rgb+depth+segmentation", "sensor_data", None])
def test_what_cameras_give_beside_pictures_is_left_unread(tmp_path, mode):
    path = settings(pictures.written(tmp_path), obs_mode=mode)
    with h5py.File(path, "r+") as file:
        for group in file.values():
            for camera in group["obs/sensor_data"].values():
                camera["segmentation"] = np.zeros((*camera["rgb"].shape[:3], 1), np.int16)
    assert load_demos(path, obs_mode="rgb+depth").trajectories[0].pictures is not None


def test_a_recording_of_point_clouds_is_refused_with_the_way_to_see_it_otherwise(tmp_path):
    with pytest.raises(UserError, match=r"obs_mode pointcloud, not rgb: .*--replay .* --obs_mode rgb"):
        load_demos(settings(written(tmp_path), obs_mode="pointcloud"), obs_mode="rgb")


def test_cloning_leaves_out_what_never_succeeds_and_stage_2_does_not(tmp_path, capsys):
    path = written(tmp_path, episode(), episode(**FAILED), episode(steps=3))

    def cloned(**flags: Any) -> list[int]:
        config = DemoConfig(demo_path=(str(path),), **flags)
        demos = open_demos(config, SimpleNamespace(**RULES))
        return [len(one) for one in demos.trajectories]

    assert cloned() == [5, 3]
    assert "1 of the 3 episodes" in capsys.readouterr().out
    assert cloned(only_success=False) == [5, 5, 3]
    assert cloned(num_demos=2) == [5, 3]  # two of those that are used
    assert len(opened(path).trajectories) == 3
    with pytest.raises(UserError, match="holds 2 trajectories, not the 3 of --num_demos"):
        cloned(num_demos=3)


def test_where_nothing_succeeds_all_is_cloned_unless_successes_are_asked_for(tmp_path, capsys):
    path = written(tmp_path, episode(**FAILED))
    assert len(load_demos(path, only_success=None).trajectories) == 1
    assert "never succeed and are used, too" in capsys.readouterr().out
    with pytest.raises(UserError, match="none of the 1 episodes .* pass --no-only_success"):
        load_demos(path, only_success=True)


def test_an_episode_without_steps_is_named_and_left_out(tmp_path, capsys):
    nothing = {name: value[:0] for name, value in episode().items() if name not in ("obs", "env_states")}
    path = written(tmp_path, episode(), episode())
    with h5py.File(path, "r+") as file:
        for name, value in (nothing | {"obs": episode()["obs"][:1]}).items():
            del file["traj_1"][name]
            file["traj_1"][name] = value
    assert len(load_demos(path).trajectories) == 1
    assert "traj_1 has no steps and is left out" in capsys.readouterr().out
    with h5py.File(path, "r+") as file:
        del file["traj_0"]
    with pytest.raises(UserError, match="holds no episode with steps"):
        load_demos(path)


def two_files(folder: Path) -> list[str]:
    for name, steps in (("a b", 5), ("数据", 3)):
        (folder / name).mkdir()
        written(folder / name, episode(steps=steps))
    return [str(folder / name / "trajectory.h5") for name in ("a b", "数据")]


def test_several_files_and_patterns_are_one_set_of_demonstrations(tmp_path):
    paths = two_files(tmp_path)
    for names in (paths, [str(tmp_path / "*" / "trajectory*")]):
        assert [len(one) for one in load_demos(names).trajectories] == [5, 3]
    for nothing in ("*.hdf5", "*/*.json"):
        with pytest.raises(UserError, match=r"fits no file"):
            load_demos(str(tmp_path / nothing))
    settings(Path(paths[1]), control_mode="pd_joint_pos")
    with pytest.raises(UserError, match="control_mode pd_joint_pos, and .* with pd_ee_delta_pose: train on one kind"):
        load_demos(paths)


def test_pictures_of_several_files_stay_with_their_episodes(tmp_path):
    paths = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        paths.append(pictures.written(tmp_path / name))
    with h5py.File(paths[1], "r+") as file:
        for camera in file["traj_0/obs/sensor_data"].values():
            camera["rgb"][...] = 77
    demos = load_demos(paths, obs_mode="rgb+depth")
    still = (None,) * demos.trajectories[0].actions.shape[1]
    first = sum(len(one) for one in load_demos(paths[0], obs_mode="rgb+depth").trajectories)
    for max_gb in (1.0, 0.0):
        dataset = ChunkDataset(demos, 1, 2, 1, gamma=1.0, max_picture_gb=max_gb, still=still)
        seen = dataset.overview().obs["rgb"]
        assert len(seen) == len(dataset) and (seen[first] == 77).all() and not (seen[0] == 77).all()


def test_another_robot_or_simulator_is_one_sentence(tmp_path, capsys):
    path = settings(written(tmp_path), robot_uids="panda_wristcam", sim_backend="gpu")
    env = replace(task(ACTION), state_dim=STATE, sim_backend="physx_cpu_batched", robot="panda")
    load_demos(path).fit_(env)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2
    assert "of the robot panda_wristcam and PickCube-v1 has panda" in said[0]
    assert "recorded on physx_cuda and PickCube-v1 runs on physx_cpu" in said[1]
    load_demos(settings(path, robot_uids="panda", sim_backend="cpu")).fit_(env)
    load_demos(settings(path, robot_uids=None, sim_backend=None)).fit_(env)
    assert capsys.readouterr().out == ""


def test_a_file_that_another_process_writes_is_said_to_be_that(tmp_path):
    path = written(tmp_path)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # as HDF5 locks what it writes
        with pytest.raises(UserError, match="held open by another process, which may still be writing it"):
            load_demos(path)
    assert load_demos(path).trajectories


def test_a_description_with_a_byte_order_mark_and_other_line_ends_is_read(tmp_path):
    beside = written(tmp_path).with_suffix(".json")
    beside.write_bytes(b"\xef\xbb\xbf" + beside.read_bytes().replace(b"\n", b"\r\n"))
    assert load_demos(tmp_path / "trajectory.h5").trajectories
