"""What every family promises, whatever its network: capabilities, checkpoints, normalisation, reproducible sampling."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reinflow.errors import UserError
from reinflow.policies import FAMILIES, NETS, PolicySpec, build_policy, make_stochastic
from reinflow.policies.base import Policy
from reinflow.policies.encoder import ObsEncoder
from reinflow.types import Regressable, Samplable, Stochastic

QUICKLY = {"consistency": {"consistency_steps": 4}}
"""options with which a family learns in few iterations"""
SLOWLY = {"ddpm": 1000}
"""iterations that a family needs more than 300 of"""
every_policy = pytest.mark.parametrize("net", NETS)
every_family = pytest.mark.parametrize("family", FAMILIES)


@every_family
@every_policy
def test_a_regressable_policy_gives_one_loss_per_row_and_reaches_its_network(make_policy, family, net):
    policy = make_policy(family, net)
    assert isinstance(policy, Regressable)
    loss = policy.loss(torch.randn(12, policy.spec.cond_dim), torch.rand(12, 8, 3))
    assert loss.shape == (12,)
    assert (loss >= 0).all()
    loss.mean().backward()
    assert sum(p.grad.abs().sum() for p in policy.net.parameters() if p.grad is not None) > 0


@every_family
def test_a_regressable_policy_learns_a_constant_chunk(make_policy, family):
    policy = make_policy(family, **QUICKLY.get(family, {}))
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    cond, chunk = torch.randn(32, policy.spec.cond_dim), torch.full((32, 8, 3), 0.5)
    for _ in range(SLOWLY.get(family, 300)):
        optimizer.zero_grad()
        policy.loss(cond, chunk).mean().backward()
        optimizer.step()
    with torch.no_grad():
        error = (policy.sample(cond, policy.initial_noise(32), num_steps=8) - 0.5).abs().mean()
    assert error < 0.15


@every_family
@every_policy
def test_a_samplable_policy_is_a_differentiable_function_of_its_noise_and_condition(make_policy, family, net):
    policy = make_policy(family, net)
    assert isinstance(policy, Samplable)
    cond = torch.randn(6, policy.spec.cond_dim, requires_grad=True)
    noise = policy.initial_noise(6)
    chunk = policy.sample(cond, noise, num_steps=2)
    assert chunk.shape == (6, 8, 3)
    assert torch.equal(chunk, policy.sample(cond, noise, num_steps=2))
    chunk.sum().backward()
    assert cond.grad.abs().sum() > 0


@every_family
@every_policy
def test_every_family_becomes_stochastic_for_ppo(make_policy, family, net):
    policy = make_policy(family, net)
    actor = make_stochastic(policy, num_steps=4)
    assert isinstance(actor, Stochastic)
    cond = torch.randn(6, policy.spec.cond_dim)
    x = actor.start(cond)
    step = actor.kernel(cond)(0, x)
    assert step.draw(x, torch.randn_like(x)).shape == step.mean_from(x).shape == step.stds.shape == x.shape == (6, 8, 3)
    assert (step.stds > 0).all()


def test_a_policy_without_a_chain_is_refused_for_ppo_with_what_to_do(make_spec):
    policy = Policy(make_spec(), nn.Identity())
    with pytest.raises(UserError, match="derive it from FlowPolicy"):
        make_stochastic(policy, num_steps=4)


@every_family
@every_policy
def test_a_checkpoint_restores_weights_and_normalisers(make_policy, family, net):
    policy = make_policy(family, net)
    restored = build_policy(policy.spec)
    restored.load_state_dict(policy.state_dict(), strict=True)
    obs = {"state": torch.randn(4, 2, 5)}
    actions = [p.act(obs, torch.Generator().manual_seed(1), num_steps=2) for p in (policy, restored)]
    assert torch.equal(*actions)
    assert torch.equal(restored.encoder.state_normalizer.shift, policy.encoder.state_normalizer.shift)


@every_family
def test_actions_are_executed_steps_in_env_units_inside_the_demonstrated_range(make_policy, family):
    policy = make_policy(family)
    low, high = (policy.action_normalizer.denormalize(torch.full((3,), v)) for v in (-1.0, 1.0))
    with torch.no_grad():
        actions = policy.act({"state": 50 * torch.randn(64, 2, 5)}, torch.Generator().manual_seed(0))
    assert actions.shape == (64, 4, 3)
    assert (actions >= low).all()
    assert (actions <= high).all()


def test_equal_generators_give_equal_actions_and_other_noise_gives_others(make_policy):
    policy = make_policy("shortcut")
    obs = {"state": torch.randn(4, 2, 5)}
    first, again, other = (policy.act(obs, torch.Generator().manual_seed(seed)) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_action_chunk_survives_normalisation_and_back(make_policy):
    policy = make_policy()
    chunk = policy.action_normalizer.denormalize(2 * torch.rand(10, 8, 3) - 1)  # inside the demonstrated range
    back = policy.to_action(policy.normalize_chunk(chunk))
    torch.testing.assert_close(back, chunk[:, policy.spec.executed], rtol=0, atol=1e-6)


def test_values_outside_the_demonstrated_range_are_limited_only_on_the_way_out(make_policy):
    policy = make_policy()
    policy.action_normalizer.fit_(torch.tensor([[2.0, 2.0, 2.0], [6.0, 6.0, 6.0]]))  # 4 +- 2
    assert (policy.normalize_chunk(torch.full((1, 8, 3), 10.0)) == 3).all()
    assert (policy.to_action(torch.full((1, 8, 3), 3.0)) == 6).all()


def test_the_encoder_normalises_and_flattens_oldest_first():
    encoder = ObsEncoder(PolicySpec(net="mlp", state_dim=2, obs_horizon=2))
    encoder.state_normalizer.fit_(torch.tensor([[0.0, 10.0], [2.0, 30.0]]))  # means 1, 20; stds 1, 10
    state = torch.tensor([[[3.0, 20.0], [1.0, 40.0]]])  # older frame, newer frame
    # (3-1)/1, (20-20)/10, (1-1)/1, (40-20)/10
    assert encoder({"state": state}).tolist() == [[2.0, 0.0, 0.0, 2.0]]
