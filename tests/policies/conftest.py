"""Small policies of every family and network, with fitted normalisers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from reinflow.policies import PolicySpec, build_policy
from reinflow.policies.base import Policy


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def make_spec() -> Callable[..., PolicySpec]:
    def build(family: str = "shortcut", net: str = "mlp", **changes: object) -> PolicySpec:
        sizes = {
            "state_dim": 5,
            "action_dim": 3,
            "obs_horizon": 2,
            "act_horizon": 4,
            "pred_horizon": 8,
            "unet_dims": (16, 32),
            "mlp_hidden_dim": 64,
            "mlp_depth": 1,
            "diffusion_step_embed_dim": 16,
        }
        return PolicySpec.of(family=family, net=net, **sizes | changes)

    return build


@pytest.fixture
def make_policy(make_spec: Callable[..., PolicySpec]) -> Callable[..., Policy]:
    def build(family: str = "shortcut", net: str = "mlp", **changes: object) -> Policy:
        policy = build_policy(make_spec(family, net, **changes))
        for parameter in policy.net.parameters():
            if not parameter.any():  # the closed gates of a new DiT, which training opens in its first step
                torch.nn.init.normal_(parameter, std=0.1)
        spec = policy.spec
        policy.fit_normalizers_(3 + 2 * torch.randn(200, spec.state_dim), 5 + 2 * torch.rand(200, spec.action_dim))
        return policy

    return build
