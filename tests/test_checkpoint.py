from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from reinflow.checkpoint import (
    Checkpoint,
    latest_training,
    load_checkpoint,
    load_policy,
    load_state_,
    rng_state,
    save_checkpoint,
    save_training,
    set_rng_state,
)
from reinflow.errors import UserError
from reinflow.policies import build_policy
from reinflow.policies.spec import PolicySpec
from reinflow.types import EnvSpec

SPEC = PolicySpec(
    family="shortcut", net="mlp", state_dim=3, action_dim=2, obs_horizon=2, act_horizon=2, pred_horizon=4,
    num_inference_steps=2, mlp_hidden_dim=16, mlp_depth=1, diffusion_step_embed_dim=8,
)  # fmt: skip
ENV = EnvSpec("Toy-v0", "state", "pd_ee_delta_pose", "toy", "dense", 3, (-1.0, -1.0), (1.0, 1.0), 20)


def saved(path, policy=None, **fields) -> Checkpoint:
    policy = policy or build_policy(SPEC)
    checkpoint = Checkpoint(policy.spec, ENV, policy.state_dict(), **fields)
    save_checkpoint(path, checkpoint)
    return checkpoint


def test_a_policy_comes_back_with_the_same_actions(tmp_path):
    policy = build_policy(SPEC).eval()
    saved(tmp_path / "best_model.pt", policy, meta={"step": 7}, extra={"sizes": [1, 2]})
    loaded, checkpoint = load_policy(tmp_path, "cpu")
    assert (checkpoint.policy_spec, checkpoint.env_spec) == (SPEC, ENV)
    assert (checkpoint.meta, checkpoint.extra, checkpoint.critic_state) == ({"step": 7}, {"sizes": [1, 2]}, None)
    obs = {"state": torch.randn(5, 2, 3)}
    actions = [p.act(obs, generator=torch.Generator().manual_seed(0)) for p in (policy, loaded)]
    assert torch.equal(*actions)
    assert not loaded.training


def test_what_is_missing_is_named_with_the_stage_that_makes_it(tmp_path):
    for path in (tmp_path, tmp_path / "none.pt", ""):
        with pytest.raises(UserError, match=r"train_shortcut_flow\.py"):
            load_checkpoint(path)


def test_a_file_cut_short_is_told_from_one_that_is_not_ours(tmp_path):
    path = tmp_path / "best_model.pt"
    saved(path)
    whole = path.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="cut short"):
            load_checkpoint(path)
    path.write_text("hello")
    with pytest.raises(UserError, match="not a checkpoint"):
        load_checkpoint(path)
    torch.save({"model": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="not a checkpoint"):
        load_checkpoint(path)


class Stranger:
    def __reduce__(self):
        return (pytest.fail, ("a checkpoint ran code",))


def test_opening_a_checkpoint_runs_none_of_its_code(tmp_path):
    torch.save({"format": "reinflow-checkpoint", "extra": Stranger()}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "x.pt")


def test_another_format_version_is_named(tmp_path):
    path = tmp_path / "x.pt"
    saved(path)
    payload = torch.load(path, weights_only=True)
    torch.save({**payload, "version": 99}, path)
    with pytest.raises(UserError, match="format 99"):
        load_checkpoint(path)


def test_dimensions_that_do_not_fit_are_listed_per_key(tmp_path):
    state = build_policy(SPEC).state_dict()
    wider = build_policy(replace(SPEC, state_dim=4))
    with pytest.raises(UserError) as caught:
        load_state_(wider, state, "the policy")
    # the state normaliser of a 4-number state has 4 means, the checkpoint's has 3
    assert "expected (4,), got (3,)" in str(caught.value)
    linear = torch.nn.Linear(2, 1)
    with pytest.raises(UserError, match=r"bias: expected \(1,\), got nothing; gain: not expected, got \(2,\)"):
        load_state_(linear, {"weight": torch.zeros(1, 2), "gain": torch.zeros(2)}, "a layer")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "best_model.pt"
    saved(path, meta={"step": 1})
    with pytest.raises((AttributeError, TypeError)):
        saved(path, extra={"function": lambda: None})
    assert load_checkpoint(path).meta == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["best_model.pt"]


def training_at(count: int, **fields) -> Checkpoint:
    return Checkpoint(SPEC, ENV, {}, training={"count": count, **fields})


def test_resumable_checkpoints_keep_two_and_skip_a_damaged_one(tmp_path):
    for step in (5, 10, 1000):
        save_training(tmp_path, step, training_at(step))
    folder = tmp_path / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step_000000000010.pt", "step_000000001000.pt"]
    assert latest_training(tmp_path).training == {"count": 1000}
    newest = folder / "step_000000001000.pt"
    newest.write_bytes(newest.read_bytes()[:50])
    assert latest_training(tmp_path).training == {"count": 10}


def test_a_run_without_resumable_checkpoints_says_so(tmp_path):
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        latest_training(tmp_path)


def test_random_sequences_continue_after_a_resume(tmp_path):
    def draw() -> tuple:
        return (random.random(), random.gauss(0, 1), np.random.rand(), torch.rand(1).item())

    draw()
    save_training(tmp_path, 1, training_at(1, rng=rng_state()))
    expected = draw()
    set_rng_state(latest_training(tmp_path).training["rng"])
    assert draw() == expected
