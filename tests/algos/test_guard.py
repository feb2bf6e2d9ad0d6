"""What a bad number may not do to weights and advantages, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from reinflow.algos.advantages import gae, mean_over, normalized
from reinflow.algos.guard import StepGuard

BAD = {
    "a loss that is NaN": (math.nan, 1.0),
    "a loss that is infinite": (math.inf, 1.0),
    "a gradient that is infinite": (1.0, math.inf),
    "a gradient that is NaN": (1.0, math.nan),
}


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("case", BAD)
def test_a_bad_step_leaves_weights_and_moments_as_they_were_and_the_next_one_counts(make, case):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer, guard = make([weight], lr=0.1, fused=True), StepGuard()

    def step(loss: float, norm: float) -> None:
        weight.grad = torch.full((3,), norm)
        guard.step(torch.tensor(loss), [(optimizer, torch.tensor(norm))])

    step(1.0, 1.0)
    before = [weight.detach().clone(), *(value.clone() for value in optimizer.state[weight].values())]
    step(*BAD[case])
    after = [weight.detach(), *optimizer.state[weight].values()]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(before, after, strict=True))
    assert guard.metrics() == {"skipped_steps": 1, "skipped_in_a_row": 1}
    step(1.0, 1.0)
    assert not torch.equal(weight, before[0])


def test_steps_in_a_row_are_counted_and_the_most_of_them_kept():
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer, guard = torch.optim.Adam([weight], fused=True), StepGuard()
    for loss in (math.nan, 1.0, math.nan, math.nan, math.nan, 1.0, math.nan):
        weight.grad = torch.ones(1)
        guard.step(torch.tensor(loss), [(optimizer, torch.tensor(1.0))])
    # rows of 1, 3 and 1
    assert guard.metrics() == {"skipped_steps": 5, "skipped_in_a_row": 3}
    assert guard.in_a_row == 1


def test_an_actor_that_is_skipped_does_not_stop_the_critic():
    parameters = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizers = [torch.optim.Adam([p], lr=0.1, fused=True) for p in parameters]
    for parameter in parameters:
        parameter.grad = torch.ones(1)
    guard = StepGuard()
    guard.step(torch.tensor(1.0), [(optimizers[0], torch.tensor(math.inf)), (optimizers[1], torch.tensor(1.0))])
    assert (parameters[0].item(), parameters[1].item()) == (1.0, pytest.approx(0.9))
    assert guard.metrics()["skipped_steps"] == 1


def test_a_decision_without_outcome_is_cut_out_of_the_advantages():
    # decision 1 has no outcome: its advantage is 0, and decision 0 bootstraps from its V:
    # 1 + .5 * 2 - 3 = -1; decision 2 as ever: 4 + .5 * 6 - 5 = 2
    column = {"reward": [1.0, 1e30, 4.0], "value": [3.0, 2.0, 5.0], "next_value": [2.0, 9.0, 6.0]}
    parts = {name: torch.tensor(values)[:, None] for name, values in column.items()}
    ended = torch.tensor([[False], [True], [False]])
    advantages = gae(
        **parts,
        discount=torch.full((3, 1), 0.5),
        terminated=torch.zeros(3, 1, dtype=torch.bool),
        ended=ended,
        gae_lambda=0.5,
        valid=torch.tensor([[1.0], [0.0], [1.0]]),
    )
    assert advantages.flatten().tolist() == [-1.0, 0.0, 2.0]


def test_means_leave_out_what_is_not_valid():
    values, valid = torch.tensor([1.0, 5.0, 100.0]), torch.tensor([1.0, 1.0, 0.0])
    assert mean_over(values, valid) == 3.0
    assert mean_over(values, torch.zeros(3)) == 0.0
    # mean 3, unbiased std sqrt(8) = 2.828
    torch.testing.assert_close(normalized(values, valid), torch.tensor([-2.0, 2.0, 0.0]) / math.sqrt(8))
    torch.testing.assert_close(normalized(values[:2], valid[:2]), normalized(values[:2]))
