"""The files of `examples/` run as they are."""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path

import pytest
import torch

from reinflow.policies import ENCODERS, build_policy
from reinflow.policies.spec import PolicyConfig
from reinflow.storage.checkpoint import Checkpoint, load_policy, save_checkpoint
from reinflow.types import EnvSpec, ImageSpec

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
TINY = {"net": "mlp", "mlp_hidden_dim": 16, "mlp_depth": 1, "act_horizon": 2, "pred_horizon": 4}


def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = json.loads((EXAMPLES / "toy.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict[str, object] = {}
    for cell in cells:
        exec(cell.replace("ITERATIONS = 1_500", "ITERATIONS = 5"), names)
    assert "of 20 episodes reach the goal" in capsys.readouterr().out
    assert (tmp_path / "toy" / "paths.png").read_bytes().startswith(b"\x89PNG")
    assert all(not cell.get("outputs") for cell in notebook["cells"])


def test_a_trained_policy_plays_in_a_stock_env(tmp_path, monkeypatch, capsys):
    pytest.importorskip("mani_skill")
    bounds = {"action_low": (-1.0,) * 7, "action_high": (1.0,) * 7}
    names = ("PickCube-v1", "state", "pd_ee_delta_pose", "physx_cpu", "normalized_dense", 42)
    task = EnvSpec(*names, **bounds, max_episode_steps=3)
    policy = build_policy(PolicyConfig.of(**TINY).for_env(task, 1))
    save_checkpoint(tmp_path / "policy.safetensors", Checkpoint(policy.spec, task, policy.state_dict()))
    words = [str(EXAMPLES / "inference.py"), str(tmp_path / "policy.safetensors"), "--episodes", "2"]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(words[0], run_name="__main__")
    assert "PickCube-v1: 0 of 2 episodes succeed" in capsys.readouterr().out


def test_an_encoder_of_ones_own_is_chosen_by_name_in_a_checkpoint_and_on_the_command_line(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(ENCODERS, "_entries", dict(ENCODERS._entries))
    monkeypatch.chdir(tmp_path)
    words = ["clone", "--env_id", "PickCube-v1", "--visual_encoder", "pooled", "--demo_path", "absent.h5"]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLES / "own_encoder.py"), *words])
    with pytest.raises(SystemExit):
        runpy.run_path(sys.argv[0], run_name="__main__")
    assert "absent.h5" in capsys.readouterr().err  # it looked for demonstrations, so there is such an encoder
    cameras = ImageSpec(("hand",), 16, 16, rgb=True, depth=False)
    task = EnvSpec("Seen-v0", "rgb", "c", "b", "r", 3, (-1.0,), (1.0,), 24, image=cameras)
    policy = build_policy(PolicyConfig.of(**TINY, visual_encoder="pooled", visual_feature_dim=8).for_env(task, 1))
    save_checkpoint(tmp_path / "policy.safetensors", Checkpoint(policy.spec, task, policy.state_dict()))
    loaded, _ = load_policy(tmp_path / "policy.safetensors", "cpu")
    obs = {"state": torch.zeros(1, 2, 3), "rgb": torch.randint(0, 256, (1, 2, 1, 16, 16, 3), dtype=torch.uint8)}
    cond = loaded.encode(obs)
    assert cond.shape == (1, 2 * (3 + 8))
    loaded.loss(cond, torch.zeros(1, 4, 1)).sum().backward()
    assert any(weight.grad.any() for weight in loaded.encoder.visual.parameters())


def test_the_image_copies_what_there_is_and_installs_the_pinned_versions():
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    copied = [source for line in lines if line.startswith("COPY") for source in line.split()[1:-1]]
    assert all(list(ROOT.glob(source)) for source in copied)
    needed = {"pyproject.toml", "README.md", "LICENSE", "nets", "reinflow", "*.py", "constraints.txt"}
    assert needed <= set(copied)
    installs = [part for line in lines if line.startswith("RUN") for part in line.split("&&") if "pip install" in part]
    assert installs
    assert all("--constraint constraints.txt" in part for part in installs)
    assert os.access(ROOT / ".ci" / "vulkan", os.X_OK)
