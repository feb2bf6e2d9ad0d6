"""Chains whose first steps are kept from fine-tuning: who steps when, what is drawn, and what a checkpoint holds."""

from __future__ import annotations

import pytest
import torch

from reinflow.agent import ReinFlowAgent
from reinflow.errors import UserError
from reinflow.policies import FAMILIES, PolicySpec, build_policy, holding_early_steps, make_stochastic
from reinflow.policies.chain import chain_moments, sample_chain, scored_dims

STEPWISE = [name for name, entry in FAMILIES.items() if entry.config.denoises]
every_stepwise = pytest.mark.parametrize("family", STEPWISE)


@pytest.fixture
def holding(make_policy):
    """A policy of 4 steps whose last was fine-tuned by adding 1 to what its network gives."""

    def build(family, **changes):
        policy = make_policy(family, initial_noise_scale=1.0, **changes)
        held = holding_early_steps(policy, ft_denoising_steps=1, num_steps=4)
        with torch.no_grad():
            held.net.out[-1].bias.add_(1.0)
        return policy, held

    return build


@every_stepwise
def test_the_first_steps_are_the_old_networks_and_the_last_the_new_ones(holding, family):
    old, held = holding(family)
    cond, x = torch.randn(6, 10), torch.randn(6, 8, 3)
    before, after = old.step_means(cond, 4), held.step_means(cond, 4)
    for k in range(3):
        torch.testing.assert_close(after(k, x), before(k, x))
    assert (after(3, x) - before(3, x)).abs().max() > 0.01


@every_stepwise
def test_its_chain_starts_after_them_and_is_scored_in_one_pass_of_the_new_network(holding, family):
    old, held = holding(family)
    actor = make_stochastic(held, 4)
    assert (actor.num_steps, actor.all_steps) == (1, 4)
    cond, scored = torch.randn(6, 10), scored_dims(1, 8, held.spec.executed, torch.ones(3).bool())
    with torch.no_grad():
        chain = sample_chain(actor, cond, scored, torch.Generator().manual_seed(1))
    assert chain.states.shape == (6, 2, 8, 3)
    means, stds = chain_moments(actor, chain.states, cond)
    torch.testing.assert_close(means, chain.means, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stds, chain.stds, rtol=1e-5, atol=1e-5)
    means.sum().backward()
    assert all(p.grad is None for p in old.net.parameters())
    assert {id(p) for p in actor.velocity_parameters()} == {id(p) for p in held.net.parameters()}


def test_without_exploring_it_acts_as_its_chain_starts_and_ends(holding):
    _, held = holding("reflow")
    actor = make_stochastic(held, 4)
    cond = torch.randn(6, 10)
    start = actor.start(cond, torch.Generator().manual_seed(1))
    x_0 = held.initial_noise(6, torch.Generator().manual_seed(1))
    torch.testing.assert_close(actor.kernel(cond)(0, start).means, held.sample(cond, x_0, 4))


@pytest.mark.parametrize(("steps", "held"), [(20, 10), (10, 5), (5, 3), (2, 1), (1, 1), (40, 20)])
def test_other_numbers_of_steps_are_held_up_to_the_same_time(steps, held):
    # 10 of 20: time .5; of 5 steps those at 0, .2 and .4 start before it
    spec = PolicySpec.of(net="mlp", family="ddpm", num_inference_steps=20, ft_denoising_steps=10)
    assert spec.held_steps(steps) == held


@every_stepwise
def test_a_checkpoint_holds_both_networks_and_goes_on_with_them(holding, family):
    _, held = holding(family)
    restored = build_policy(PolicySpec.from_dict(held.spec.to_dict()))
    restored.load_state_dict(held.state_dict(), strict=True)
    cond, x = torch.randn(6, 10), torch.randn(6, 8, 3)
    assert torch.equal(restored.sample(cond, x), held.sample(cond, x))
    with pytest.raises(UserError, match="goes on so"):
        holding_early_steps(restored, 2, 4)
    agent = ReinFlowAgent.from_policy(restored)
    assert (agent.actor.num_steps, agent.policy.spec.num_inference_steps) == (1, 4)
    with pytest.raises(UserError, match="--num_inference_steps 8"):
        ReinFlowAgent.from_policy(restored, num_inference_steps=8)


@pytest.mark.parametrize(("family", "steps", "word"), [("gaussian", 1, "gaussian"), ("mip", 1, "mip"),
                                                       ("ddpm", 0, "from 1"), ("ddpm", 5, "from 1")])  # fmt: skip
def test_what_has_no_such_steps_is_refused(make_policy, family, steps, word):
    with pytest.raises(UserError, match=word):
        holding_early_steps(make_policy(family), steps, num_steps=4)
