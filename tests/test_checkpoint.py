from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file

from reinflow.errors import UserError
from reinflow.policies import build_policy
from reinflow.policies.spec import PolicySpec
from reinflow.storage.checkpoint import (
    Checkpoint,
    NotFinite,
    env_spec_from,
    load_checkpoint,
    load_policy,
    load_state_,
    packed,
    rename_former_best,
    save_checkpoint,
)
from reinflow.storage.sealed import seal, unseal
from reinflow.types import EnvSpec, Objective

SPEC = PolicySpec.of(
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
    saved(tmp_path / "best_model.safetensors", policy, meta={"step": 7}, extra={"sizes": [1, 2]})
    loaded, checkpoint = load_policy(tmp_path, "cpu")
    assert (checkpoint.policy_spec, checkpoint.env_spec) == (SPEC, ENV)
    assert (checkpoint.meta, checkpoint.extra, checkpoint.parts) == ({"step": 7}, {"sizes": [1, 2]}, {})
    obs = {"state": torch.randn(5, 2, 3)}
    actions = [p.act(obs, generator=torch.Generator().manual_seed(0)) for p in (policy, loaded)]
    assert torch.equal(*actions)
    assert not loaded.training


def test_what_v_predicts_comes_back_and_older_files_do_not_say_it(tmp_path):
    objective = Objective(0.97, "sparse", terminate_on_success=True)
    path = tmp_path / "best_model.safetensors"
    saved(path, objective=objective)
    assert load_checkpoint(path).objective == objective
    tensors, description = unseal(path.read_bytes())
    description = without_seal(description)
    del description["objective"]
    path.write_bytes(seal(tensors, description))
    assert load_checkpoint(path).objective is None
    path.write_bytes(seal(tensors, description | {"objective": {"gamma": 0.97, "reward_mode": 3}}))
    with pytest.raises(UserError, match="reward_mode is no str"):
        load_checkpoint(path)


def test_parts_come_back_by_name_and_an_older_file_has_v_alone_or_none(tmp_path):
    path = tmp_path / "best_model.safetensors"
    parts = {"critic": {"v": torch.ones(2)}, "q": {"q.v": torch.zeros(3), "w": torch.ones(1)}, "empty": {}}
    saved(path, parts=parts)
    found = load_checkpoint(path).parts
    assert {name: sorted(state) for name, state in found.items()} == {"critic": ["v"], "q": ["q.v", "w"], "empty": []}
    assert all(torch.equal(found[part][name], value) for part in parts for name, value in parts[part].items())
    tensors, description = unseal(path.read_bytes())
    older = {name: value for name, value in without_seal(description).items() if name != "parts"}
    for has_critic, names in ((True, ["critic"]), (False, [])):
        path.write_bytes(seal(tensors, older | {"has_critic": has_critic}))
        assert list(load_checkpoint(path).parts) == names


def test_what_is_missing_is_named_with_the_stage_that_makes_it(tmp_path):
    for path in (tmp_path, tmp_path / "none.pt", ""):
        with pytest.raises(UserError, match=r"train_shortcut_flow\.py"):
            load_checkpoint(path)


def test_every_flipped_byte_of_a_file_is_noticed_and_every_cut(tmp_path):
    path = tmp_path / "best_model.safetensors"
    saved(path)
    whole = path.read_bytes()
    places = [*range(0, 400, 7), *range(400, len(whole), len(whole) // 50)]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"best_model\.safetensors is damaged or not a checkpoint"):
            load_checkpoint(path)
    for size in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="damaged or not a checkpoint"):
            load_checkpoint(path)


def test_any_safetensors_reader_opens_the_file(tmp_path):
    policy = build_policy(SPEC)
    saved(tmp_path / "best_model.safetensors", policy)
    tensors = load_file(tmp_path / "best_model.safetensors")
    assert {f"policy.{name}" for name in policy.state_dict()} == set(tensors)


def test_equal_content_gives_equal_bytes_also_after_a_round_trip(tmp_path):
    checkpoint = saved(tmp_path / "a.pt", meta={"step": 7})
    first = (tmp_path / "a.pt").read_bytes()
    assert packed(checkpoint) == first
    assert packed(load_checkpoint(tmp_path / "a.pt")) == first


def test_what_torch_save_wrote_is_not_opened_and_names_the_converter(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"model": Stranger()}, path)
    with pytest.raises(UserError, match=r"python -m reinflow\.foreign .*x\.pt"):
        load_checkpoint(path)
    path.write_text("hello")
    with pytest.raises(UserError, match="not a checkpoint"):
        load_checkpoint(path)


class Stranger:
    def __reduce__(self):
        return (pytest.fail, ("a checkpoint ran code",))


def test_another_format_version_is_named(tmp_path):
    path = tmp_path / "x.pt"
    saved(path)
    tensors, description = unseal(path.read_bytes())
    path.write_bytes(seal(tensors, {**without_seal(description), "version": 99}))
    with pytest.raises(UserError, match="format 99"):
        load_checkpoint(path)


def without_seal(description: dict) -> dict:
    return {name: value for name, value in description.items() if name != "sha256"}


@pytest.mark.parametrize(
    "change",
    [
        {"env_spec": {}},
        {"env_spec": 3},
        {"policy_spec": {"net": "mlp"}},
        {"parts": 1},
        {"parts": [1]},
        {"meta": []},
        {"extra": None},
    ],
    ids=str,
)
def test_a_sealed_description_of_other_things_is_refused(tmp_path, change):
    path = tmp_path / "x.pt"
    saved(path)
    tensors, description = unseal(path.read_bytes())
    path.write_bytes(seal(tensors, {**without_seal(description), **change}))
    with pytest.raises(UserError, match=r"x\.pt"):
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
    path = tmp_path / "best_model.safetensors"
    saved(path, meta={"step": 1})
    with pytest.raises(TypeError):
        saved(path, extra={"function": lambda: None})
    assert load_checkpoint(path).meta == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["best_model.safetensors"]


def test_weights_that_are_not_finite_are_neither_written_nor_loaded(tmp_path):
    path = tmp_path / "best_model.safetensors"
    policy = build_policy(SPEC)
    saved(path, policy, meta={"step": 1})
    broken = {name: value.clone() for name, value in policy.state_dict().items()}
    next(iter(broken.values())).view(-1)[0] = float("nan")
    with pytest.raises(NotFinite, match="1 tensors hold NaN"):
        save_checkpoint(path, Checkpoint(SPEC, ENV, broken))
    assert load_checkpoint(path).meta == {"step": 1}
    description = unseal(path.read_bytes())[1]
    path.write_bytes(seal({f"policy.{name}": value for name, value in broken.items()}, without_seal(description)))
    with pytest.raises(UserError, match="NaN or infinite weights"):
        load_checkpoint(path)


def test_the_best_policy_of_a_run_is_found_under_its_name_and_under_its_former_one(tmp_path):
    now, then = tmp_path / "now", tmp_path / "then"
    saved(now / "best_model.safetensors", meta={"step": 1})
    saved(then / "best_model.pt", meta={"step": 2})
    for run, step in ((now, 1), (then, 2)):
        for path in (run, run / "best_model.pt", run / "best_model.safetensors"):
            assert load_checkpoint(path).meta == {"step": step}
    with pytest.raises(UserError, match="there is no checkpoint at"):
        load_checkpoint(now / "other.pt")


def test_a_resumed_older_run_has_one_best_policy_under_the_name_of_today(tmp_path):
    saved(tmp_path / "best_model.pt", meta={"step": 1})
    rename_former_best(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["best_model.safetensors"]
    saved(tmp_path / "best_model.pt", meta={"step": 2})  # of whoever puts another one there
    rename_former_best(tmp_path)
    assert load_checkpoint(tmp_path).meta == {"step": 1}


@pytest.mark.parametrize("still", [(0.0, None), (-0.5, 0.0)])
def test_what_holds_still_comes_back_and_is_empty_in_an_older_file(still):
    stored = json.loads(json.dumps(asdict(replace(ENV, still=still))))
    assert env_spec_from(stored).still == still
    del stored["still"]
    assert env_spec_from(stored).still == ()
