"""What a user can get wrong about an env ends in one sentence that names the flag and the fix."""

from __future__ import annotations

import importlib
import sys
from io import StringIO
from types import SimpleNamespace as Namespace
from typing import Any

import pytest
import torch

from reinflow.envs import EnvConfig, headless, make_env
from reinflow.envs.cameras import image_spec
from reinflow.envs.headless import render_device_available
from reinflow.errors import UserError

pytest.importorskip("mani_skill")


def refused(**settings: Any) -> str:
    """The sentence, for envs of this process (workers hand theirs over, see below)."""
    with pytest.raises(UserError) as caught:
        make_env(EnvConfig(**{"num_workers": 0, **settings}), 2, 1, 1, 0.9)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_an_unknown_task_is_answered_with_near_names():
    assert "PickCub-v1 is not a registered task: did you mean PickCube-v1" in refused(env_id="PickCub-v1")
    assert "see ManiSkill's task list" in refused(env_id="qqqq")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_gpu_simulator_without_a_gpu_names_the_one_for_cpus():
    assert "use --sim_backend physx_cpu_batched" in refused(sim_backend="physx_cuda")


def test_an_unknown_control_mode_lists_those_of_the_robot():
    sentence = refused(control_mode="pd_ee")
    assert "--control_mode pd_ee" in sentence
    assert "pd_ee_delta_pose" in sentence


def test_an_unknown_reward_mode_lists_those_of_the_task():
    assert "--reward_mode silly: use one of normalized_dense, dense, sparse" in refused(reward_mode="silly")
    assert "it has no reward at all" in refused(env_id="Empty-v1")


def test_an_unknown_observation_mode_names_its_parts():
    assert "made of state, rgb, depth joined by +, not 'pointcloud'" in refused(obs_mode="pointcloud")
    assert "Toy-v0 has no pictures: use --obs_mode state" in refused(env_id="Toy-v0", obs_mode="rgb")


def test_pictures_without_a_renderer_name_the_driver_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(headless, "render_device_available", lambda: False)
    sentence = refused(obs_mode="rgb")
    assert "--obs_mode rgb needs a Vulkan driver" in sentence
    assert "mesa-vulkan-drivers" in sentence or "vulkan" in sentence.split("install one:")[1]


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [({}, "Some-v1 has no camera: use --obs_mode state"), ({"a": (8, 8), "b": (8, 9)}, r"a 8x8, b 8x9")],
)
def test_cameras_that_are_missing_or_of_several_sizes_are_refused(sizes: dict[str, tuple[int, int]], sentence: str):
    sensors = {name: Namespace(config=Namespace(height=h, width=w)) for name, (h, w) in sizes.items()}
    with pytest.raises(UserError, match=sentence):
        image_spec(Namespace(scene=Namespace(sensors=sensors)), "Some-v1", {})


def test_missing_assets_name_the_download_and_ask_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MS_SKIP_ASSET_DOWNLOAD_PROMPT", "0")
    assets = importlib.import_module("mani_skill.utils.assets")
    monkeypatch.setattr(assets, "is_data_source_downloaded", lambda _: False)
    monkeypatch.setattr(sys, "stdin", StringIO("y\n"))  # a user at the keyboard would have agreed
    sentence = refused(env_id="PickSingleYCB-v1")
    assert "python -m mani_skill.utils.download_asset PickSingleYCB-v1" in sentence


def test_several_robots_are_refused():
    assert "several robots" in refused(env_id="TwoRobotStackCube-v1")


@pytest.mark.skipif(render_device_available(), reason="needs a machine without a Vulkan driver")
def test_a_task_that_reads_render_shapes_asks_for_a_driver():
    assert "python -m reinflow.doctor" in refused(env_id="PushT-v1")


def test_a_sentence_from_a_worker_arrives_unchanged():
    assert "--control_mode pd_ee" in refused(control_mode="pd_ee", num_workers=1)


def test_a_task_that_cannot_run_batched_falls_back_with_a_sentence(capsys: pytest.CaptureFixture[str]):
    config = EnvConfig("MS-AntRun-v1", control_mode="pd_joint_delta_pos", num_workers=0)
    env = make_env(config, 2, 1, 1, 0.9)
    said = capsys.readouterr().out
    assert env.spec.sim_backend == "physx_cpu"
    assert env.reset(seed=0)["state"].shape == (2, 1, env.spec.state_dim)
    env.close()
    assert "MS-AntRun-v1" in said
    assert "using stock physx_cpu envs" in said
    assert said.count("\n") == 1
