"""The best of several chunks, against a loop over rows and candidates."""

from __future__ import annotations

import pytest
import torch

from nets.critic import QEnsemble
from reinflow.errors import UserError
from reinflow.policies.wrapped import Alternative, BestOf, Residual, Steered, as_trained


@pytest.fixture
def parts(make_policy):
    torch.manual_seed(0)
    policy = make_policy("shortcut")
    return policy, QEnsemble(policy.spec.cond_dim, policy.spec.act_horizon * policy.spec.action_dim, 3, 16)


@torch.no_grad()
def test_each_row_does_its_candidate_of_the_highest_mean_q(parts):
    policy, q = parts
    policy.spec = policy.spec.starting_with(0.0)
    best = BestOf(policy, q, 5)
    obs, noise = {"state": torch.randn(6, 2, 5)}, torch.randn(6, 5, 8, 3)
    actions = best.act(obs, noise=noise)
    cond = policy.encode(obs)
    for row in range(6):
        values, chunks = [], []
        for index in range(5):
            # its first candidate has the policy's own scale of x_0, the others 1
            scale = policy.spec.initial_noise_scale if index == 0 else 1.0
            chunk = policy.sample(cond[row : row + 1], scale * noise[row : row + 1, index])
            executed = chunk[:, policy.spec.executed].clamp(-1, 1).flatten(1)
            values.append(sum(q(cond[row : row + 1], executed).flatten().tolist()))
            chunks.append(policy.to_action(chunk)[0])
        torch.testing.assert_close(actions[row], chunks[values.index(max(values))])


@torch.no_grad()
def test_one_candidate_is_the_policy(parts):
    policy, q = parts
    obs, noise = {"state": torch.randn(6, 2, 5)}, torch.randn(6, 1, 8, 3)
    assert torch.equal(BestOf(policy, q, 1).act(obs, noise=noise), policy.act(obs, noise=noise[:, 0]))
    with pytest.raises(UserError, match="at least 1"):
        BestOf(policy, q, 0)


def with_weights(wrapped):
    """As after training: its last layer gives something."""
    torch.manual_seed(3)
    torch.nn.init.normal_(wrapped.net[-1].weight, std=0.5)
    return wrapped


@torch.no_grad()
def test_a_network_that_says_nothing_leaves_the_policy(parts):
    policy, _ = parts
    policy.spec = policy.spec.starting_with(0.0)  # x_0 = 0 is also what the network says at first
    obs, noise = {"state": torch.randn(6, 2, 5)}, torch.randn(6, 8, 3)
    for kind in (Residual, Steered):
        assert torch.equal(kind(policy, 0.1, 16).act(obs, noise=noise), policy.act(obs, noise=noise))


@torch.no_grad()
def test_a_correction_is_bounded_and_depends_on_the_policys_chunk(parts):
    policy, _ = parts
    residual = with_weights(Residual(policy, 0.1, 16))
    cond, noise = torch.randn(50, policy.spec.cond_dim), torch.randn(50, 8, 3)
    base = policy.sample(cond, policy.start_from(noise)).clamp(-1, 1)
    gap = residual.chunk(cond, noise) - base
    assert 0.05 < gap.abs().max() <= 0.1 + 1e-6
    other = residual.said(torch.cat((cond, 0 * base.flatten(1)), 1))
    assert not torch.allclose(gap, other)


@torch.no_grad()
def test_a_steered_flow_starts_where_the_network_says(parts):
    policy, _ = parts
    steered = with_weights(Steered(policy, 1.5, 16))
    cond = torch.randn(6, policy.spec.cond_dim)
    x_0 = 1.5 * steered.net(cond).tanh().view(6, 8, 3)
    torch.testing.assert_close(steered.chunk(cond, torch.randn(6, 8, 3)), policy.sample(cond, x_0))


@torch.no_grad()
def test_of_two_actors_the_one_with_the_higher_lowest_q_acts(parts):
    policy, q = parts
    both = with_weights(Alternative(policy, 1.0, 16, q))
    cond, noise = torch.randn(40, policy.spec.cond_dim), torch.randn(40, 8, 3)
    chunks = [policy.sample(cond, policy.start_from(noise)), both.said(cond)]
    lowest = [q(cond, c[:, policy.spec.executed].clamp(-1, 1).flatten(1)).min(0).values.tolist() for c in chunks]
    chosen = both.chunk(cond, noise)
    second = [own > imitated for imitated, own in zip(*lowest, strict=True)]
    assert 0 < sum(second) < 40
    for row, index in enumerate(second):
        assert torch.equal(chosen[row], chunks[index][row])


@torch.no_grad()
@pytest.mark.parametrize("kind", [Residual, Steered, Alternative])
def test_a_checkpoint_says_what_acted(parts, kind):
    policy, q = parts
    more = {"q": q} if kind is Alternative else {}
    wrapped = with_weights(kind(policy, 0.5, 16, **more))
    stored = {"actor": wrapped.net.state_dict(), "q": q.state_dict()}
    again = as_trained(policy, stored, wrapped.extra)
    obs, noise = {"state": torch.randn(6, 2, 5)}, torch.randn(6, 8, 3)
    assert torch.equal(again.act(obs, noise=noise), wrapped.act(obs, noise=noise))
    assert as_trained(policy, stored, wrapped.extra, best_of=1) is policy
    with pytest.raises(UserError, match="does not know"):
        as_trained(policy, stored, {"acts": {"kind": "dreams", "bound": 1.0, "hidden_dim": 4}})


def test_a_choice_without_qs_is_refused(parts):
    with pytest.raises(UserError, match="holds no Q, so --best_of 4"):
        as_trained(parts[0], {}, {}, best_of=4)
