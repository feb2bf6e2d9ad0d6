"""What offline algorithms add to cloning and Q-learning, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from reinflow.algos.cal_ql import calibrated
from reinflow.algos.cql import conservative_gap, uniform_actions
from reinflow.algos.dipo import climbed
from reinflow.algos.qsm import q_gradient, score_target


def test_the_conservative_gap_by_hand():
    # T = 1: log((e^0 + e^log 3) / 2) = log 2, minus Q(data) = .5
    candidates = torch.tensor([[[0.0, math.log(3.0)]]])
    gap = conservative_gap(candidates, torch.tensor([[0.5]]), temperature=1.0)
    torch.testing.assert_close(gap, torch.tensor([[math.log(2.0) - 0.5]]))
    # T = 2 of twice the numbers is twice as much
    twice = conservative_gap(2 * candidates, torch.tensor([[1.0]]), temperature=2.0)
    torch.testing.assert_close(twice, 2 * gap)


@pytest.mark.parametrize(("temperature", "expected"), [(1e-3, 4.0), (1e4, 2.0)])
def test_the_gap_lies_between_the_highest_and_the_mean_candidate(temperature, expected):
    # of 0, 2, 4 against 0: the highest where it is cold, the mean where it is hot
    gap = conservative_gap(torch.tensor([[[0.0, 2.0, 4.0]]]), torch.zeros(1, 1), temperature)
    assert gap.item() == pytest.approx(expected, abs=2e-3)


def test_where_q_knows_no_action_nothing_is_pushed():
    q = torch.randn(3, 5)
    torch.testing.assert_close(conservative_gap(q.unsqueeze(-1).expand(-1, -1, 7), q, 10.0), torch.zeros(3, 5))


def test_the_gap_pushes_candidates_down_by_their_softmax_and_the_data_up():
    candidates = torch.tensor([[[0.0, math.log(3.0)]]], requires_grad=True)
    data = torch.zeros(1, 1, requires_grad=True)
    conservative_gap(candidates, data, 1.0).sum().backward()
    torch.testing.assert_close(candidates.grad, torch.tensor([[[0.25, 0.75]]]))
    assert data.grad.item() == -1


def test_calibrated_qs_are_nowhere_below_the_return_and_aren_t_pushed_there():
    q = torch.tensor([[[1.0, 5.0], [1.0, 5.0]]], requires_grad=True)
    raised = calibrated(q, torch.tensor([3.0, 9.0]))
    assert raised.tolist() == [[[3, 5], [9, 9]]]
    raised.sum().backward()
    assert q.grad.tolist() == [[[0, 1], [0, 0]]]


def test_uniform_actions_fill_the_demonstrated_range():
    actions = uniform_actions(torch.zeros(50, 3), 40)
    assert actions.shape == (50, 40, 3)
    assert -1 <= actions.min() < -0.99 and 0.99 < actions.max() <= 1
    assert abs(actions.mean().item()) < 0.03 and actions.std().item() == pytest.approx(1 / math.sqrt(3), abs=0.02)


def test_actions_climb_a_hill_by_the_steps_of_adam_and_stop_at_its_top():
    top = torch.tensor([[0.5, -0.9], [0.0, 0.0]])

    def q(action: torch.Tensor) -> torch.Tensor:
        return -(action - top).square().sum(-1)

    # Adam's first step has the length of its rate, whatever the slope
    one = climbed(q, torch.zeros(2, 2), steps=1, lr=0.1)
    torch.testing.assert_close(one, torch.tensor([[0.1, -0.1], [0.0, 0.0]]))
    many = climbed(q, torch.zeros(2, 2), steps=300, lr=0.05)
    torch.testing.assert_close(many, top, atol=1e-2, rtol=0)


def test_actions_climb_no_further_than_the_demonstrated_range():
    far = climbed(lambda action: action.sum(-1), torch.full((1, 2), 0.9), steps=5, lr=0.1)
    assert far.tolist() == [[1, 1]]


def test_the_gradient_of_q_by_hand():
    # Q = 3 a and 5 a at a = 1, -1: mean slope 4, sizes 3, 3, 5, 5
    slope = q_gradient(lambda a: torch.stack((3 * a[:, 0], 5 * a[:, 0])), torch.tensor([[1.0], [-1.0]]))
    torch.testing.assert_close(slope, torch.ones(2, 1))


def test_the_score_is_cloned_where_nothing_is_executed():
    noise = torch.ones(1, 4, 1)
    target = score_target(noise, torch.full((1, 2, 1), 0.25), slice(1, 3), q_score=2.0, own_noise=0.5)
    # .5 * 1 - 2 * .25 = 0 along the executed slice
    assert target.flatten().tolist() == [1, 0, 0, 1]
