"""Offline critics: targets and expectiles by hand, and values in the units of the reward."""

from __future__ import annotations

import copy
from itertools import combinations

import pytest
import torch

from nets.critic import QEnsemble
from reinflow.algos.advantages import mean_value
from reinflow.algos.config import CriticConfig
from reinflow.algos.critics import Critics, expected_minimum, expectile_loss, td_target


def test_td_target_by_hand():
    # 1 + .9 * 10 = 10; terminated: 1; a chunk of two steps: 1 + .81 * 10 = 9.1
    target = td_target(
        reward=torch.ones(3),
        discount=torch.tensor([0.9, 0.9, 0.81]),
        terminated=torch.tensor([False, True, False]),
        next_value=torch.full((3,), 10.0),
    )
    torch.testing.assert_close(target, torch.tensor([10.0, 1.0, 9.1]))


def test_expectile_by_hand():
    # gaps: +2 (weight .9), -1 (weight .1)  ->  mean(.9 * 4, .1 * 1) = 1.85
    loss = expectile_loss(torch.tensor([3.0, 0.0]), torch.tensor([1.0, 1.0]), expectile=0.9)
    torch.testing.assert_close(loss, torch.tensor(1.85))


def test_the_expectile_loss_is_least_at_the_expectile():
    # q in {0, 1} equally often: .7 (1 - v) = .3 v, so v = .7
    value = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([value], lr=0.5)
    for _ in range(100):
        optimizer.zero_grad()
        expectile_loss(torch.tensor([0.0, 1.0]), value.expand(2), 0.7).backward()
        optimizer.step()
    assert value.item() == pytest.approx(0.7, abs=1e-4)


@pytest.mark.parametrize("depth", [1, 3])
def test_an_ensemble_is_made_of_its_state_alone(depth):
    ensemble = QEnsemble(5, 6, num_qs=3, hidden_dim=8, depth=depth)
    again = QEnsemble.from_state(ensemble.state_dict(), cond_dim=5)
    cond, chunk = torch.randn(4, 5), torch.randn(4, 6)
    assert torch.equal(again(cond, chunk), ensemble(cond, chunk))


def test_a_checkpoint_has_the_qs_that_v_was_fitted_to_in_units_of_the_reward():
    critics = make_critics(reward_scale=20.0)
    critics.update(**batch())
    cond, action = torch.randn(7, 2), torch.rand(7, 3)
    q = QEnsemble.from_state(critics.unscaled_q().state_dict(), cond_dim=2)
    torch.testing.assert_close(20 * q(cond, action), critics.target_q(cond, action))
    # the mean minimum over pairs of them, less V, is the advantage that weighted the policy
    advantage = 20 * (expected_minimum(q(cond, action), 2) - critics.unscaled_value()(cond))
    torch.testing.assert_close(advantage, critics.advantage(cond, action), rtol=1e-4, atol=1e-5)


def make_critics(**options: object) -> Critics:
    return Critics(2, 3, CriticConfig(**{"num_qs": 4, "q_hidden_dim": 16, **options}))


def batch(rows: int = 32, discount: float = 0.5) -> dict[str, torch.Tensor]:
    return {
        "cond": torch.randn(rows, 2),
        "action": torch.rand(rows, 3),
        "reward": torch.ones(rows),
        "discount": torch.full((rows,), discount),
        "terminated": torch.zeros(rows, dtype=torch.bool),
        "next_cond": torch.randn(rows, 2),
        "next_action": torch.rand(rows, 3),
    }


def test_the_minimum_of_all_members_bounds_that_of_two():
    q = torch.randn(4, 50)
    two, all_four = make_critics(num_min_qs=2).pessimistic(q), make_critics(num_min_qs=4).pessimistic(q)
    torch.testing.assert_close(all_four, q.min(0).values)
    assert bool((two >= all_four).all())


def test_the_expected_minimum_is_the_mean_over_all_choices():
    # of 1, 2, 4 two can be (1, 2), (1, 4), (2, 4): minima 1, 1, 2
    torch.testing.assert_close(expected_minimum(torch.tensor([[2.0], [4.0], [1.0]]), 2), torch.tensor([4 / 3]))
    q = torch.randn(6, 50)
    for members in range(1, 7):
        every = torch.stack([q[list(choice)].amin(0) for choice in combinations(range(6), members)])
        torch.testing.assert_close(expected_minimum(q, members), every.mean(0))


def test_targets_move_by_tau_towards_the_trained_members():
    critics = make_critics(tau=0.25)
    before = [p.clone() for p in critics.target_q.parameters()]
    critics.update(**batch())
    for old, target, trained in zip(before, critics.target_q.parameters(), critics.q.parameters(), strict=True):
        torch.testing.assert_close(target, 0.75 * old + 0.25 * trained)


@pytest.mark.parametrize("reward_scale", [1.0, 4.0])
def test_the_saved_value_predicts_unscaled_returns(reward_scale):
    # reward 1 for ever at discount .5: 1 / (1 - .5) = 2, whatever the scale used in training
    critics = make_critics(reward_scale=reward_scale, tau=0.1, lr_critic=3e-3)
    for _ in range(400):
        critics.update(**batch())
    torch.testing.assert_close(critics.unscaled_value()(torch.randn(20, 2)), torch.full((20,), 2.0), atol=0.15, rtol=0)


def test_training_state_continues_exactly():
    first, second = make_critics(), make_critics()
    data = [batch() for _ in range(4)]
    for rows in data[:2]:
        first.update(**rows)
    second.load_training_state(copy.deepcopy(first.training_state()))
    for critics in (first, second):
        torch.manual_seed(7)  # which members are bootstrapped
        for rows in data[2:]:
            critics.update(**rows)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_critics_that_start_at_the_mean_value_of_the_demonstrations_are_right_at_once():
    # reward 1 for ever at discount .5 is worth 2, and Q, its target and V are trained on 4 times that
    critics, rows = make_critics(reward_scale=4.0), batch()
    critics.start_at_(mean_value(rows["reward"], rows["discount"], rows["terminated"]))
    cond, action = rows["cond"], rows["action"]
    for value in (critics.q(cond, action), critics.target_q(cond, action), critics.value(cond)):
        torch.testing.assert_close(value.mean(), torch.tensor(8.0), rtol=0.05, atol=0)
