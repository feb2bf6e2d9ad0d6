"""The noise that makes a policy stochastic: bounds, scale, gradients, and what it shares with the policy."""

from __future__ import annotations

import copy

import pytest
import torch

from reinflow.policies import FAMILIES, NoiseNetConfig, make_stochastic

every_family = pytest.mark.parametrize("family", FAMILIES)


def std_of(actor, rows=4):
    policy = getattr(actor, "policy", actor)
    cond = torch.randn(rows, policy.spec.cond_dim)
    return actor.kernel(cond)(0, actor.start(cond)).stds


@every_family
def test_the_std_starts_at_the_geometric_mean_of_its_bounds_and_follows_them_in_place(make_policy, family):
    actor = make_stochastic(make_policy(family), 1)  # the last step, whose noise is the learned one alone
    buffers = {name: b.data_ptr() for name, b in actor.named_buffers()}
    for low, high, expected in ((0.04, 0.16, 0.08), (0.01, 0.09, 0.03)):  # sqrt(.0064), sqrt(.0009)
        actor.set_noise_bounds_(low, high)
        torch.testing.assert_close(std_of(actor), torch.full((4, 8, 3), expected))
    assert {name: b.data_ptr() for name, b in actor.named_buffers()} == buffers


@every_family
def test_bounds_without_room_are_refused(make_policy, family):
    actor = make_stochastic(make_policy(family), 4)
    for low, high in ((0.0, 0.1), (0.2, 0.1)):
        with pytest.raises(ValueError, match="min_std"):
            actor.set_noise_bounds_(low, high)


@every_family
def test_gradients_reach_the_noise_and_the_std_stays_strictly_inside_its_bounds(make_policy, family):
    actor = make_stochastic(make_policy(family), 1)
    actor.set_noise_bounds_(0.05, 0.3)
    optimizer = torch.optim.Adam(actor.noise_parameters(), lr=0.3)
    for _ in range(100):  # drive the std as high as it goes
        optimizer.zero_grad()
        std = std_of(actor)
        (-std.mean()).backward()
        norm = sum(p.grad.square().sum() for p in actor.noise_parameters() if p.grad is not None).sqrt()
        assert norm > 0
        assert ((std > 0.05) & (std < 0.3)).all()
        optimizer.step()
    assert (std_of(actor) > 0.25).all()


def test_one_std_per_action_dimension_or_one_per_position(make_policy):
    for per_position in (False, True):
        actor = make_stochastic(make_policy("shortcut"), 2, NoiseNetConfig(noise_per_position=per_position))
        with torch.no_grad():
            for parameter in actor.noise_parameters():
                parameter.normal_()
        std = std_of(actor)
        assert std.shape == (4, 8, 3)
        assert torch.equal(std, std[:, :1].expand_as(std)) == (not per_position)


@every_family
def test_optimiser_groups_are_disjoint_and_complete(make_policy, family):
    actor = make_stochastic(make_policy(family), 4)
    velocity, noise = list(actor.velocity_parameters()), list(actor.noise_parameters())
    ids = [id(parameter) for parameter in (*velocity, *noise)]
    assert len(ids) == len(set(ids))
    assert set(ids) == {id(parameter) for parameter in actor.parameters()}


def test_a_flow_and_its_noisy_form_share_one_network(make_policy):
    policy = make_policy("shortcut")
    actor = make_stochastic(policy, 4)
    assert actor.policy is policy
    assert not any("noisy_net.base_net" in name for name in actor.state_dict())
    with torch.no_grad():
        policy.net.out[-1].bias.add_(1.0)
    cond, x = torch.randn(4, 10), torch.randn(4, 8, 3)
    mean = actor.kernel(cond)(0, x).means
    t = torch.zeros(4)
    torch.testing.assert_close(mean, x + policy.avg_velocity(x, t, t + 0.25, cond) / 4)


def test_a_copy_is_independent_of_the_original(make_policy):
    actor = make_stochastic(make_policy("shortcut"), 4)
    other = copy.deepcopy(actor)
    cond, x = torch.randn(4, 10), torch.randn(4, 8, 3)
    before = actor.kernel(cond)(0, x).means
    with torch.no_grad():
        other.policy.net.out[-1].bias.add_(1.0)
    assert torch.equal(actor.kernel(cond)(0, x).means, before)
    torch.testing.assert_close(other.kernel(cond)(0, x).means, before + 0.25)  # v + 1, times d = 1/4


def test_exploration_noise_is_off_when_a_policy_acts(make_policy):
    policy = make_policy("shortcut")
    obs = {"state": torch.randn(4, 2, 5)}
    before = policy.act(obs, torch.Generator().manual_seed(0))
    make_stochastic(policy, 4).set_noise_bounds_(0.5, 0.9)
    assert torch.equal(policy.act(obs, torch.Generator().manual_seed(0)), before)
