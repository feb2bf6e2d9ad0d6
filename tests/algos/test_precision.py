"""Both sides of the ratio come from products of one precision, and of one kernel where they are rounded."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from reinflow.algos.ppo import PPO
from reinflow.run.run import seed_everything
from reinflow.runtime.acceleration import EXACT, Precision, allow_tf32, tf32_allowed
from reinflow.runtime.config import AccelerationConfig
from tests.test_hot_paths import filled, make_agent

BF16 = AccelerationConfig(bf16=True)


@pytest.fixture(autouse=True)
def switches():
    before = tf32_allowed()
    yield
    allow_tf32(*before)


def first_ratio(net: str, acceleration: AccelerationConfig, micro_batch_size: int | None = None) -> float:
    """How far the first minibatch's ratios are from 1, of chains that were drawn in float32."""
    agent = make_agent(net)
    buffer = filled(agent)
    agent.accelerate_(acceleration)
    agent.config = dataclasses.replace(agent.config, minibatch_size=22, micro_batch_size=micro_batch_size, ppo_epochs=1)
    learner = PPO(agent, agent.config)  # 64 rows in minibatches of 22, 21 and 21
    return learner.update(buffer, torch.Generator().manual_seed(0))["ratio_deviation"].item()


@pytest.mark.parametrize(("net", "micro_batch_size"), [("mlp", None), ("mlp", 8), ("unet", None)])
def test_the_ratio_of_the_first_minibatch_is_1_in_bfloat16(net, micro_batch_size):
    assert first_ratio(net, BF16, micro_batch_size) <= 1e-6


def test_it_is_not_where_the_rollout_keeps_what_it_was_drawn_with(monkeypatch):
    monkeypatch.setattr(PPO, "rescore_", lambda *_: None)
    assert first_ratio("mlp", BF16) > 1e-4


def test_exact_products_need_no_second_score(monkeypatch):
    monkeypatch.setattr(PPO, "rescore_", lambda *_: pytest.fail("scored twice"))
    assert first_ratio("mlp", AccelerationConfig()) < 1e-4


def test_tf32_rounds_on_a_gpu_alone():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert not EXACT.rounds(gpu)
    assert Precision(tf32=True).rounds(gpu) and not Precision(tf32=True).rounds(cpu)
    assert Precision(bf16=True).rounds(gpu) and Precision(bf16=True).rounds(cpu)


def test_matrix_products_and_convolutions_are_switched_together_and_back():
    allow_tf32(products=True, convolutions=False)
    with pytest.raises(KeyError), Precision(tf32=True).products():
        assert tf32_allowed() == (True, True)
        with EXACT.products():
            assert tf32_allowed() == (False, False)
        raise KeyError
    assert tf32_allowed() == (True, False)


@pytest.mark.parametrize("tf32", [False, True])
def test_a_chain_is_drawn_scored_and_descended_as_asked_whatever_the_process_allows(monkeypatch, tf32):
    seed_everything(0)
    assert tf32_allowed() == (True, True)
    agent = make_agent()
    agent.accelerate_(AccelerationConfig(tf32=tf32))
    net, found = agent.policy.net, []

    def noted(*args):
        found.append(tf32_allowed())
        result = type(net).velocity(net, *args)
        if result.requires_grad:
            result.register_hook(lambda gradient: found.append(tf32_allowed()))
        return result

    monkeypatch.setattr(net, "velocity", noted)
    rows = filled(agent, decisions=1).flat()
    PPO(agent, agent.config).step(rows)
    assert found == [(tf32, tf32)] * 6  # four steps drawn, one forward that scores them, its backward
    agent.policy.act({"state": torch.zeros(2, 1, 9)})
    assert found[6:] == [(False, False)] * 4
    assert tf32_allowed() == (True, True)


def test_stds_and_densities_stay_float32_where_networks_are_bfloat16(monkeypatch):
    agent = make_agent()
    stds = agent.actor.stds(torch.ones(3, 9))
    agent.accelerate_(BF16)
    net, found = agent.policy.net, []

    def noted(*args):
        found.append(type(net).velocity(net, *args))
        return found[-1]

    monkeypatch.setattr(net, "velocity", noted)
    chain = agent.get_action(torch.ones(3, 9))
    assert {velocity.dtype for velocity in found} == {torch.bfloat16}
    assert {value.dtype for value in vars(chain).values()} == {torch.float32}
    assert torch.equal(chain.stds, stds)
