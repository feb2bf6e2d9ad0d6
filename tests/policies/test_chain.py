"""Log-probabilities, KL and entropy of denoising chains, by hand and for every family and network."""

from __future__ import annotations

import math
from operator import itemgetter

import pytest
import torch

from reinflow.policies import FAMILIES, NETS, NoiseNetConfig, make_stochastic
from reinflow.policies.chain import (
    chain_entropy,
    chain_log_prob,
    chain_moments,
    denoise,
    joint_kl,
    sample_chain,
    scored_dims,
)
from reinflow.policies.transition import Transition
from reinflow.runtime.trees import mapped

CHAINS = [(family, num_steps) for family in FAMILIES for num_steps in (1, 3, 8)]
"""3 is on no family's trained grid"""
every_chain = pytest.mark.parametrize(("family", "num_steps"), CHAINS)
every_normal_chain = pytest.mark.parametrize(("family", "num_steps"), [pair for pair in CHAINS if pair[0] != "gmm"])
every_net = pytest.mark.parametrize("net", NETS)


def column(*values):
    """A chain quantity of one row, one position and one action dimension."""
    return torch.tensor(values).reshape(1, -1, 1, 1)


ALL_VARY = torch.ones(3).bool()
ROUNDED = 1e-4
"""products of other numbers of rows round otherwise, which DDPM, dividing by a small signal, makes ten times larger"""


@pytest.fixture
def make_actor(make_policy):
    def build(family, num_steps, net="mlp", **config):
        actor = make_stochastic(make_policy(family, net), num_steps, NoiseNetConfig(**config))
        with torch.no_grad():
            for parameter in actor.noise_parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))  # a std that differs by step, row and dimension
        actor.set_noise_bounds_(0.1, 0.4)
        return actor

    return build


def drawn(actor, rows=16, mode="feeds"):
    policy = getattr(actor, "policy", actor)
    scored = scored_dims(actor.num_steps, 8, policy.spec.executed, ALL_VARY, mode)
    cond = torch.randn(rows, policy.spec.cond_dim)
    with torch.no_grad():
        chain = sample_chain(actor, cond, scored, torch.Generator().manual_seed(0))
    return chain, cond, scored


def test_log_prob_of_a_two_step_chain_by_hand():
    # z_0 = (1 - .8)/.5 = .4;  z_1 = (1.5 - 1.6)/.1 = -1;  log N = -z^2/2 - log sigma - .9189385
    # -.08 + .6931472 - .9189385 = -.3057913;  -.5 + 2.3025851 - .9189385 = .8836466;  sum .5778553
    log_prob = chain_log_prob(column(0.0, 1.0, 1.5), column(0.8, 1.6), column(0.5, 0.1), torch.ones(2, 1, 1).bool())
    torch.testing.assert_close(log_prob, torch.tensor([0.5778553]))


def test_log_prob_is_the_sum_of_normal_densities_over_scored_dims():
    states, means, stds = torch.randn(5, 4, 8, 3), torch.randn(5, 3, 8, 3), 0.1 + torch.rand(5, 3, 8, 3)
    scored = scored_dims(3, 8, slice(1, 5), ALL_VARY)
    density = torch.distributions.Normal(means, stds).log_prob(states[:, 1:])
    expected = density[:, :2].sum((1, 2, 3)) + density[:, 2, 1:5].sum((1, 2))
    torch.testing.assert_close(chain_log_prob(states, means, stds, scored), expected)


def test_log_prob_is_neither_clamped_nor_blind_far_from_the_mean():
    # z = 100: log N = -5000 - log 1 - .9189385, and d log N / d mean = z / sigma = 100
    mean = column(0.0).requires_grad_()
    log_prob = chain_log_prob(column(0.0, 100.0), mean, column(1.0), torch.ones(1, 1, 1).bool())
    torch.testing.assert_close(log_prob.detach(), torch.tensor([-5000.9189385]))
    assert torch.autograd.grad(log_prob.sum(), mean)[0].item() == 100


def test_joint_kl_by_hand():
    # KL(N(0,1) || N(1,2)) = log 2 + (1 + 1)/(2 * 4) - 1/2 = .4431472; two equal steps give twice that
    kl = joint_kl(column(0.0, 0.0), column(1.0, 1.0), column(1.0, 1.0), column(2.0, 2.0), torch.ones(2, 1, 1).bool())
    torch.testing.assert_close(kl, torch.tensor([2 * 0.4431472]))


def test_joint_kl_and_entropy_are_those_of_torch_distributions():
    old_means, means = torch.randn(2, 5, 3, 8, 2)
    old_stds, stds = 0.1 + torch.rand(2, 5, 3, 8, 2)
    scored = scored_dims(3, 8, slice(1, 5), ALL_VARY[:2], "all")
    old, new = torch.distributions.Normal(old_means, old_stds), torch.distributions.Normal(means, stds)
    expected = torch.distributions.kl_divergence(old, new).sum((1, 2, 3))
    torch.testing.assert_close(joint_kl(old_means, old_stds, means, stds, scored), expected)
    torch.testing.assert_close(chain_entropy(stds, scored), new.entropy().mean((1, 2, 3)))


def test_scored_dims_of_the_three_modes():
    executed = slice(1, 3)
    one = torch.ones(1).bool()
    feeds, executed_only = (scored_dims(2, 4, executed, one, mode)[:, :, 0] for mode in ("feeds", "executed"))
    assert feeds.tolist() == [[True] * 4, [False, True, True, False]]
    assert executed_only.tolist() == [[False, True, True, False]] * 2
    assert scored_dims(2, 4, executed, one, "all").all()


def test_action_dims_that_the_demonstrations_hold_constant_are_not_scored():
    varies = torch.tensor([True, False, True])
    scored = scored_dims(2, 4, slice(1, 3), varies)
    assert torch.equal(scored, scored_dims(2, 4, slice(1, 3), ALL_VARY) & varies)
    assert scored_dims(2, 4, slice(1, 3), varies, "all").all()


@every_net
@every_chain
def test_the_ratio_of_a_rescored_chain_is_one(make_actor, family, num_steps, net):
    actor = make_actor(family, num_steps, net)
    chain, cond, scored = drawn(actor)
    means, stds = chain_moments(actor, chain.states, cond)
    log_prob = chain_log_prob(chain.states, means, stds, scored)
    num_scored = int(scored.sum())
    ratio = ((log_prob - chain.log_prob) / math.sqrt(num_scored)).exp()
    torch.testing.assert_close(ratio, torch.ones(16), rtol=0, atol=ROUNDED)
    torch.testing.assert_close(
        joint_kl(chain.means, chain.stds, means, stds, scored), torch.zeros(16), rtol=0, atol=1e-4
    )


@every_net
@every_chain
def test_folding_k_into_the_batch_equals_the_loop_over_k(make_actor, family, num_steps, net):
    actor = make_actor(family, num_steps, net)
    chain, cond, _ = drawn(actor)
    means, stds = chain_moments(actor, chain.states, cond)
    for k in range(actor.num_steps):
        step = actor.kernel(cond)(k, chain.states[:, k])
        torch.testing.assert_close(mapped(means, itemgetter((slice(None), k))), step.centres, rtol=1e-5, atol=ROUNDED)
        torch.testing.assert_close(stds[:, k], step.stds, rtol=1e-5, atol=1e-6)


@every_normal_chain
def test_scoring_costs_one_forward_pass(make_actor, family, num_steps):
    actor = make_actor(family, num_steps)
    chain, cond, _ = drawn(actor)
    batches = []
    policy = getattr(actor, "policy", actor)
    velocity = policy.net.velocity
    policy.net.velocity = lambda sample, features: batches.append(len(sample)) or velocity(sample, features)
    chain_moments(actor, chain.states, cond)
    assert batches == [16 * actor.num_steps]


@every_normal_chain
def test_states_are_means_plus_std_times_the_drawn_noise(make_actor, family, num_steps):
    actor = make_actor(family, num_steps)
    chain, cond, scored = drawn(actor)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(chain.states[:, 0], actor.start(cond, generator))
    log_prob = torch.zeros(16)
    for k in range(actor.num_steps):
        eps = torch.randn(16, 8, 3, generator=generator)
        torch.testing.assert_close(chain.states[:, k + 1], chain.means[:, k] + chain.stds[:, k] * eps)
        density = -0.5 * eps.square() - chain.stds[:, k].log() - 0.5 * math.log(2 * math.pi)
        log_prob += density[:, scored[k]].sum(1)
    torch.testing.assert_close(chain.log_prob, log_prob, rtol=1e-4, atol=1e-3)


def test_unexecuted_actions_of_the_last_step_do_not_count_but_earlier_positions_do(make_actor):
    actor = make_actor("shortcut", 4)
    chain, cond, scored = drawn(actor)

    def score(states):
        return chain_log_prob(states, *chain_moments(actor, states, cond), scored)

    original = score(chain.states)
    tail = chain.states.clone()
    tail[:, -1, 5:] += 1  # executed rows are 1..4
    torch.testing.assert_close(score(tail), original, rtol=0, atol=0)
    executed, earlier = chain.states.clone(), chain.states.clone()
    executed[:, -1, 4] += 1
    earlier[:, -2, 5:] += 1
    assert ((score(executed) - original).abs() > 0.1).all()
    assert ((score(earlier) - original).abs() > 0.1).all()


def test_equal_generators_draw_equal_chains(make_actor):
    actor = make_actor("shortcut", 4)
    assert torch.equal(drawn(actor)[0].states[:, 0], drawn(actor)[0].states[:, 0])
    cond = torch.randn(3, 10)
    scored = scored_dims(4, 8, slice(1, 5), ALL_VARY)
    first, again, other = (sample_chain(actor, cond, scored, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first.states, again.states)
    assert not torch.equal(first.states, other.states)


@every_chain
def test_sampling_is_the_chain_whose_learned_std_goes_to_zero_and_whose_other_noise_is_x_0(
    make_actor, family, num_steps
):
    actor = make_actor(family, num_steps)
    actor.set_noise_bounds_(1e-9, 1e-9)
    policy = getattr(actor, "policy", actor)
    cond, x_0 = torch.randn(16, policy.spec.cond_dim), policy.initial_noise(16)
    scored = scored_dims(actor.num_steps, 8, policy.spec.executed, ALL_VARY)
    chain = denoise(actor, cond, x_0, x_0.expand(actor.num_steps, *x_0.shape), scored)
    chunk = policy.sample(cond, x_0, num_steps=num_steps)
    torch.testing.assert_close(chain.chunk, chunk, rtol=1e-5, atol=1e-5)


def a_mixture(rows=6, steps=1, modes=3):
    means, stds = torch.randn(rows, steps, modes, 8, 3), 0.1 + torch.rand(rows, steps, 8, 3)
    return Transition(means, stds, torch.randn(rows, steps, modes).log_softmax(-1))


def test_log_prob_of_a_mixture_is_that_of_torch_distributions_over_the_scored_dims():
    law, x = a_mixture(), torch.randn(6, 1, 8, 3)
    scored = scored_dims(1, 8, slice(1, 5), torch.tensor([True, False, True]))
    kept = [tensor[..., scored[0]] for tensor in (law.means[:, 0], law.stds, x[:, 0])]  # flat: (6 3 n), (6 1 n), (6 n)
    modes = torch.distributions.Independent(torch.distributions.Normal(kept[0], kept[1].expand_as(kept[0])), 1)
    weights = torch.distributions.Categorical(logits=law.log_weights[:, 0])
    expected = torch.distributions.MixtureSameFamily(weights, modes).log_prob(kept[2])
    torch.testing.assert_close(law.log_prob(x, scored), expected)


def test_kl_of_a_mixture_by_hand():
    # weights (1/4, 3/4) to (1/2, 1/2): .25 log .5 + .75 log 1.5 = .1308; modes N(0, 1) to N(1, 1) in both: .5
    old = Transition(torch.zeros(1, 1, 2, 1, 1), torch.ones(1, 1, 1, 1), torch.tensor([[[0.25, 0.75]]]).log())
    new = Transition(torch.ones(1, 1, 2, 1, 1), torch.ones(1, 1, 1, 1), torch.tensor([[[0.5, 0.5]]]).log())
    kl = old.kl(new, torch.ones(1, 1, 1).bool())
    torch.testing.assert_close(kl, torch.tensor([0.25 * math.log(0.5) + 0.75 * math.log(1.5) + 0.5]))


def test_kl_of_a_mixture_is_no_less_than_that_of_its_density():
    old, new, scored = a_mixture(1), a_mixture(1), torch.ones(1, 8, 3).bool()
    x = torch.randn(20_000, 8, 3)
    law = Transition(*(value[:, 0].expand(20_000, *value.shape[2:]) for value in vars(old).values()))
    drawn = law.draw(x, torch.randn_like(x)).unsqueeze(1)
    estimate = (old.log_prob(drawn, scored) - new.log_prob(drawn, scored)).mean()
    assert 0 < estimate < 1.01 * old.kl(new, scored).item()


def test_standard_normal_x_chooses_modes_by_their_weights_and_0_the_likeliest():
    # 40,000 draws: the std of a share is at most .0025
    weights, rows = torch.tensor([0.1, 0.6, 0.3]), 40_000
    means = torch.arange(3.0).reshape(1, 3, 1, 1).expand(rows, 3, 8, 3)
    law = Transition(means, torch.ones(rows, 8, 3), weights.log().expand(rows, 3))
    chosen = law.mean_from(torch.randn(rows, 8, 3))[:, 0, 0].long()
    torch.testing.assert_close(chosen.bincount(minlength=3) / rows, weights, rtol=0, atol=0.01)
    assert (law.mean_from(torch.zeros(rows, 8, 3)) == 1).all()


def test_a_mixture_of_one_mode_is_a_normal_distribution():
    one, other = (a_mixture(steps=2, modes=1) for _ in range(2))
    plain, plain_other = (Transition(law.means[:, :, 0], law.stds) for law in (one, other))
    scored = scored_dims(2, 8, slice(1, 5), ALL_VARY)
    x = torch.randn(6, 2, 8, 3)
    torch.testing.assert_close(one.log_prob(x, scored), plain.log_prob(x, scored))
    torch.testing.assert_close(one.kl(other, scored), plain.kl(plain_other, scored))
