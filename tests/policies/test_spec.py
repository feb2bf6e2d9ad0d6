"""Policy specs: validation, storage, and the one executed slice."""

from __future__ import annotations

import json

import pytest
import torch

from reinflow.errors import UserError
from reinflow.policies import PolicyConfig, PolicySpec, executed_slice
from reinflow.policies.chain import scored_dims
from reinflow.types import EnvSpec


def test_a_ramp_chunk_executes_the_same_indices_everywhere(make_policy):
    # two observations, four executed actions: row 0 belongs to the older frame, so rows 1, 2, 3, 4 are executed
    ramp = torch.arange(8.0)
    assert ramp[executed_slice(obs_horizon=2, act_horizon=4)].tolist() == [1, 2, 3, 4]
    policy = make_policy()
    assert ramp[policy.spec.executed].tolist() == [1, 2, 3, 4]
    scored = scored_dims(2, 8, policy.spec.executed, policy.action_normalizer.varies)
    assert ramp[scored[-1, :, 0]].tolist() == [1, 2, 3, 4]
    chunk = (ramp / 10).expand(3, 8).T[None]  # every action dimension holds the ramp
    actions = policy.action_normalizer.normalize(policy.to_action(chunk))
    torch.testing.assert_close(actions[0, :, 0], torch.tensor([0.1, 0.2, 0.3, 0.4]))


@pytest.mark.parametrize(("obs_horizon", "act_horizon"), [(1, 1), (1, 8), (2, 8), (3, 4)])
def test_the_first_executed_action_belongs_to_the_newest_observation(obs_horizon, act_horizon):
    rows = range(16)[executed_slice(obs_horizon, act_horizon)]
    assert rows[0] == obs_horizon - 1
    assert len(rows) == act_horizon


def test_a_spec_survives_json(make_spec):
    spec = make_spec("reflow", "unet")
    assert PolicySpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_a_stored_spec_with_a_missing_or_unknown_key_is_refused_by_name(make_spec):
    stored = make_spec().to_dict()
    with pytest.raises(UserError, match="frobnicate"):
        PolicySpec.from_dict(stored | {"frobnicate": 1})
    del stored["pred_horizon"]
    with pytest.raises(UserError, match="pred_horizon"):
        PolicySpec.from_dict(stored)


def test_a_spec_of_before_the_trained_step_sizes_were_stored_has_those_of_the_default(make_spec):
    stored = make_spec(step_size_mode="uniform", max_denoising_steps=6).to_dict()
    del stored["step_size_mode"], stored["max_denoising_steps"]
    spec = PolicySpec.from_dict(stored)
    options = spec.family_options
    assert (options.step_size_mode, options.max_denoising_steps) == ("power2", 8)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pred_horizon": 4}, "pred_horizon"),  # 2 - 1 + 4 = 5 rows are needed
        ({"net": "unet", "pred_horizon": 7}, "multiple of 2"),  # two levels halve the chunk once
        ({"net": "unet", "unet_dims": (12, 32)}, "n_groups"),  # 12 channels don't fall into 8 groups
        ({"act_horizon": 0}, "act_horizon"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"mlp_depth": 0}, "mlp_depth"),
        ({"max_denoising_steps": 0}, "max_denoising_steps"),
        ({"net": "unet", "n_groups": 0}, "n_groups"),  # ZeroDivisionError otherwise
        ({"net": "unet", "unet_dims": ()}, "unet_dims"),
        ({"diffusion_step_embed_dim": 15}, "diffusion_step_embed_dim"),
    ],
)
def test_impossible_sizes_are_refused_with_the_flag_to_change(make_spec, changes, words):
    with pytest.raises(UserError, match=words):
        make_spec(**changes)


def test_an_unknown_family_or_network_is_refused_with_the_choices(make_spec):
    with pytest.raises(UserError, match="shortcut, reflow, .*gaussian"):
        make_spec(family="diffusion")
    with pytest.raises(UserError, match="unet, mlp"):
        make_spec(net="percolator")


def test_a_config_becomes_a_spec_with_the_dimensions_of_the_task():
    env = EnvSpec("Toy-v0", "state", "delta", "toy", "sparse", 4, (-1.0, -1.0), (1.0, 1.0), 50)
    spec = PolicyConfig(net="mlp", obs_horizon=3).for_env(env, num_inference_steps=2)
    assert (spec.state_dim, spec.action_dim, spec.num_inference_steps) == (4, 2, 2)
    assert spec.cond_dim == 12  # 3 frames of 4 numbers
