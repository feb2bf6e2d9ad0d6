"""All stages on pictures that ManiSkill renders: collected, cloned, weighted, fine-tuned, evaluated and filmed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch

import collect_demos
import evaluate
import train_aw_shortcut_flow
import train_online_finetune
import train_shortcut_flow
from reinflow.cli import parse
from reinflow.envs import EnvConfig, headless
from reinflow.envs.maniskill import make
from reinflow.errors import UserError
from reinflow.recording.rerender import Projector, joined, leaves, mapped
from reinflow.storage.checkpoint import load_policy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not headless.render_device_available(), reason="needs a Vulkan driver"),
]

NET = "--net mlp --obs_horizon 2 --act_horizon 4 --pred_horizon 8 --mlp_hidden_dim 32 --visual_feature_dim 16"
EVAL = "--num_eval_envs 2 --num_eval_episodes 2 --max_episode_steps 8 --num_workers 0"
OFFLINE = f"--total_iters 4 --batch_size 8 --log_freq 2 --eval_freq 0 {EVAL}"
ONLINE = (
    "--num_envs 2 --rollout_steps 2 --total_timesteps 32 --minibatch_size 2 --critic_warmup_steps 16 "
    f"--num_inference_steps 2 {EVAL}"
)


def call(script: Any, command: str) -> None:
    """Run a script in this process: every other one would spend ten seconds on its renderer."""
    script.main(parse(script.Config, arguments=command.split()))


@pytest.fixture(scope="module", params=["rgb", "rgb+depth"])
def passed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder in which all stages ran with an observation mode."""
    mode, folder = request.param, tmp_path_factory.mktemp("images")
    demos, runs = folder / "demos.h5", f"--runs_dir {folder} --obs_mode {mode}"
    call(collect_demos, f"--num_demos 2 --obs_mode {mode} --output {demos}")
    call(train_shortcut_flow, f"--demo_path {demos} --exp_name one {runs} {OFFLINE} {NET}")
    call(train_aw_shortcut_flow, f"--pretrained_path {folder}/one --demo_path {demos} --exp_name two {runs} {OFFLINE}")
    frozen = "--freeze_visual_encoder" if mode == "rgb" else "--asymmetric_critic --online_random_shift 2"
    call(train_online_finetune, f"--pretrained_path {folder}/two --exp_name three {frozen} {runs} {ONLINE}")
    return folder, mode


def test_every_stage_leaves_its_policy(passed: tuple[Path, str]):
    folder, mode = passed
    for name in ("one", "two", "three"):
        assert json.loads((folder / name / "status.json").read_text())["state"] == "done"
        spec = load_policy(folder / name, "cpu")[0].spec
        assert spec.image is not None
        assert "+".join(spec.image.names) == mode
        assert spec.cond_dim == 2 * (29 + 16)


def test_a_frozen_encoder_stays_and_a_trained_one_moves(passed: tuple[Path, str]):
    folder, mode = passed
    latest = sorted((folder / "three" / "checkpoints").iterdir())[-1]
    before = load_policy(folder / "two", "cpu")[0].encoder.visual.state_dict()
    after = load_policy(latest, "cpu")[0].encoder.visual.state_dict()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) == (0 if mode == "rgb" else len(before))


def test_the_ratio_of_the_first_minibatch_is_one(passed: tuple[Path, str]):
    folder, _ = passed
    lines = [json.loads(line) for line in (folder / "three" / "metrics.jsonl").read_text().splitlines()]
    deviations = [line["losses/ratio_deviation"] for line in lines if "losses/ratio_deviation" in line]
    assert deviations
    assert max(deviations) < 1e-4


def test_pictures_are_recorded_as_bytes_in_maniskills_form(passed: tuple[Path, str]):
    folder, mode = passed
    with h5py.File(folder / "demos.h5") as file:
        cameras = file["traj_0/obs/sensor_data"]
        assert list(cameras) == ["base_camera"]
        assert set(cameras["base_camera"]) == set(mode.split("+"))
        rgb = cameras["base_camera/rgb"]
        assert (rgb.dtype, rgb.shape[1:], len(rgb)) == ("uint8", (128, 128, 3), len(file["traj_0/actions"]) + 1)
        assert list(file["traj_0/obs"]) == ["agent", "extra", "sensor_param", "sensor_data"]
    about = json.loads((folder / "demos.json").read_text())
    assert about["env_info"]["env_kwargs"]["obs_mode"] == mode


def test_two_checkpoints_are_filmed_side_by_side_from_the_same_starts(passed: tuple[Path, str]):
    folder, _ = passed
    video = "--capture_video --num_video_envs 1"
    call(evaluate, f"--compare {folder}/one {folder}/three --output_dir {folder} {video} {EVAL}")
    report = json.loads((folder / "comparison.json").read_text())
    assert [row["episodes"] for row in report["results"]] == [2, 2]
    # two columns of 256 pixels and their borders, the first frame and eight steps
    assert film_size(folder / "comparison.mp4") == (2 * 264, 264, 9)


def film_size(path: Path) -> tuple[int, int, int]:
    """Width, height and number of frames of a video."""
    import imageio_ffmpeg

    frames, _ = imageio_ffmpeg.count_frames_and_secs(str(path))
    width, height = next(imageio_ffmpeg.read_frames(str(path)))["size"]
    return width, height, frames


def test_another_mode_than_the_checkpoints_is_refused(passed: tuple[Path, str]):
    folder, mode = passed
    other = "depth" if mode == "rgb" else "rgb"
    with pytest.raises(UserError, match=rf"--obs_mode {other} contradicts the checkpoint"):
        call(
            train_online_finetune,
            f"--pretrained_path {folder}/two --exp_name no --runs_dir {folder} --obs_mode {other}",
        )
    assert not (folder / "no").exists()


def test_a_recorded_state_seen_again_is_the_picture_that_was_taken_live():
    config = EnvConfig("PickCube-v1", "rgb+depth").completed()
    env, again = make(config, 2, "physx_cpu_batched"), make(config, 4, "physx_cpu_batched")
    projector = Projector(again)
    obs, _ = env.reset(seed=5)
    live, states = [copied(obs)], [copied(env.get_state_dict())]
    for _ in range(5):
        obs, *_ = env.step(torch.rand(2, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1)
        live.append(copied(obs))
        states.append(copied(env.get_state_dict()))
    one = [[mapped(tree, lambda value: value[:1]) for tree in trees] for trees in (live, states)]
    numbers = torch.arange(6 * 42, dtype=torch.float32).reshape(6, 42)  # told apart from what the simulator would say
    seen = projector.observations(joined(one[1]), numbers)
    env.close()
    again.close()
    for part in ("sensor_data", "sensor_param"):
        for (path, mine), (_, theirs) in zip(leaves(seen[part]), leaves(joined(one[0])[part]), strict=True):
            assert torch.equal(mine, theirs), path
    assert torch.equal(seen["agent"]["qpos"], numbers[:, :9])
    assert torch.equal(seen["extra"]["goal_pos"], numbers[:, 26:29])


def copied(tree: Any) -> Any:
    return mapped(tree, torch.clone)


def test_no_picture_is_taken_of_states_alone(monkeypatch: pytest.MonkeyPatch):
    env = make(EnvConfig("PickCube-v1").completed(), 2, "physx_cpu_batched")
    monkeypatch.setattr(type(env), "_get_obs_sensor_data", None)
    env.reset(seed=0)
    env.step(torch.zeros(2, 7))
    assert not env.scene.sensors
    env.close()
