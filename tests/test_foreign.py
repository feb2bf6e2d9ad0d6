"""Files that torch.save wrote: converted by name and shape, or refused; their code never runs."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from reinflow.errors import UserError
from reinflow.foreign import Config, main
from reinflow.policies import PolicySpec, build_policy
from reinflow.storage.checkpoint import Checkpoint, load_checkpoint, load_policy, save_checkpoint
from tests.test_checkpoint import ENV, SPEC, Stranger, saved


@pytest.mark.parametrize(
    "wrap", [lambda net: net, lambda net: {"model": {f"actor.network.{k}": v for k, v in net.items()}}]
)
def test_weights_of_other_code_are_matched_by_name_and_shape_and_reported(tmp_path, capsys, wrap):
    saved(tmp_path / "like.pt")
    other = build_policy(SPEC)
    torch.save(wrap(other.net.state_dict()), tmp_path / "old.pt")
    main(Config(str(tmp_path / "old.pt"), str(tmp_path / "new.pt"), like=str(tmp_path / "like.pt")))
    loaded, checkpoint = load_policy(tmp_path / "new.pt", "cpu")
    assert all(torch.equal(a, b) for a, b in zip(loaded.net.parameters(), other.net.parameters(), strict=True))
    assert checkpoint.env_spec == ENV
    assert capsys.readouterr().out.count(" <- ") == len(other.net.state_dict())


def test_the_first_format_is_converted_whole(tmp_path):
    policy = build_policy(SPEC)
    old = {"format": "reinflow-checkpoint", "version": 1, "policy_spec": SPEC.to_dict(), "env_spec": asdict(ENV),
           "policy_state": policy.state_dict(), "critic_state": {"w": torch.ones(2)}, "extra": {}, "meta": {},
           "training": None}  # fmt: skip
    torch.save(old, tmp_path / "old.pt")
    main(Config(str(tmp_path / "old.pt"), str(tmp_path / "new.pt")))
    checkpoint = load_checkpoint(tmp_path / "new.pt")
    assert (checkpoint.policy_spec, checkpoint.env_spec) == (SPEC, ENV)
    assert torch.equal(checkpoint.parts["critic"]["w"], torch.ones(2))


def test_what_does_not_fit_is_named_and_nothing_is_written(tmp_path):
    saved(tmp_path / "like.pt")
    state = build_policy(SPEC).net.state_dict()
    first = next(iter(state))
    state[first] = torch.zeros(1)
    torch.save(state, tmp_path / "old.pt")
    with pytest.raises(UserError, match=rf"no weights for net\.{first}"):
        main(Config(str(tmp_path / "old.pt"), str(tmp_path / "new.pt"), like=str(tmp_path / "like.pt")))
    with pytest.raises(UserError, match="--like"):
        main(Config(str(tmp_path / "old.pt"), str(tmp_path / "new.pt")))
    assert not (tmp_path / "new.pt").exists()


def test_a_file_with_code_is_not_opened(tmp_path):
    torch.save({"model": Stranger()}, tmp_path / "old.pt")
    with pytest.raises(UserError, match="more than weights"):
        main(Config(str(tmp_path / "old.pt"), str(tmp_path / "new.pt")))


SIZES = {"state_dim": 5, "action_dim": 3, "obs_horizon": 1, "act_horizon": 4, "pred_horizon": 4}
PREACT = {"net": "preact", "preact_hidden_dim": 24, "preact_blocks": 2, "preact_cond_dims": (10, 6)}
TIME = 16
"""width of their time embedding"""


def reflow_weights(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """A residual MLP of ReinFlow's names and shapes, of random numbers."""
    layers = {"time_embedding.1": (32, 16), "time_embedding.3": (16, 32), "mlp_mean.layers.0": (24, 12 + 16 + 6),
              "cond_mlp.moduleList.0.linear_1": (10, 5), "cond_mlp.moduleList.1.linear_1": (6, 10),
              "mlp_mean.layers.1.l1": (24, 24), "mlp_mean.layers.1.l2": (24, 24), "mlp_mean.layers.2.l1": (24, 24),
              "mlp_mean.layers.2.l2": (24, 24), "mlp_mean.layers.3": (12, 24)}  # fmt: skip
    state = {}
    for name, shape in layers.items():
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) / shape[1] ** 0.5
        state[f"{name}.bias"] = torch.randn(shape[0], generator=generator)
    return state


def reflow_velocity(state: dict[str, torch.Tensor], chunk: torch.Tensor, time: torch.Tensor, obs: torch.Tensor):
    """What such a network computes, from its description: everything beside each other into one residual MLP."""

    def layer(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    mish = torch.nn.functional.mish
    waves = time[:, None] * 10_000.0 ** (-torch.arange(8) / 7)
    embedded = layer("time_embedding.3", mish(layer("time_embedding.1", torch.cat((waves.sin(), waves.cos()), 1))))
    cond = layer("cond_mlp.moduleList.1.linear_1", mish(layer("cond_mlp.moduleList.0.linear_1", obs)))
    x = layer("mlp_mean.layers.0", torch.cat((chunk.flatten(1), embedded, cond), dim=1))
    for block in (1, 2):
        x = x + layer(f"mlp_mean.layers.{block}.l2", mish(layer(f"mlp_mean.layers.{block}.l1", mish(x))))
    return layer("mlp_mean.layers.3", x).unflatten(1, chunk.shape[1:])


def imported(folder, state: dict, **changes) -> Config:
    """The arguments for a file of such weights, beside a checkpoint of that network."""
    spec = PolicySpec.of(**{"family": "reflow", **SIZES, **PREACT, "preact_max_frequency": 1.0} | changes)
    env = replace(ENV, state_dim=5, action_low=(-1.0,) * 3, action_high=(1.0,) * 3)
    save_checkpoint(folder / "like.pt", Checkpoint(spec, env, build_policy(spec).state_dict()))
    torch.save(state, folder / "old.pt")
    return Config(str(folder / "old.pt"), str(folder / "new.pt"), like=str(folder / "like.pt"))


def test_a_reflow_network_of_reinflow_computes_the_same_here(tmp_path, capsys):
    generator = torch.Generator().manual_seed(0)
    weights, average = reflow_weights(generator), reflow_weights(generator)
    low, high = torch.tensor([-1.0, 0, 0, 2, 5]), torch.tensor([1.0, 4, 1, 3, 7])
    bounds = {"obs_min": low, "obs_max": high, "action_min": -torch.ones(3), "action_max": 3 * torch.ones(3)}
    np.savez(tmp_path / "normalization.npz", **{name: value.numpy() for name, value in bounds.items()})
    state = {"itr": 7, "model": {f"network.{k}": v for k, v in weights.items()},
             "ema": {f"network.{k}": v for k, v in average.items()}}  # fmt: skip
    main(replace(imported(tmp_path, state), normalization=str(tmp_path / "normalization.npz")))
    policy, _ = load_policy(tmp_path / "new.pt", "cpu")
    chunk, time, obs = torch.randn(7, 4, 3), torch.rand(7), torch.randn(7, 1, 5)
    scaled = 2 * (obs[:, 0] - low) / (high - low + 1e-6) - 1
    cond = policy.encode({"state": obs})
    torch.testing.assert_close(cond, scaled, atol=1e-5, rtol=1e-4)
    theirs = reflow_velocity(average, chunk, time, cond)  # of a pretrained policy the average
    ours = policy.net(chunk, time, torch.rand(7), cond)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    # an action of 0 is the middle of -1..3
    torch.testing.assert_close(policy.to_action(torch.zeros(1, 4, 3)), torch.ones(1, 4, 3))
    said = capsys.readouterr().out
    assert "net.cond_in.2.weight <- ema.network.cond_mlp.moduleList.1.linear_1.weight" in said
    assert "doesn't say its activation" in said


@pytest.mark.parametrize(
    ("extra", "changes", "reason"),
    [
        ({}, {"preact_max_frequency": 1000.0}, "--preact_max_frequency 1 and --obs_horizon 1"),
        ({}, {"family": "shortcut"}, "which is --family reflow"),
        ({}, {"preact_hidden_dim": 16}, "has no weights for net.* of another network"),
        ({"mlp_mean.layers.1.norm1.weight": torch.ones(24)}, {}, "norm1.weight, for which --net preact has no place"),
    ],
)
def test_a_network_that_would_compute_something_else_is_refused(tmp_path, extra, changes, reason):
    weights = reflow_weights(torch.Generator().manual_seed(0)) | extra
    with pytest.raises(UserError, match=reason):
        main(imported(tmp_path, {"model": {f"network.{k}": v for k, v in weights.items()}}, **changes))
    assert not (tmp_path / "new.pt").exists()
