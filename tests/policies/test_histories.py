"""Histories of different length for states and pictures: what the condition holds, for every network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from reinflow.errors import UserError
from reinflow.policies import NETS, PolicySpec, build_policy
from reinflow.types import ImageSpec

IMAGE = ImageSpec(cameras=("base",), height=32, width=32, rgb=True, depth=False)


def history(rows: int = 4) -> dict[str, torch.Tensor]:
    """Three frames."""
    return {"state": torch.randn(rows, 3, 5), "rgb": torch.randint(256, (rows, 3, 1, 32, 32, 3), dtype=torch.uint8)}


@pytest.fixture
def seeing(make_spec):
    def build(net: str = "mlp", **changes):
        sizes = {"obs_horizon": 3, "pred_horizon": 8, "visual_feature_dim": 32}
        return build_policy(replace(make_spec(net=net, **sizes | changes), image=IMAGE))

    return build


def test_pictures_of_older_frames_do_not_count_and_their_states_do(seeing):
    policy = seeing(img_obs_horizon=2)
    assert policy.spec.cond_dim == 3 * 5 + 2 * 32
    obs = history()
    cond = policy.encode(obs)
    assert cond.shape == (4, 79)
    torch.testing.assert_close(cond[:, :5], policy.encoder.state_normalizer.normalize(obs["state"][:, 0]))
    for frame, changes in ((0, False), (1, True), (2, True)):
        rgb = obs["rgb"].clone()
        rgb[:, frame] = 255 - rgb[:, frame]
        assert torch.equal(policy.encode(obs | {"rgb": rgb}), cond) != changes
    assert not torch.equal(policy.encode(obs | {"state": torch.randn(4, 3, 5)}), cond)


def test_a_frame_that_has_both_is_laid_out_as_before(seeing):
    both, short = seeing(), seeing(img_obs_horizon=1)
    short.encoder.load_state_dict(both.encoder.state_dict())
    obs = history()
    expected = both.encode(obs).unflatten(1, (3, -1))
    found = short.encode(obs)
    torch.testing.assert_close(found[:, :10], expected[:, :2, :5].flatten(1))
    torch.testing.assert_close(found[:, 10:], expected[:, 2])


@pytest.mark.parametrize("net", NETS)
def test_every_network_reads_such_a_condition(seeing, net):
    policy = seeing(net, img_obs_horizon=1)
    restored = build_policy(PolicySpec.from_dict(policy.spec.to_dict()))
    restored.load_state_dict(policy.state_dict(), strict=True)
    obs = history(2)
    actions = [one.act(obs, torch.Generator().manual_seed(0), num_steps=1) for one in (policy, restored)]
    assert torch.equal(*actions)
    policy.loss(policy.encode(obs), torch.rand(2, 8, 3)).sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in policy.encoder.parameters()) or net == "dit"


@pytest.mark.parametrize("frames", [0, 4])
def test_more_pictures_than_observations_are_refused(seeing, frames):
    with pytest.raises(UserError, match="--img_obs_horizon"):
        seeing(img_obs_horizon=frames)
