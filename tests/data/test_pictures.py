"""Pictures of demonstrations: found, checked, held or streamed, and what a window shows of them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from reinflow.data.chunks import ChunkDataset
from reinflow.data.demos import load_demos
from reinflow.data.pictures import HeldPictures, StreamedPictures
from reinflow.data.trajectories import Demos
from reinflow.errors import UserError
from reinflow.recording.writer import TrajectoryWriter
from reinflow.types import ImageSpec

SIZE = (4, 6)
STEPS = (5, 3)
STILL = (None,) * 7
SPEC = ImageSpec(("left", "hand"), *SIZE, rgb=True, depth=True)


def picture(number: int, channels: int, dtype: type) -> np.ndarray:
    """A frame whose every value is its own number."""
    return np.full((*SIZE, channels), number, dtype)


def episode(steps: int, first: int, **changes: object) -> dict:
    """Frame t of the trajectory has rgb `first + t` from the left and 100 more by hand, depth ten times as much."""
    numbers = range(first, first + steps + 1)
    sensors = {
        camera: {
            "rgb": np.stack([picture(n + offset, 3, np.uint8) for n in numbers]),
            "depth": np.stack([picture(10 * (n + offset), 1, np.int16) for n in numbers]),
        }
        for camera, offset in (("left", 0), ("hand", 100))
    }
    sensors = changes.pop("sensors", sensors)  # type: ignore[assignment]
    rows = np.arange(steps + 1, dtype=np.float32)
    obs = {
        "agent": {"qpos": np.stack([rows, rows + 0.5], 1)},
        "extra": {"is_grasped": rows > 2, "goal": np.stack([-rows] * 3, 1)},
        "sensor_data": sensors,
    }
    flags = np.zeros(steps, bool)
    return {
        "obs": obs,
        "actions": np.zeros((steps, 7), np.float32),
        "terminated": flags,
        "truncated": flags,
        "success": np.arange(steps) == steps - 1,
        "rewards": np.arange(steps, dtype=np.float32),
    }


def written(folder: Path, *episodes: dict, obs_mode: str = "rgb+depth") -> Path:
    path = folder / "trajectory.h5"
    settings = {"obs_mode": obs_mode, "control_mode": "pd_ee_delta_pose"}
    info = {"env_id": "PickCube-v1", "env_kwargs": settings, "max_episode_steps": 50}
    with TrajectoryWriter(path, info, {}) as writer:
        for data in episodes or (episode(STEPS[0], 0), episode(STEPS[1], 50)):
            writer.add(data, seed=0, control_mode="pd_ee_delta_pose")
    return path


def loaded(path: Path, obs_mode: str = "rgb+depth") -> Demos:
    return load_demos(path, obs_mode=obs_mode)


def test_states_beside_pictures_are_flattened_in_the_order_of_the_recording(tmp_path: Path):
    first = loaded(written(tmp_path)).trajectories[0]
    # qpos (2), is_grasped (1), goal (3); by name `goal` would come first
    assert first.obs[3].tolist() == [3.0, 3.5, 1.0, -3.0, -3.0, -3.0]
    assert first.pictures is not None
    assert first.pictures.spec == SPEC


@pytest.mark.parametrize("max_gb", [1.0, 0.0], ids=["held", "streamed"])
def test_a_damaged_picture_is_one_sentence(tmp_path: Path, max_gb: float):
    path = written(tmp_path)
    with h5py.File(path, "r") as file:
        chunk = file["traj_1/obs/sensor_data/hand/rgb"].id.get_chunk_info(0)
    damaged = bytearray(path.read_bytes())
    damaged[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"trajectory.h5 is cut short, damaged"):
        dataset = ChunkDataset(loaded(path), 2, 2, 4, gamma=0.97, max_picture_gb=max_gb, still=STILL)
        dataset.window(torch.arange(len(dataset)))


@pytest.mark.parametrize("max_gb", [1.0, 0.0], ids=["held", "streamed"])
def test_a_window_shows_the_pictures_of_its_frames(tmp_path: Path, max_gb: float):
    horizons = {"obs_horizon": 2, "pred_horizon": 4, "act_horizon": 2}
    data = ChunkDataset(loaded(written(tmp_path)), **horizons, gamma=1.0, max_picture_gb=max_gb, still=STILL)
    assert isinstance(data.pictures, HeldPictures if max_gb else StreamedPictures)
    # windows start at steps 0..4 of the first trajectory and 0..2 of the second, whose frames count from 50
    batch = data.transition(torch.tensor([0, 4, 6, 4]))
    assert batch.obs["rgb"].shape == (4, 2, 2, *SIZE, 3)
    assert batch.obs["rgb"].dtype == torch.uint8
    assert batch.obs["depth"].dtype == torch.int16
    assert batch.obs["rgb"][:, :, 0, 0, 0, 0].tolist() == [[0, 0], [3, 4], [50, 51], [3, 4]]
    assert batch.obs["depth"][:, :, 1, -1, -1, 0].tolist() == [[1000, 1000], [1030, 1040], [1500, 1510], [1030, 1040]]
    # the first executes two steps, the second one: its recording ends
    assert batch.next_obs["rgb"][:, :, 0, 0, 0, 0].tolist() == [[1, 2], [4, 5], [52, 53], [4, 5]]
    assert batch.obs["state"].shape == (4, 2, 6)


def test_held_and_streamed_pictures_are_the_same(tmp_path: Path):
    files = [trajectory.pictures for trajectory in loaded(written(tmp_path)).trajectories]
    rows = torch.randint(0, sum(STEPS) + 2, (32, 2), generator=torch.Generator().manual_seed(0))
    device = torch.device("cpu")
    held, streamed = (store(files, device).gather(rows) for store in (HeldPictures, StreamedPictures))  # type: ignore[arg-type]
    assert held.keys() == streamed.keys() == {"rgb", "depth"}
    assert all(torch.equal(held[name], streamed[name]) for name in held)


def test_an_episode_that_is_cut_at_success_loses_the_pictures_behind_it(tmp_path: Path):
    data = episode(4, 0)
    data["terminated"] = np.array([False, True, True, True])
    path = written(tmp_path, data, episode(3, 50))
    demos = loaded(path)
    demos.trajectories = [trajectory.under_rules(terminate_on_success=True) for trajectory in demos.trajectories]
    chunks = ChunkDataset(demos, obs_horizon=1, pred_horizon=2, act_horizon=1, gamma=1.0, still=STILL)
    # 2 steps and 3 frames are left of the first, so the second's frames follow row 2
    assert len(chunks) == 2 + 3
    assert chunks.window(torch.tensor([2])).obs["rgb"][0, 0, 0, 0, 0, 0] == 50


def cameras(**textures: np.ndarray) -> dict:
    return {"sensors": {"left": textures}}


BAD = {
    "no pictures": ({"sensors": {}}, "traj_1 has no pictures.*--obs_mode rgb"),
    "another type": (cameras(rgb=np.zeros((4, *SIZE, 3), np.float32)), "traj_1, rgb of left is float32"),
    "frames missing": (cameras(rgb=np.zeros((2, *SIZE, 3), np.uint8)), r"rgb of left is uint8 \(2, 4, 6, 3\)"),
    "other cameras": (cameras(rgb=np.zeros((4, *SIZE, 3), np.uint8)), "traj_1 has other pictures than traj_0"),
    "several sizes": (
        {
            "sensors": {
                "left": {"rgb": np.zeros((4, 4, 6, 3), np.uint8)},
                "hand": {"rgb": np.zeros((4, 8, 8, 3), np.uint8)},
            }
        },
        "several sizes",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures_are_named_before_anything_trains(tmp_path: Path, name: str):
    changes, message = BAD[name]
    path = written(tmp_path, episode(5, 0), episode(3, 50, **changes))
    with pytest.raises(UserError, match=message):
        loaded(path)


def test_another_observation_mode_is_refused_with_two_ways_out(tmp_path: Path):
    path = written(tmp_path, obs_mode="rgbd")
    assert loaded(path, "rgb+depth").trajectories
    with pytest.raises(UserError, match=r"obs_mode rgb\+depth, not rgb: pass --obs_mode .*--replay .* --obs_mode rgb"):
        loaded(path, "rgb")


def test_a_streamed_file_is_not_loaded(tmp_path: Path):
    path = written(tmp_path)
    with h5py.File(path, "r") as file:
        assert file["traj_0/obs/sensor_data/left/rgb"].shape[0] == STEPS[0] + 1
    store = StreamedPictures([t.pictures for t in loaded(path).trajectories], torch.device("cpu"))  # type: ignore[misc]
    held = [*vars(store).values(), *store.opened.values()]
    assert not any(isinstance(value, torch.Tensor) for value in held)
    assert [value for value in held if isinstance(value, dict)] == [store.opened]
