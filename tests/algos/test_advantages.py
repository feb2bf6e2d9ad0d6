"""GAE over decisions of unequal length, against sums that are written out per episode."""

from __future__ import annotations

import math

import pytest
import torch

from reinflow.algos.advantages import explained_variance, gae, mean_value, normalized


def random_rollout(decisions: int = 40, envs: int = 7) -> dict[str, torch.Tensor]:
    ended = torch.rand(decisions, envs) < 0.25
    return {
        "reward": torch.randn(decisions, envs, dtype=torch.float64),
        "value": torch.randn(decisions, envs, dtype=torch.float64),
        "next_value": torch.randn(decisions, envs, dtype=torch.float64),
        "discount": 0.9 ** torch.randint(1, 9, (decisions, envs)).double(),
        "terminated": ended & (torch.rand(decisions, envs) < 0.5),
        "ended": ended,
    }


@pytest.mark.parametrize("gae_lambda", [0.0, 0.9, 1.0])
def test_gae_equals_a_sum_per_episode_on_random_flags(gae_lambda):
    data = random_rollout()
    advantage = gae(**data, gae_lambda=gae_lambda)
    decisions, envs = data["reward"].shape
    for env in range(envs):
        for start in range(decisions):
            total, weight = 0.0, 1.0
            for step in range(start, decisions):
                row = {name: tensor[step, env].item() for name, tensor in data.items()}
                bootstrap = 0.0 if row["terminated"] else row["discount"] * row["next_value"]
                total += weight * (row["reward"] + bootstrap - row["value"])
                weight *= row["discount"] * gae_lambda
                if row["ended"]:
                    break
            assert advantage[start, env].item() == pytest.approx(total, abs=1e-9)


def test_lambda_one_gives_the_monte_carlo_return_minus_the_value():
    # two decisions of 2 and 1 env steps at gamma .5, then the time limit with V' = 8:
    # return = 1 + .25 * (3 + .5 * 8) = 2.75, minus V = 2
    advantage = gae(
        reward=torch.tensor([[1.0], [3.0]]),
        value=torch.tensor([[2.0], [5.0]]),
        next_value=torch.tensor([[5.0], [8.0]]),
        discount=torch.tensor([[0.25], [0.5]]),
        terminated=torch.tensor([[False], [False]]),
        ended=torch.tensor([[False], [True]]),
        gae_lambda=1.0,
    )
    torch.testing.assert_close(advantage[0], torch.tensor([0.75]))


def test_truncation_bootstraps_and_termination_does_not():
    # R = 1, V = 0, V' = 10, discount .9: truncated 1 + 9 = 10, terminated 1
    one = torch.ones(1, 2)
    advantage = gae(
        one, 0 * one, 10 * one, 0.9 * one, torch.tensor([[False, True]]), torch.tensor([[True, True]]), 0.95
    )
    torch.testing.assert_close(advantage, torch.tensor([[10.0, 1.0]]))


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_the_value_of_a_constant_reward_is_one_over_one_minus_gamma_whatever_the_chunk_length(steps):
    # R = sum_{i<h} gamma^i = (1 - gamma^h) / (1 - gamma), so V = R / (1 - gamma^h) = 1 / (1 - gamma) = 10
    gamma, shape = 0.9, (50, 1)
    reward = torch.full(shape, sum(gamma**i for i in range(steps)), dtype=torch.float64)
    never = torch.zeros(shape, dtype=torch.bool)
    value = torch.zeros(shape, dtype=torch.float64)
    for _ in range(200):
        value += gae(reward, value, value, torch.full_like(value, gamma**steps), never, never, gae_lambda=0.0)
    torch.testing.assert_close(value, torch.full_like(value, 10.0))


def test_normalized_advantages_have_zero_mean_and_unit_std():
    # mean 2, std sqrt(((-1)^2 + 0 + 1^2) / 2) = 1
    torch.testing.assert_close(normalized(torch.tensor([1.0, 2.0, 3.0])), torch.tensor([-1.0, 0.0, 1.0]))


def test_explained_variance_of_a_perfect_a_constant_and_an_opposite_critic():
    # opposite: var(2 r) / var(r) = 4, so 1 - 4 = -3
    returns = torch.tensor([-1.0, 0.0, 1.0])
    values = [returns, torch.full((3,), 7.0), -returns]
    results = [explained_variance(value, returns).item() for value in values]
    assert results == pytest.approx([1.0, 0.0, -3.0])


def test_the_mean_value_is_the_fixed_point_of_a_chain_whose_states_are_all_alike():
    # rewards 2 and 4, discounts .5 and .9, the second one ending with chance 1/2: V = 3 + (.5 + .9 / 2) / 2 * V
    reward, discount = torch.tensor([2.0, 2.0, 4.0, 4.0]), torch.tensor([0.5, 0.5, 0.9, 0.9])
    ends = torch.tensor([False, False, True, False])
    torch.testing.assert_close(mean_value(reward, discount, ends), torch.tensor(3 / (1 - 0.475)))
    valid = torch.tensor([1.0, 1.0, 0.0, 1.0])
    reward[2] = math.nan
    torch.testing.assert_close(mean_value(reward, discount, ends, valid), torch.tensor(8 / 3 / (1 - 1.9 / 3)))


def test_undiscounted_rewards_without_an_end_count_for_a_hundred_decisions():
    ones, never = torch.ones(5), torch.zeros(5, dtype=torch.bool)
    torch.testing.assert_close(mean_value(ones, ones, never), torch.tensor(100.0))
