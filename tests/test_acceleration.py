"""CUDA graphs without a GPU: a stand-in for the capture shows that places, copies and fallbacks are right."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch

from reinflow.algos.config import PPOConfig
from reinflow.algos.ppo import PPO
from reinflow.runtime.acceleration import WARMUPS, Replayed, replayed
from reinflow.runtime.config import AccelerationConfig
from tests.test_hot_paths import filled, make_agent


def capture(function):
    """Records without running, as CUDA does; the results' place is filled by every replay."""
    results = []

    def replay():
        results[:] = [function()]

    return replay, results


class Graphs(Replayed):
    """`Replayed` whose results lie one level deeper, because the stand-in's place is a list."""

    def __init__(self, function):
        self.captures = 0
        super().__init__(function, self.count, warm_up=lambda call: call())

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


def test_where_no_graph_can_be_captured_plain_code_goes_on_with_one_warning():
    def fails(function):
        raise RuntimeError("operation not permitted when stream is capturing")

    add = Replayed(lambda x: x + 1, fails, warm_up=lambda call: call())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        results = [add(torch.tensor(float(index))).item() for index in range(WARMUPS + 4)]
    assert results == list(range(1, WARMUPS + 5))
    (warning,) = caught
    assert str(warning.message).startswith("no CUDA graph of <lambda>, plain code goes on: operation")


def test_graphs_are_made_on_a_gpu_only_and_when_asked_for():
    function, wanted = (lambda x: x), AccelerationConfig(cuda_graphs=True)
    assert replayed(function, wanted, torch.device("cpu")) is function
    assert replayed(function, AccelerationConfig(), torch.device("cuda")) is function
    assert isinstance(replayed(function, wanted, torch.device("cuda")), Replayed)


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
