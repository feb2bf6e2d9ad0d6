"""The time grid, Euler sampling along it, and what plain ReFlow shows its network."""

from __future__ import annotations

import pytest
import torch

from nets.velocity import VelocityNet
from reinflow.policies import make_stochastic
from reinflow.policies.chain import sample_chain, scored_dims
from reinflow.policies.reflow import ReFlow
from reinflow.policies.shortcut import Shortcut
from reinflow.policies.times import interpolate, time_grid


class Recorder(VelocityNet):
    """A constant velocity field of 3 that notes the times it is asked for."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def times(self, timestep, step_size):
        return torch.stack((timestep, step_size), dim=-1)

    def condition(self, global_cond):
        return torch.zeros(len(global_cond), 2)

    def velocity(self, sample, features):
        self.calls.append(tuple(features.T.tolist()))
        return torch.full_like(sample, 3.0)


def test_the_grid_starts_at_noise_and_its_last_step_ends_at_data():
    times, d = time_grid(4)
    assert times.tolist() == [0.0, 0.25, 0.5, 0.75]
    assert times[-1] + d == 1


def test_interpolation_runs_from_noise_to_data():
    # .75 * 2 + .25 * 6 = 3
    x_0, x_1 = torch.full((3, 1, 1), 2.0), torch.full((3, 1, 1), 6.0)
    assert interpolate(x_0, x_1, torch.tensor([0.0, 0.25, 1.0])).flatten().tolist() == [2.0, 3.0, 6.0]


@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
def test_a_constant_field_moves_the_noise_by_its_velocity_in_any_number_of_steps(make_spec, num_steps):
    noise = torch.randn(5, 8, 3)
    for family in (Shortcut, ReFlow):
        chunk = family(make_spec(), Recorder()).sample(torch.zeros(5, 10), noise, num_steps)
        torch.testing.assert_close(chunk, noise + 3)


def test_sampling_and_scoring_ask_for_the_same_times(make_spec):
    sampled, scored = Recorder(), Recorder()
    Shortcut(make_spec(), sampled).sample(torch.zeros(1, 10), torch.zeros(1, 8, 3), num_steps=4)
    actor = make_stochastic(Shortcut(make_spec(), scored), num_steps=4)
    sample_chain(actor, torch.zeros(1, 10), scored_dims(4, 8, slice(1, 5), torch.ones(3).bool()))
    assert sampled.calls == scored.calls == [([k / 4], [0.25]) for k in range(4)]


def test_the_number_of_steps_defaults_to_that_of_the_spec(make_spec):
    net = Recorder()
    Shortcut(make_spec(num_inference_steps=3), net).sample(torch.zeros(1, 10), torch.zeros(1, 8, 3))
    assert len(net.calls) == 3


def test_reflow_shows_its_network_step_size_zero_only(make_spec):
    net = Recorder()
    policy = ReFlow(make_spec(), net)
    policy.sample(torch.zeros(2, 10), torch.zeros(2, 8, 3), num_steps=4)
    policy.loss(torch.zeros(500, 10), torch.zeros(500, 8, 3))
    assert all(d == 0 for _, step_sizes in net.calls for d in step_sizes)
    times = net.calls[-1][0]
    assert 0 <= min(times) < 0.02
    assert 0.98 < max(times) <= 1
