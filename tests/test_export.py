"""Exported policies act as the policy does: every family and network, with pictures, and without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from reinflow import export as module
from reinflow.errors import UserError
from reinflow.export import FORMS, SUFFIXES, Config, Sampler, example, export, main
from reinflow.policies import FAMILIES, NETS, build_policy
from reinflow.policies.base import Policy
from reinflow.policies.spec import PolicyConfig
from reinflow.storage.checkpoint import Checkpoint, save_checkpoint
from reinflow.types import EnvSpec, ImageSpec

ROOT = Path(__file__).resolve().parents[1]
TASK = EnvSpec("Toy-v0", "state", "toy", "torch", "dense", 3, (-1.0, -2.0), (1.0, 2.0), 24)
SEEN = EnvSpec(
    "Seen-v0", "rgb+depth", "c", "b", "r", 3, (-1.0, -2.0), (1.0, 2.0), 24,
    image=ImageSpec(("hand", "base"), 16, 16, rgb=True, depth=True),
)  # fmt: skip
SIZES = {
    "mlp_hidden_dim": 16, "mlp_depth": 1, "unet_dims": (8,), "n_groups": 4, "diffusion_step_embed_dim": 8,
    "visual_feature_dim": 8, "transformer_dim": 16, "transformer_depth": 1, "dit_dim": 16, "dit_depth": 1,
    "preact_hidden_dim": 16, "obs_horizon": 2, "act_horizon": 4, "pred_horizon": 8,
}  # fmt: skip
PAIRS = list(zip(FAMILIES, chain(NETS, repeat("mlp")), strict=False))
"""every family and every network, not all of their pairs"""


def tiny(family: str, net: str, task: EnvSpec = TASK) -> Policy:
    """With weights and statistics of which every part shows."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = build_policy(PolicyConfig.of(family=family, net=net, **SIZES).for_env(task, 2 if net == "mlp" else 1))
        policy.fit_normalizers_(5 + 2 * torch.randn(64, 3), torch.rand(64, 2) * 4 - 2)
        for parameter in policy.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    policy.spec = policy.spec.starting_with(1.0)
    return policy.eval()


@pytest.fixture(scope="module", autouse=True)
def _one_table_of_operators():
    """The ONNX exporter builds it anew for every file, which takes longer than the rest of a small one."""
    registration = pytest.importorskip("torch.onnx._internal.exporter._registration")
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    with pytest.MonkeyPatch.context() as patch:
        table = registration.ONNXRegistry.from_torchlib()
        patch.setattr(registration.ONNXRegistry, "from_torchlib", classmethod(lambda cls, *_, **__: table))
        yield


@pytest.mark.parametrize(("family", "net"), PAIRS)
def test_every_family_and_network_is_exported_to_onnx(tmp_path, family, net):
    assert export(tiny(family, net), TASK, "onnx", tmp_path / "p.onnx") < 1e-5


@pytest.mark.parametrize(("family", "net"), PAIRS)
def test_every_family_and_network_is_exported_to_torchscript(tmp_path, family, net):
    # ONNX, above, is made of what torch_export writes
    assert export(tiny(family, net), TASK, "torchscript", tmp_path / "p.ts", rows=3) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_pictures_are_part_of_the_signature(tmp_path, form):
    policy, path = tiny("reflow", "mlp", SEEN), tmp_path / f"p{SUFFIXES[form]}"
    assert export(policy, SEEN, form, path) < 1e-5
    run, inputs = FORMS[form][1](path), example(policy, 1, seed=7)
    black = {**inputs[0], "rgb": torch.zeros_like(inputs[0]["rgb"])}
    assert not torch.allclose(run(black, inputs[1]), run(*inputs), atol=1e-4)


def test_a_file_gives_env_units_inside_the_bounds_and_depends_on_state_and_noise(tmp_path):
    policy = tiny("shortcut", "mlp")
    policy.action_normalizer.scale.fill_(3.0)  # -3 to 3, outside the task's bounds
    export(policy, TASK, "torchscript", tmp_path / "p.ts")
    run, (obs, noise) = FORMS["torchscript"][1](tmp_path / "p.ts"), example(policy, 1, seed=3)
    actions = run(obs, noise)
    assert actions.shape == (1, 4, 2)
    assert actions[..., 0].abs().max() <= 1
    assert 1 < actions[..., 1].abs().max() <= 2
    assert not torch.equal(actions, run({"state": obs["state"] + 3}, noise))
    assert not torch.equal(actions, run(obs, -noise))


def test_a_file_that_acts_otherwise_is_not_written(tmp_path, monkeypatch):
    def wrong(path: Path):
        return lambda obs, noise: torch.zeros(1, 4, 2)

    monkeypatch.setitem(FORMS, "torchscript", (FORMS["torchscript"][0], wrong))
    with pytest.raises(UserError, match=r"acts otherwise, by .* nothing was written"):
        export(tiny("shortcut", "mlp"), TASK, "torchscript", tmp_path / "p.ts")
    assert list(tmp_path.iterdir()) == []


def test_the_example_runs_a_file_without_torch(tmp_path, capsys):
    policy = tiny("reflow", "mlp")
    save_checkpoint(tmp_path / "best_model.safetensors", Checkpoint(policy.spec, TASK, policy.state_dict()))
    main(Config(str(tmp_path), act_horizon=3))
    assert "differ from the policy's by" in capsys.readouterr().out
    (tmp_path / "torch.py").write_text("raise ImportError('there is no torch here')")
    script = ROOT / "examples" / "run_onnx.py"
    assert len(script.read_text().splitlines()) <= 15
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "best_model.onnx")],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    actions = torch.tensor([[float(word) for word in line.strip("[] ").split()] for line in done.stdout.splitlines()])
    noise = np.random.default_rng(0).standard_normal((1, 8, 2), dtype="float32")
    policy.spec = module.replace(policy.spec, act_horizon=3)
    expected = Sampler(policy, TASK)({"state": torch.zeros(1, 2, 3)}, torch.as_tensor(noise))
    torch.testing.assert_close(actions, expected[0].detach(), rtol=1e-4, atol=1e-5)


def test_a_file_says_what_it_takes(tmp_path):
    export(tiny("shortcut", "mlp"), TASK, "torch_export", tmp_path / "p.pt2", rows=2)
    extra = {"reinflow": ""}
    torch.export.load(tmp_path / "p.pt2", extra_files=extra)
    description = json.loads(extra["reinflow"])
    assert description["inputs"] == {"state": [2, 2, 3], "noise": [2, 8, 2]}
    assert description["outputs"] == {"actions": [2, 4, 2]}
    assert description["task"]["env_id"] == "Toy-v0"


def test_a_missing_package_is_named_with_the_extra_that_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(UserError, match=r"--to onnx needs onnxscript: pip install -e '\.\[export\]'"):
        main(Config(str(tmp_path)))


def test_a_policy_without_use_for_noise_takes_it_all_the_same(tmp_path):
    export(tiny("gaussian", "mlp"), TASK, "torchscript", tmp_path / "p.ts")
    run, (obs, noise) = FORMS["torchscript"][1](tmp_path / "p.ts"), example(tiny("gaussian", "mlp"), 1, seed=3)
    result: Tensor = run(obs, noise)
    assert torch.equal(result, run(obs, -noise))
