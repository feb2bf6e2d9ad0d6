"""Recordings in every format, written here with h5py, numpy or pyarrow alone, read back to the same arrays."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from reinflow.data.demos import load_demos
from reinflow.data.formats import FORMATS
from reinflow.data.formats import d4rl as d4rl_module
from reinflow.data.formats.npz import unscaled
from reinflow.data.places import located
from reinflow.errors import UserError

LENGTHS = (4, 3)
"""steps of the two episodes: the first terminates, the second runs out of time"""
STATE, ACTION = 3, 2
GENERATOR = np.random.default_rng(0)
OBS = [GENERATOR.standard_normal((steps + 1, STATE)).astype(np.float32) for steps in LENGTHS]
ACTIONS = [GENERATOR.uniform(-1, 1, (steps, ACTION)).astype(np.float32) for steps in LENGTHS]
REWARDS = [np.eye(steps, dtype=np.float32)[-1] * (index == 0) for index, steps in enumerate(LENGTHS)]
TERMINATED = [reward > 0 for reward in REWARDS]
TRUNCATED = [np.zeros(4, bool), np.eye(3, dtype=bool)[-1]]


def lined_up(columns: list[np.ndarray], without_last: bool = False) -> np.ndarray:
    return np.concatenate([column[:-1] if without_last else column for column in columns])


def d4rl(folder: Path) -> Path:
    with h5py.File(folder / "d4rl.hdf5", "w") as file:
        file["observations"] = lined_up(OBS, without_last=True)
        file["next_observations"] = lined_up([obs[1:] for obs in OBS])
        for name, columns in {"actions": ACTIONS, "rewards": REWARDS, "terminals": TERMINATED}.items():
            file[name] = lined_up(columns)
        file["timeouts"] = lined_up(TRUNCATED)
        file["infos/qpos"] = np.zeros((7, 6))
        file["metadata/algorithm"] = "SAC"
    return folder / "d4rl.hdf5"


def robomimic(folder: Path) -> Path:
    with h5py.File(folder / "robomimic.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "PickPlaceCan", "env_kwargs": {"robots": ["Panda"]}})
        # ten demonstrations, of which the last by number is the last by letters only if 10 came before 9
        for number in (10, 2):
            index = int(number == 10)
            group = data.create_group(f"demo_{number}")
            group["actions"], group["rewards"] = ACTIONS[index].astype(np.float64), REWARDS[index].astype(np.float64)
            group["dones"] = np.eye(LENGTHS[index], dtype=np.int64)[-1]  # 1 at the end of both, though one fails
            for part, obs in {"obs": OBS[index][:-1], "next_obs": OBS[index][1:]}.items():
                group[f"{part}/object"] = obs[:, 2:]
                group[f"{part}/robot0_eef_pos"], group[f"{part}/robot0_eef_quat"] = obs[:, :1], obs[:, 1:2]
                group[f"{part}/robot0_gripper_qpos"] = np.zeros((len(obs), 0))
                group[f"{part}/agentview_image"] = np.zeros((len(obs), 8, 8, 3), np.uint8)
    return folder / "robomimic.hdf5"


def minari(folder: Path) -> Path:
    (folder / "minari" / "data").mkdir(parents=True)
    with h5py.File(folder / "minari" / "data" / "main_data.hdf5", "w") as file:
        for index, (obs, actions) in enumerate(zip(OBS, ACTIONS, strict=True)):
            group = file.create_group(f"episode_{index}")
            group["actions"], group["rewards"] = actions, REWARDS[index].astype(np.float64)
            group["terminations"], group["truncations"] = TERMINATED[index], TRUNCATED[index]
            # a dict, of which gymnasium's flatten puts `achieved` first
            group["observations/observation"], group["observations/achieved"] = obs[:, 1:], obs[:, :1]
    spec = json.dumps({"id": "PointMaze_UMaze-v3", "max_episode_steps": 300})
    about = {"env_spec": spec, "data_format": "hdf5", "minari_version": "0.5.3"}
    (folder / "minari" / "data" / "metadata.json").write_text(json.dumps(about))
    return folder / "minari"


def lerobot(folder: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    place = folder / "lerobot"
    (place / "meta").mkdir(parents=True)
    (place / "data" / "chunk-000").mkdir(parents=True)
    features = {"observation.state": {}, "action": {}, "next.success": {}}
    (place / "meta" / "info.json").write_text(json.dumps({"codebase_version": "v3.0", "features": features}))

    def lists(columns: list[np.ndarray], without_last: bool = False) -> list[list[float]]:
        return lined_up(columns, without_last).tolist()

    columns = {
        "observation.state": pyarrow.array(lists(OBS, True), pyarrow.list_(pyarrow.float32(), STATE)),
        "action": pyarrow.array(lists(ACTIONS), pyarrow.list_(pyarrow.float32())),
        "next.reward": pyarrow.array(lined_up(REWARDS)),
        "next.success": pyarrow.array(lined_up(TERMINATED)),
        "episode_index": pyarrow.array(np.repeat([0, 1], LENGTHS)),
        "frame_index": pyarrow.array(np.concatenate([np.arange(steps) for steps in LENGTHS])),
    }
    table = pyarrow.table(columns)
    # two files whose rows are not in order
    parquet.write_table(table.take([6, 5, 0, 1]), place / "data" / "chunk-000" / "file-000.parquet")
    parquet.write_table(table.take([4, 3, 2]), place / "data" / "chunk-000" / "file-001.parquet")
    return place


def npz(folder: Path) -> Path:
    states, actions = lined_up(OBS, without_last=True), lined_up(ACTIONS)
    bounds = {"obs_min": states.min(0), "obs_max": states.max(0), "action_min": actions.min(0)}
    bounds["action_max"] = actions.max(0)

    def scaled(values: np.ndarray, name: str) -> np.ndarray:
        low, high = bounds[f"{name}_min"], bounds[f"{name}_max"]
        return 2 * (values - low) / (high - low + 1e-6) - 1

    np.savez_compressed(
        folder / "train.npz",
        states=scaled(states, "obs"),
        actions=scaled(actions, "action"),
        rewards=lined_up(REWARDS),
        terminals=lined_up(TERMINATED),
        traj_lengths=np.array(LENGTHS),
    )
    np.savez(folder / "normalization.npz", **bounds)
    return folder / "train.npz"


MAKERS = {"npz": npz, "d4rl": d4rl, "robomimic": robomimic, "minari": minari, "lerobot": lerobot}
LAST_OBSERVATION = {"d4rl", "robomimic", "minari"}
"""formats that record what followed the last action"""
SUCCESS = {"robomimic", "lerobot"}


@pytest.fixture(params=MAKERS)
def recording(request, tmp_path: Path) -> tuple[str, Path]:
    return request.param, MAKERS[request.param](tmp_path)


def test_every_format_is_recognised_by_its_content_and_by_no_other(recording):
    name, path = recording
    assert [other for other, entry in FORMATS.items() if entry.build().recognises(path)] == [name]


def test_every_format_gives_the_arrays_that_were_written(recording, capsys):
    name, path = recording
    first, second = load_demos(path, need_rewards=True).trajectories
    steps = 3 if name in LAST_OBSERVATION else 2  # else the last step of an unfinished episode has no successor
    np.testing.assert_allclose(first.obs[:4], OBS[0][:4], atol=1e-6)
    np.testing.assert_array_equal(first.obs[4], OBS[0][4] if name in LAST_OBSERVATION else first.obs[3])
    np.testing.assert_allclose(second.obs, OBS[1][: steps + 1], atol=1e-6)
    np.testing.assert_allclose(first.actions, ACTIONS[0], atol=1e-6)
    np.testing.assert_allclose(second.actions, ACTIONS[1][:steps], atol=1e-6)
    assert first.rewards.tolist() == [0, 0, 0, 1] and second.rewards.tolist() == [0] * steps
    assert first.terminated.tolist() == [False, False, False, True] and not second.terminated.any()
    assert second.truncated.tolist() == [False] * (steps - 1) + [True]
    assert first.success.any() == (name in SUCCESS)
    assert ("1 of the 2 episodes" in capsys.readouterr().out) == (name in SUCCESS)


def test_a_recording_without_successes_is_not_one_of_failures(tmp_path):
    assert len(load_demos(d4rl(tmp_path), only_success=True).trajectories) == 2
    assert len(load_demos(robomimic(tmp_path), only_success=True).trajectories) == 1


def test_pictures_of_formats_that_give_only_states_are_refused(recording):
    with pytest.raises(UserError, match=r"recorded with obs_mode state, not rgb: pass --obs_mode state"):
        load_demos(recording[1], obs_mode="rgb")


def test_the_task_that_a_recording_names_is_compared(tmp_path):
    assert load_demos(robomimic(tmp_path)).env_id == "Can"
    assert load_demos(minari(tmp_path)).max_episode_steps == 300
    with pytest.raises(UserError, match="recorded with env_id PointMaze_UMaze-v3, not Pusher-v5"):
        load_demos(tmp_path / "minari", env_id="Pusher-v5")


def of_task(folder: Path, env_id: str) -> Path:
    """Minari's dataset, said to be of another task."""
    place = minari(folder) / "data" / "metadata.json"
    place.write_text(json.dumps({"env_spec": json.dumps({"id": env_id}), "minari_version": "0.5.3"}))
    return folder / "minari"


def test_versions_of_a_task_are_one_where_nothing_changed(tmp_path):
    path = of_task(tmp_path, "Hopper-v4")
    assert len(load_demos(path, env_id="Hopper-v5").trajectories) == 2
    with pytest.raises(UserError, match="env_id Hopper-v4, not Walker2d-v5"):
        load_demos(path, env_id="Walker2d-v5")
    (tmp_path / "two").mkdir()
    with pytest.raises(UserError, match="Pusher-v4, not Pusher-v5: v2 to v4 are another task"):
        load_demos(of_task(tmp_path / "two", "Pusher-v4"), env_id="Pusher-v5")


def without(path: Path, *names: str) -> Path:
    with h5py.File(path, "r+") as file:
        for name in names:
            del file[name]
    return path


def lengths(path: Path) -> list[int]:
    return [len(trajectory) for trajectory in load_demos(path).trajectories]


def test_d4rl_without_timeouts_cuts_where_the_next_observation_is_not_the_following_one(tmp_path, monkeypatch):
    assert lengths(without(d4rl(tmp_path), "timeouts")) == [4, 3]
    # without either an episode is as long as the time limit, here 2: terminated at 4, then 2 steps and a rest of 1,
    # each of which gives up its last step for want of a successor
    monkeypatch.setattr(d4rl_module, "LIMIT", 2)
    path = without(tmp_path / "d4rl.hdf5", "next_observations")
    assert lengths(path) == [1, 2, 1]


def test_an_npz_without_bounds_is_taken_as_it_is_and_says_so(tmp_path, capsys):
    path = npz(tmp_path)
    (tmp_path / "normalization.npz").unlink()
    assert load_demos(path).trajectories[0].actions.abs().max() <= 1
    assert "has no normalization.npz beside it" in capsys.readouterr().out


def test_bounds_are_widened_as_those_who_scaled_did():
    # a range of 1e-6 was taken for 2e-6, so that 0 is half of that above the lowest
    bounds = {"obs_min": torch.tensor([3e-6]), "obs_max": torch.tensor([4e-6])}
    back = unscaled(torch.zeros(1, 1), bounds, "obs", Path("x.npz"))
    torch.testing.assert_close(back, torch.tensor([[4e-6]]), atol=1e-9, rtol=0)


def test_a_folder_of_the_authors_is_named_by_itself(tmp_path):
    npz(tmp_path)
    assert lengths(tmp_path) == [4, 2]


def test_a_dataset_of_minari_is_found_by_its_name_and_a_missing_one_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    minari(tmp_path).rename(tmp_path / "random-v0")
    (tmp_path / "local").mkdir()
    (tmp_path / "random-v0").rename(tmp_path / "local" / "random-v0")
    assert located(["local/random-v0"]) == [tmp_path / "local" / "random-v0"]
    with pytest.raises(UserError, match=r"no Minari dataset mujoco/pusher/expert-v0 in .*minari download"):
        load_demos("mujoco/pusher/expert-v0")


def test_discrete_actions_are_refused(tmp_path):
    path = minari(tmp_path)
    with h5py.File(path / "data" / "main_data.hdf5", "r+") as file:
        del file["episode_1/actions"]
        file["episode_1/actions"] = np.zeros(3, np.int64)
    with pytest.raises(UserError, match="episode_1 has discrete actions"):
        load_demos(path)


def test_a_dataset_of_minari_in_another_layout_is_refused(tmp_path):
    place = minari(tmp_path) / "data" / "metadata.json"
    place.write_text(json.dumps({"data_format": "arrow", "minari_version": "0.5.3"}))
    with pytest.raises(UserError, match="in the arrow format: write it again"):
        load_demos(tmp_path / "minari")


def test_a_lerobot_dataset_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    path = lerobot(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install 'reinflow\[lerobot\]'"):
        load_demos(path)


def header(shape: str, dtype: str = "'<f4'") -> bytes:
    """An array's file that claims a shape and holds four bytes."""
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + b"\0" * 4


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (header("(100000000000, 3)"), "claims 1,200,000,000,000 bytes"),
        (header("(1,)", "'|O'"), "holds object, not numbers"),
        (b"no array", "magic string"),
    ],
)
def test_an_array_that_lies_or_runs_code_is_refused_before_it_is_read(tmp_path, array, reason):
    whole = npz(tmp_path).read_bytes()
    with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(tmp_path / "train.npz", "w") as new:
        for name in old.namelist():
            new.writestr(name, array if name == "states.npy" else old.read(name))
    with pytest.raises(UserError, match=reason):
        load_demos(tmp_path / "train.npz")


HUB = "hf://someone/somewhere/hopper/train.npz"


def test_a_file_of_the_hub_is_the_copy_here_or_a_sentence_that_says_where_to_put_one(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)

    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    place = Path("demos/hub/someone/somewhere/hopper")
    with pytest.raises(UserError, match=rf"can't be fetched \(OSError: no route.*place it at {place}/train.npz"):
        load_demos(HUB)
    place.mkdir(parents=True)
    npz(place)
    assert [len(one) for one in load_demos(HUB).trajectories] == [4, 2]
    with pytest.raises(UserError, match="names no file"):
        load_demos("hf://someone")


def test_a_file_of_the_hub_is_fetched_with_what_lies_beside_it(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    asked = {}

    def fetch(repo: str, local_dir: Path, **kwargs: object) -> None:
        asked.update(kwargs, repo=repo)
        (local_dir / "hopper").mkdir(parents=True)
        npz(local_dir / "hopper")

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    assert len(load_demos(HUB).trajectories) == 2
    assert asked["repo"] == "someone/somewhere" and "hopper/train.json" in asked["allow_patterns"]
