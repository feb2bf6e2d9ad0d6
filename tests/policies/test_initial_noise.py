"""`initial_noise_scale`: what a chain starts from when a policy acts, and that nothing else follows from it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from reinflow.errors import UserError
from reinflow.policies import FAMILIES, PolicyConfig, PolicySpec, build_policy, make_stochastic
from reinflow.policies.chain import sample_chain
from reinflow.policies.ema import EMA
from reinflow.policies.options import FlowConfig
from reinflow.types import EnvSpec

FLOWS = [name for name, entry in FAMILIES.items() if issubclass(entry.config, FlowConfig)]
TASK = EnvSpec("Toy-v0", "state", "toy", "torch", "sparse", 5, (-1.0,) * 3, (1.0,) * 3, 24)
OBS = {"state": torch.linspace(-1, 1, 4 * 2 * 5).reshape(4, 2, 5)}


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(rows: int = 4) -> torch.Tensor:
    return torch.randn(rows, 8, 3, generator=generator())


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0])
def test_x_0_is_the_drawn_noise_times_the_scale_and_the_generator_moves_on_alike(make_policy, scale):
    policy, used, expected = make_policy(initial_noise_scale=scale), generator(), generator()
    assert torch.equal(policy.initial_noise(4, used), scale * torch.randn(4, 8, 3, generator=expected))
    assert torch.equal(used.get_state(), expected.get_state())


@pytest.mark.parametrize("family", FLOWS)
def test_a_policy_acts_from_scaled_noise_whether_it_is_drawn_or_given(make_policy, family):
    policy = make_policy(family, initial_noise_scale=0.5)
    expected = policy.to_action(policy.sample(policy.encode(OBS), 0.5 * drawn()))
    assert torch.equal(policy.act(OBS, generator()), expected)
    assert torch.equal(policy.act(OBS, noise=drawn()), expected)
    policy.spec = policy.spec.starting_with(1.0)
    assert not torch.equal(policy.act(OBS, generator()), expected)


def test_from_the_centre_a_policy_is_a_function_of_what_it_sees(make_policy):
    policy = make_policy(initial_noise_scale=0.0)
    centre = policy.to_action(policy.sample(policy.encode(OBS), torch.zeros(4, 8, 3)))
    for seed in range(3):
        assert torch.equal(policy.act(OBS, generator(seed)), centre)


@pytest.mark.parametrize("family", FLOWS)
def test_a_chain_starts_at_the_scaled_noise_and_its_steps_draw_what_they_drew(make_policy, family):
    policy = make_policy(family)
    cond, scored = policy.encode(OBS), torch.ones(2, 8, 3, dtype=torch.bool)
    steps = {}
    for scale in (0.0, 0.5, 1.0):
        policy.spec = policy.spec.starting_with(scale)
        chain = sample_chain(make_stochastic(policy, 2), cond, scored, generator())
        assert torch.equal(chain.states[:, 0], scale * drawn())
        steps[scale] = (chain.states[:, 1:] - chain.means) / chain.stds
    for scale in (0.0, 0.5):
        torch.testing.assert_close(steps[scale], steps[1.0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FLOWS)
def test_training_draws_x_0_with_std_1_whatever_the_scale(make_policy, family):
    policy = make_policy(family)
    cond, chunk = policy.encode(OBS), torch.rand(4, 8, 3)
    losses = []
    for scale in (0.0, 1.0):
        policy.spec = policy.spec.starting_with(scale)
        torch.manual_seed(1)
        losses.append(policy.loss(cond, chunk))
    assert torch.equal(*losses)


def test_an_average_policy_starts_as_the_trained_one_does(make_policy):
    assert EMA(make_policy(initial_noise_scale=0.25)).module.spec.initial_noise_scale == 0.25


def test_a_checkpoint_from_before_the_scale_means_1(make_spec):
    stored = make_spec(initial_noise_scale=0.5).to_dict()
    assert PolicySpec.from_dict(stored).initial_noise_scale == 0.5
    del stored["initial_noise_scale"]
    assert PolicySpec.from_dict(stored).initial_noise_scale == 1


def test_a_new_policy_takes_the_given_scale_or_its_familys(monkeypatch):
    monkeypatch.setattr(FlowConfig, "noise_scale", 0.75)
    assert PolicyConfig(family="reflow").for_env(TASK, 4).initial_noise_scale == 0.75
    assert PolicyConfig(family="reflow", initial_noise_scale=0.0).for_env(TASK, 4).initial_noise_scale == 0
    assert PolicyConfig(family="gaussian").for_env(TASK, 4).initial_noise_scale == 1


@pytest.mark.parametrize("scale", [-0.1, 1.5, float("nan")])
def test_a_scale_outside_0_to_1_is_refused(make_spec, scale):
    with pytest.raises(UserError, match="--initial_noise_scale"):
        make_spec(initial_noise_scale=scale)


@pytest.mark.parametrize("family", ["gaussian", "mip"])
def test_a_family_that_starts_from_no_noise_refuses_a_scale(make_spec, family):
    build_policy(make_spec(family))
    with pytest.raises(UserError, match=f"starts from noise, and --family {family} does not"):
        replace(make_spec(family), initial_noise_scale=0.5)


def test_a_mixture_acts_by_its_likeliest_mode_at_scale_0_and_explores_by_all(make_policy):
    policy = make_policy("gmm", initial_noise_scale=0.0)
    with torch.no_grad():
        policy.weight_net[-1].bias[2] = 1.0
    cond = policy.encode(OBS)
    law = policy.kernel(cond)(0, drawn())
    assert (law.log_weights.argmax(1) == 2).all()
    assert torch.equal(policy.act(OBS, generator()), policy.to_action(law.means[:, 2]))
    assert torch.equal(policy.start(cond, generator()), drawn())
