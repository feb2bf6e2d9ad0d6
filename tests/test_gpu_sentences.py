"""What a user of a GPU reads where something is missing: one sentence with the fix."""

from __future__ import annotations

import dataclasses
import subprocess
import warnings
from types import SimpleNamespace
from zipfile import BadZipFile

import pytest
import torch

from reinflow import doctor
from reinflow.algos.config import PPOConfig
from reinflow.errors import UserError
from reinflow.policies import PolicySpec
from reinflow.runtime import gpu
from reinflow.runtime.gpu import enough_memory, hidden_gpu
from reinflow.training.config import OfflineConfig
from reinflow.training.fine_tuning import memory_levers
from reinflow.training.loops import half_a_batch
from reinflow.types import ImageSpec


@pytest.fixture
def home(monkeypatch, tmp_path):
    pytest.importorskip("sapien")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def enabling(monkeypatch, error: Exception) -> None:
    from sapien import physx

    def fails():
        raise error

    monkeypatch.setattr(physx, "enable_gpu", fails)


@pytest.mark.parametrize("error", [ConnectionError("Max retries exceeded"), BadZipFile("File is not a zip file")])
def test_a_gpu_library_that_can_not_be_downloaded_is_one_sentence(home, monkeypatch, error):
    from reinflow.envs import gpu_library

    enabling(monkeypatch, error)
    with pytest.raises(UserError) as refused:
        gpu_library.enable()
    sentence = str(refused.value)
    assert str(home / ".sapien" / "physx") in sentence
    assert "physx-precompiled" in sentence and "--sim_backend physx_cpu_batched" in sentence
    assert "\n" not in sentence


def test_a_gpu_library_that_does_not_load_is_another(home, monkeypatch):
    from reinflow.envs import gpu_library

    gpu_library.library_path().parent.mkdir(parents=True)
    gpu_library.library_path().write_text("")
    enabling(monkeypatch, OSError("libcuda.so: cannot open shared object file"))
    with pytest.raises(
        UserError, match=r"can't load .* \(libcuda\.so: cannot open shared object file\): update the NV"
    ):
        gpu_library.enable()


def test_making_envs_ends_in_that_sentence(home, monkeypatch):
    from reinflow.envs import EnvConfig, make_env

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    enabling(monkeypatch, ConnectionError("no network"))
    with pytest.raises(UserError, match="SAPIEN's GPU library, which is missing"):
        make_env(EnvConfig("PickCube-v1", sim_backend="physx_cuda"), 2, 8, 2, gamma=1.0)


def test_the_doctor_of_a_gpu_machine_needs_neither_network_nor_library(home, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("tried to simulate"))
    finding = doctor.check_gpu_simulator()
    assert finding.state == "info"
    assert "downloads SAPIEN's GPU library; without a network, unzip" in finding.text


def test_the_doctor_tells_what_the_gpu_simulator_says(home, monkeypatch):
    from reinflow.envs import gpu_library

    gpu_library.library_path().parent.mkdir(parents=True)
    gpu_library.library_path().write_text("")
    stderr = "Traceback ...\nreinflow.errors.UserError: the driver is older than the library\n"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr=stderr))
    finding = doctor.check_gpu_simulator()
    expected = "the driver is older than the library; until then use --sim_backend physx_cpu_batched"
    assert (finding.state, finding.text) == ("info", expected)


def test_the_cpu_simulator_is_what_decides_whether_this_machine_can_train(monkeypatch):
    asked = []
    monkeypatch.setattr(doctor, "simulated", lambda *where: asked.append(where))
    assert doctor.check_simulator().state == "ok"
    assert asked == [("physx_cpu_batched", "cpu")]


# ---- torch and its driver -------------------------------------------------------------------------------------------


def machine(monkeypatch, driver: bool, cuda: str | None, warning: str | None = None) -> None:
    def available():
        if warning:
            warnings.warn(warning, stacklevel=1)
        return False

    monkeypatch.setattr(gpu.shutil, "which", lambda name: "/usr/bin/nvidia-smi" if driver else None)
    monkeypatch.setattr(torch.cuda, "is_available", available)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 12040, raising=False)


def test_a_driver_that_is_too_old_for_torch_is_named_with_both_versions(monkeypatch):
    machine(monkeypatch, driver=True, cuda="13.0", warning="The NVIDIA driver on your system is too old (found 12040)")
    assert hidden_gpu() == (
        "the NVIDIA driver (CUDA 12.4) is too old for this torch, a build for CUDA 13.0: "
        "update the driver, or install a build of torch for a CUDA that it knows"
    )
    assert doctor.check_gpu().text == hidden_gpu()


@pytest.mark.parametrize(
    ("driver", "cuda", "part"),
    [(True, None, "torch is a CPU build"), (True, "13.0", "sees no GPU"), (False, "13.0", None), (False, None, None)],
)
def test_a_gpu_is_hidden_where_there_is_a_driver(monkeypatch, driver, cuda, part):
    machine(monkeypatch, driver, cuda)
    found = hidden_gpu()
    assert found is None if part is None else part in found


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_a_full_gpu_names_the_flags_that_help():
    levers = half_a_batch(OfflineConfig(batch_size=256))
    with pytest.raises(UserError) as refused, enough_memory(levers):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.20 GiB.")
    assert "the GPU has no memory left" in str(refused.value)
    assert str(refused.value).endswith("--batch_size 128 halves what a gradient step holds")


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="no memory of mine"), enough_memory([]):
        raise RuntimeError("no memory of mine")


def test_stage_3_names_what_it_has_and_what_half_of_it_would_be():
    state = PolicySpec.of(net="mlp", state_dim=3, action_dim=2, num_inference_steps=8)
    small, envs = memory_levers(512, state, num_envs=256, trains_encoder=False)
    assert small.startswith(
        "--micro_batch_size 256 halves what a gradient step holds of its 512 decisions x 8 denoising"
    )
    assert envs.startswith("--num_envs 128 halves the rollout")
    config = PPOConfig(minibatch_size=512, micro_batch_size=64)
    assert memory_levers(config.rows_at_a_time, state, 256, trains_encoder=False)[0].startswith(
        "--micro_batch_size 32 "
    )


def test_pictures_that_are_kept_are_weighed_against_their_features():
    # 2 frames of 2 cameras of 128 x 128 x 3 bytes are 196,608; 2 x 256 features of 4 bytes are 2,048
    image = ImageSpec(cameras=("a", "b"), height=128, width=128, rgb=True, depth=False)
    state = PolicySpec.of(net="mlp", state_dim=3, action_dim=2, obs_horizon=2, visual_feature_dim=256)
    spec = dataclasses.replace(state, image=image)
    trained = memory_levers(512, spec, 64, trains_encoder=True)
    assert "keeps 2 kB of features of a decision instead of 197 kB of pictures" in trained[1]
    assert len(memory_levers(512, spec, 64, trains_encoder=False)) == 2
