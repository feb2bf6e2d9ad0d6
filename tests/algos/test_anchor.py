"""The distance to the policy before fine-tuning, and what it does in PPO."""

from __future__ import annotations

import copy

import pytest
import torch

from reinflow.algos.anchor import Anchor
from reinflow.algos.config import PPOConfig
from reinflow.algos.ppo import PPO


def test_the_distance_is_the_squared_shift_of_what_is_executed(make_policy):
    policy = make_policy("reflow")
    anchor = Anchor(policy, 0.05, 0)
    cond, x_0 = torch.randn(3, policy.spec.cond_dim), torch.randn(3, 8, 3)
    assert anchor.distance(policy, cond, cond, x_0, 4).tolist() == [0, 0, 0]
    sample = policy.sample
    shift = torch.zeros(8, 1)
    shift[1:5] = 0.5  # two frames of history, 4 executed steps
    shift[5:] = 9.0
    policy.sample = lambda *arguments: sample(*arguments) + shift
    torch.testing.assert_close(anchor.distance(policy, cond, cond, x_0, 4), torch.full((3,), 0.25))


@pytest.mark.parametrize(("decay", "expected"), [(100, [0.2, 0.15, 0.0, 0.0]), (0, [0.2] * 4)])
def test_its_weight_falls_in_a_straight_line(make_policy, decay, expected):
    anchor = Anchor(make_policy("reflow"), 0.2, decay)
    weights = []
    for env_steps in (0, 25, 100, 300):
        anchor.follow_(env_steps)
        weights.append(anchor.weight.item())
    assert weights == pytest.approx(expected)


@pytest.mark.parametrize("micro", [None, 5])
def test_ppo_adds_the_weighted_distance_to_its_loss_and_nothing_without(make_agent, fill, micro):
    agent = make_agent("reflow")
    buffer = fill(agent)
    rows = next(iter(buffer.minibatches(16, torch.Generator().manual_seed(0))))
    plain = PPO(agent, PPOConfig())
    with_anchor = PPO(agent, PPOConfig(w2_coef=0.5, micro_batch_size=micro))
    with torch.no_grad():
        for parameter in agent.policy.net.parameters():
            parameter.add_(0.05)
    before, after = plain.add_gradients(rows), with_anchor.add_gradients(rows)
    assert plain.anchor is None and "w2" not in before
    assert after["w2"] > 1e-4
    torch.testing.assert_close(after["loss"], before["loss"] + 0.5 * after["w2"])


def test_it_pulls_back_to_the_policy_that_it_started_from_after_a_resume(make_agent):
    agent = make_agent("reflow")
    first = PPO(agent, PPOConfig(w2_coef=1.0))
    with torch.no_grad():
        for parameter in agent.policy.net.parameters():
            parameter.add_(0.05)
    second = PPO(agent, PPOConfig(w2_coef=1.0))  # made from weights that have moved
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    cond, x_0 = torch.randn(16, agent.policy.spec.cond_dim), torch.randn(16, 8, 3)
    optimizer = torch.optim.Adam(agent.policy.net.parameters(), lr=3e-3)
    found = []
    for _ in range(40):
        loss = second.anchor.distance(agent.policy, cond, cond, x_0, 4).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert found[-1] < 0.3 * found[0]
