"""The minimal iterative policy: its two regressions and its two steps, by hand."""

from __future__ import annotations

import pytest
import torch

from nets.velocity import VelocityNet
from reinflow.errors import UserError
from reinflow.policies.mip import MIP
from reinflow.policies.options import MIPConfig


class Affine(VelocityNet):
    """f(x, t) = x / 2 + t + .1, which notes the x that it is asked for."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def times(self, timestep, step_size):
        return timestep.unsqueeze(-1)

    def condition(self, global_cond):
        return torch.zeros(len(global_cond), 1)

    def velocity(self, sample, features):
        self.seen.append(sample)
        return sample / 2 + features.unsqueeze(-1) + 0.1


@pytest.mark.parametrize(("num_steps", "action"), [(1, 0.1), (2, 1.045), (3, 1.47025)])
def test_steps_by_hand(make_spec, num_steps, action):
    # f(0, 0) = .1;  f(.09, .9) = 1.045;  f(.9 * 1.045, .9) = .47025 + 1 = 1.47025; and whatever x_0 is
    chunk = MIP(make_spec("mip"), Affine()).sample(torch.zeros(2, 10), torch.randn(2, 8, 3), num_steps)
    torch.testing.assert_close(chunk, torch.full((2, 8, 3), action))


def test_the_loss_regresses_from_nothing_and_from_a_noisy_action(make_spec):
    # of chunks at 1: (1 - .1)^2 + (1 - f)^2, where f = (.9 + .1 z) / 2 + 1
    policy = MIP(make_spec("mip"), Affine())
    torch.manual_seed(0)
    loss = policy.loss(torch.zeros(5, 10), torch.ones(5, 8, 3))
    torch.manual_seed(0)
    z = torch.randn(5, 8, 3)
    expected = 0.81 + (0.45 + 0.05 * z).square().mean((1, 2))
    torch.testing.assert_close(loss, expected)
    assert not policy.net.seen[0][::2].any()


@pytest.mark.parametrize("time", [0.0, 1.0, -1.0])
def test_a_correction_from_no_time_in_between_is_refused(time):
    with pytest.raises(UserError, match="--correction_time"):
        MIPConfig(correction_time=time)
