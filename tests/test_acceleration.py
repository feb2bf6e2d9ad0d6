"""CUDA graphs without a GPU: a stand-in for the capture shows that places, copies and fallbacks are right."""

from __future__ import annotations

import copy
import dataclasses
import warnings

import pytest
import torch

from reinflow.algos.config import PPOConfig
from reinflow.algos.ppo import PPO
from reinflow.runtime.acceleration import MOST_GRAPHS, WARMUPS, Replayed, nothing_else, replayed
from reinflow.runtime.config import AccelerationConfig
from tests.test_hot_paths import filled, make_agent


def capture(function):
    """Records without running, as CUDA does; the results' place is filled by every replay."""
    results = []

    def replay():
        results[:] = [function()]

    return replay, results


class Graphs(Replayed):
    """`Replayed` on a CPU; its results lie one level deeper, because the stand-in's place is a list."""

    device_type = "cpu"

    def __init__(self, function, depends_on=nothing_else):
        self.captures = 0
        super().__init__(function, self.count, warm_up=lambda call: call(), depends_on=depends_on)

    def count(self, function):
        self.captures += 1
        return capture(function)

    def __call__(self, *args):
        results = super().__call__(*args)
        return results[0] if isinstance(results, list) else results


def test_a_replay_reads_the_new_inputs_and_its_results_outlive_the_next_call():
    weight = torch.tensor(2.0)
    double = Graphs(lambda rows: {"out": weight * rows["x"]["deep"]})
    results = [double({"x": {"deep": torch.full((3,), float(index))}}) for index in range(WARMUPS + 3)]
    weight.fill_(5.0)
    results.append(double({"x": {"deep": torch.ones(3)}}))
    assert double.captures == 1
    assert [result["out"][0].item() for result in results] == [0, 2, 4, 6, 8, 10, 5]


def test_every_set_of_shapes_has_a_graph_of_its_own():
    add = Graphs(lambda x: x + 1)
    for _ in range(WARMUPS + 2):
        for size in (2, 3):
            assert add(torch.zeros(size)).shape == (size,)
    assert add.captures == 2


def test_where_no_graph_can_be_captured_plain_code_goes_on_with_one_warning(monkeypatch):
    def fails(function):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Replayed, "device_type", "cpu")
    add = Replayed(lambda x: x + 1, fails, warm_up=lambda call: call())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = [add(torch.tensor(float(index))).item() for index in range(WARMUPS + 4)]
    assert results == list(range(1, WARMUPS + 5))
    (warning,) = caught
    assert str(warning.message).startswith("no CUDA graph of <lambda>, plain code goes on: operation")


def test_graphs_are_made_on_a_gpu_only_and_unless_they_are_unwanted():
    def function(x):
        return x

    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert AccelerationConfig().cuda_graphs
    assert replayed(function, True, cpu) is replayed(function, False, gpu) is function
    graphs = replayed(function, True, gpu)
    assert isinstance(graphs, Replayed)
    x = torch.ones(2)
    assert all(graphs(x) is x for _ in range(WARMUPS + 2))  # the tensor itself: on a CPU nothing was copied


def test_ever_new_shapes_get_plain_code_and_no_more_memory():
    add = Graphs(lambda x: x + 1)
    for size in range(1, MOST_GRAPHS + 4):
        for _ in range(WARMUPS + 1):
            assert add(torch.zeros(size)).shape == (size,)
    assert add.captures == MOST_GRAPHS


def test_arguments_that_are_no_tensors_and_what_else_decides_have_graphs_of_their_own():
    factor = [2.0]
    scale = Graphs(lambda x, power: x**power * factor[0], depends_on=lambda: factor[0])
    for _ in range(WARMUPS + 2):
        results = [scale(torch.tensor(3.0), power).item() for power in (1, 2)]
    assert (results, scale.captures) == ([6.0, 18.0], 2)
    factor[0] = 10.0
    assert scale(torch.tensor(3.0), 1).item() == 30.0


@pytest.mark.parametrize("net", ["mlp", "unet"])
def test_an_update_through_replays_equals_the_plain_one_to_the_bit(net):
    plain_agent = make_agent(net)
    agents = [plain_agent, copy.deepcopy(plain_agent)]
    buffer = filled(plain_agent)
    learners = [PPO(agent, PPOConfig(minibatch_size=20, ppo_epochs=3)) for agent in agents]
    graphs = learners[1].step = Graphs(learners[1].descend)
    metrics = [
        learner.update(copy.deepcopy(buffer), torch.Generator().manual_seed(0)) for learner in learners
    ]  # 64 rows in 4 minibatches of 16, 3 times: 12 steps, of which 9 are replayed
    assert graphs.captures == 1
    assert all(torch.equal(metrics[0][name], metrics[1][name]) for name in metrics[0])
    parameters = [list(agent.parameters()) for agent in agents]
    assert all(torch.equal(one, other) for one, other in zip(*parameters, strict=True))


def test_a_sampled_chain_through_replays_equals_the_plain_one():
    agent = make_agent()
    cond = torch.randn(5, 9)
    plain = [agent.get_action(cond, torch.Generator().manual_seed(seed)) for seed in range(WARMUPS + 3)]
    graphs = agent._denoise = Graphs(agent._denoised)
    again = [agent.get_action(cond, torch.Generator().manual_seed(seed)) for seed in range(WARMUPS + 3)]
    assert graphs.captures == 1
    assert all(torch.equal(one.log_prob, other.log_prob) for one, other in zip(plain, again, strict=True))
    assert all(torch.equal(one.states, other.states) for one, other in zip(plain, again, strict=True))


def graphed_act(policy):
    policy._decide = Graphs(policy._decided, depends_on=policy._graph_reads)
    return policy._decide


def test_actions_through_replays_equal_the_plain_ones_also_after_a_change_of_weights_and_spec():
    policy = make_agent().policy
    obs = {"state": torch.randn(1, 1, 9), "of no use": torch.ones(1)}

    def acted(num_steps=None):
        return [policy.act(obs, torch.Generator().manual_seed(seed), num_steps) for seed in range(WARMUPS + 2)]

    def both(num_steps=None):
        policy._decide = policy._decided
        plain = acted(num_steps)
        graphs = graphed_act(policy)
        assert all(torch.equal(one, other) for one, other in zip(plain, acted(num_steps), strict=True))
        assert graphs.captures == 1
        return graphs

    both(num_steps=2)
    graphs = both()
    with torch.no_grad():
        policy.net.out[-1].bias.add_(1.0)
    policy.spec = dataclasses.replace(policy.spec, initial_noise_scale=0.5)
    moved = acted()
    assert graphs.captures == 2
    policy._decide = policy._decided
    assert all(torch.equal(one, other) for one, other in zip(acted(), moved, strict=True))


def test_what_moves_the_weights_or_replaces_what_is_read_drops_the_graphs():
    agent = make_agent()
    policy = agent.policy
    for change in (agent.double, agent.float, lambda: agent.score_("all", count_initial_noise=False)):
        chain, act = agent._denoise, policy._decide
        change()
        assert agent._denoise is not chain
    assert policy._decide is act  # only the mask of the chain was replaced
    policy.to(torch.float64)
    assert policy._decide is not act


def test_the_copy_of_a_policy_acts_by_its_own_weights():
    policy = make_agent().policy
    graphed_act(policy)
    twin = copy.deepcopy(policy)
    assert twin._decide is not policy._decide
    assert twin._decide.function.__self__ is twin
    assert twin._decide.depends_on.__self__ is twin


@pytest.mark.parametrize("wanted", [True, False])
def test_on_a_gpu_all_are_graphs_unless_no_cuda_graphs_is_given(monkeypatch, wanted):
    agent = make_agent()
    gpu = property(lambda policy: torch.device("cuda"))
    monkeypatch.setattr(type(agent.policy), "device", gpu)
    monkeypatch.setattr(torch.optim, "Adam", lambda *_, **__: None)
    agent.accelerate_(AccelerationConfig(cuda_graphs=wanted))
    learner = PPO(agent, agent.config)
    functions = (agent._denoise, agent.policy._decide, learner.step, learner.step_critic, learner.score)
    assert all(isinstance(function, Replayed) == wanted for function in functions)
    assert not isinstance(learner.gradients, Replayed)  # they are part of the step, but under torchrun


def test_compile_covers_sampling_and_scoring(monkeypatch):
    calls = []

    def fake_compile(function):
        def compiled(*args):
            calls.append(len(args[0]))
            return function(*args)

        return compiled

    monkeypatch.setattr(torch, "compile", fake_compile)
    agent = make_agent()
    agent.accelerate_(AccelerationConfig(compile=True))
    rows = filled(agent, decisions=1).flat()
    assert calls == [32] * 4
    PPO(agent, agent.config).step(rows)
    assert calls[4:] == [32 * 4]
