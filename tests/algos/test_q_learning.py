"""The one TD target by hand and at its fixed point, and what an ensemble's head, minimum and targets do."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from nets.critic import QEnsemble, gaussian_histogram
from reinflow.algos.options import QConfig
from reinflow.algos.q_learning import QLearning, expected_minimum, random_minimum, td_target
from reinflow.errors import UserError

GAMMA = 0.9
SMALL = {"num_qs": 3, "num_min_qs": 2, "q_hidden_dim": 32, "lr_critic": 3e-3, "tau": 0.1}


def test_the_td_target_by_hand():
    reward = torch.tensor([1.0, 1.0, 1.0])
    discount = GAMMA ** torch.tensor([4.0, 4.0, 2.0])  # executed env steps
    terminated = torch.tensor([False, True, False])
    # 1 + .9^4 * 10 = 7.561; nothing follows an end; the third was truncated after 2 steps and goes on: 1 + .81 * 10
    target = td_target(reward, discount, terminated, torch.full((3,), 10.0))
    torch.testing.assert_close(target, torch.tensor([7.561, 1.0, 9.1]))


def test_the_random_minimum_is_one_of_pairs_and_their_mean_is_the_expected_minimum():
    q = torch.tensor([[3.0], [1.0], [2.0]])
    torch.manual_seed(0)
    drawn = torch.stack([random_minimum(q, 2) for _ in range(3_000)])
    assert set(drawn.flatten().tolist()) == {1.0, 2.0}
    # pairs: (3, 1) -> 1, (3, 2) -> 2, (1, 2) -> 1: mean 4/3, std .47, s.e. .0086
    assert abs(drawn.mean() - 4 / 3) < 4 * 0.0086
    torch.testing.assert_close(expected_minimum(q, 2), torch.tensor([4 / 3]))


class Corridor:
    """Two states, two chunks each. Chunk 0 stays for 4 steps, chunk 1 changes the state in 2 or ends from state 1."""

    reward = torch.tensor([0.5, 1.0, 0.2, 5.0])
    steps = torch.tensor([4.0, 2.0, 4.0, 3.0])
    after = torch.tensor([0, 1, 1, 0])
    terminated = torch.tensor([False, False, False, True])
    cond = F.one_hot(torch.tensor([0, 0, 1, 1]), 2).float()
    action = torch.tensor([[-1.0], [1.0], [-1.0], [1.0]])

    def solved(self) -> torch.Tensor:
        """Q by value iteration in plain floats, over (state, chunk)."""
        q = [0.0] * 4
        for _ in range(500):
            best = [max(q[0], q[1]), max(q[2], q[3])]
            q = [
                float(self.reward[i])
                + (0.0 if self.terminated[i] else GAMMA ** float(self.steps[i]) * best[int(self.after[i])])
                for i in range(4)
            ]
        return torch.tensor(q)


@pytest.mark.parametrize("head", [{}, {"q_bins": 31, "q_low": 0.0, "q_high": 0.8}, {"q_layer_norm": False}])
def test_the_fixed_point_is_the_solution_of_the_mdp(head):
    torch.manual_seed(0)
    task = Corridor()
    learner = QLearning(2, 1, QConfig(**SMALL | head), GAMMA)
    both = torch.tensor([-1.0, 1.0])
    for _ in range(1_000):
        next_cond = task.cond[2 * task.after]
        values = [learner.bootstrap(next_cond, one.expand(4, 1)) for one in both]
        target = td_target(task.reward, GAMMA**task.steps, task.terminated, torch.stack(values).amax(0))
        learner.update(task.cond, task.action, target)
    # state 1 is worth 5, so state 0 is worth 1 + .81 * 5 = 5.05, and staying in it .5 + .6561 * 5.05
    torch.testing.assert_close(task.solved(), torch.tensor([3.8133, 5.05, 3.4805, 5.0]), atol=1e-3, rtol=0)
    found = learner.slow(task.cond, task.action)
    torch.testing.assert_close(found, task.solved().expand(3, 4), atol=0.15, rtol=0)


def test_targets_follow_by_tau_alone():
    learner = QLearning(2, 1, QConfig(**SMALL), GAMMA)
    before = {name: value.clone() for name, value in learner.target_q.state_dict().items()}
    learner.update(torch.randn(8, 2), torch.randn(8, 1), torch.randn(8))
    now = learner.q.state_dict()
    for name, value in learner.target_q.state_dict().items():
        torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * now[name])


def test_a_stored_ensemble_predicts_returns_in_the_units_of_the_env_and_starts_the_next_learner():
    torch.manual_seed(0)
    for head in ({}, {"q_bins": 11}):
        learner = QLearning(2, 1, QConfig(**SMALL | head), GAMMA)
        cond, action = torch.randn(8, 2), torch.randn(8, 1)
        stored = QEnsemble.from_state(learner.unscaled().state_dict(), cond_dim=2)
        torch.testing.assert_close(stored(cond, action), learner.slow(cond, action))
        other = QLearning(2, 1, QConfig(**SMALL | head), 0.5, stored.state_dict())
        torch.testing.assert_close(other(cond, action), learner.slow(cond, action))
    wider = QLearning(2, 1, QConfig(**SMALL | {"q_hidden_dim": 16}), GAMMA, stored.state_dict())
    assert wider(cond, action).shape == (3, 8)


def test_new_qs_start_at_the_level_of_the_rewards_and_learnt_ones_stay():
    torch.manual_seed(0)
    cond, action = torch.randn(8, 2), torch.randn(8, 1)
    new = QLearning(2, 1, QConfig(**SMALL), GAMMA)
    before = new.slow(cond, action)
    new.start_at_(torch.tensor(7.0))
    torch.testing.assert_close(new.slow(cond, action), before + 7)
    torch.testing.assert_close(new(cond, action), before + 7)
    learnt = QLearning(2, 1, QConfig(**SMALL), GAMMA, new.unscaled().state_dict())
    learnt.start_at_(torch.tensor(7.0))
    torch.testing.assert_close(learnt.slow(cond, action), before + 7)


def test_a_target_as_a_histogram_by_hand():
    support = torch.tensor([0.0, 1.0, 2.0])
    # edges -.5, .5, 1.5, 2.5; from 1: -2, -.667, .667, 2 stds of .75: ndtr .0228, .2525, .7475, .9772
    shares = gaussian_histogram(torch.tensor([1.0, 9.0]), support)
    torch.testing.assert_close(shares[0], torch.tensor([0.2407, 0.5187, 0.2407]), atol=1e-4, rtol=0)
    # what lies beyond the support counts as its end
    assert shares[1].argmax() == 2
    torch.testing.assert_close(shares.sum(1), torch.ones(2))


def test_a_loss_that_is_not_finite_changes_no_weight():
    learner = QLearning(2, 1, QConfig(**SMALL), GAMMA)
    before = {name: value.clone() for name, value in learner.q.state_dict().items()}
    metrics = learner.update(torch.randn(4, 2), torch.randn(4, 1), torch.tensor([1.0, torch.nan, 1.0, 1.0]))
    assert metrics["losses/critic_skipped_steps"] == 1
    assert all(torch.equal(value, before[name]) for name, value in learner.q.state_dict().items())


@pytest.mark.parametrize("flags", [{"num_min_qs": 11}, {"num_min_qs": 0}, {"q_bins": 1}, {"q_bins": 5, "q_low": 2.0}])
def test_impossible_ensembles_are_refused(flags):
    with pytest.raises(UserError, match="must be|needs"):
        QConfig(**flags)
