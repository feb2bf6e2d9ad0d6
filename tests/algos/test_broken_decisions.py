"""Decisions without outcome, against a loop over one env that knows nothing of tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from reinflow.algos.rollout import RolloutBuffer

GAMMA, LAMBDA, CHUNK = 0.9, 0.8, 2
LAST_VALUE = 7.0


@dataclass(frozen=True)
class Decision:
    """What one env went through; `end` is None, "terminated", "truncated" or "broken"."""

    value: float
    reward: float = 1.0
    end: str | None = None
    final_value: float = 0.0


def by_hand(decisions: list[Decision]) -> list[float | None]:
    """Advantages; None where a decision is left out."""
    following = [*(decision.value for decision in decisions[1:]), LAST_VALUE]
    found: list[float | None] = []
    for start in range(len(decisions)):
        total, weight = None, 1.0
        for place in range(start, len(decisions)):
            one, after = decisions[place], following[place]
            if one.end == "broken":
                break
            beyond = {"terminated": 0.0, "truncated": one.final_value}.get(one.end or "", after)
            total = (total or 0.0) + weight * (one.reward + GAMMA**CHUNK * beyond - one.value)
            weight *= GAMMA**CHUNK * LAMBDA
            if one.end:
                break
        found.append(total)
    return found


def computed(episodes: list[list[Decision]], last_value: float = LAST_VALUE) -> RolloutBuffer:
    """A buffer of several envs; what a broken decision holds beside its V is NaN."""
    length, envs = len(episodes[0]), len(episodes)
    buffer = RolloutBuffer(length * envs, 1, 1, 1, GAMMA, LAMBDA, num_inference_steps=1)
    for row in zip(*episodes, strict=True):
        broken = torch.tensor([one.end == "broken" for one in row])
        nothing = torch.where(broken, math.nan, 0.0)
        buffer.add(
            obs=nothing[:, None],
            actions=nothing.view(-1, 1, 1, 1).expand(-1, 2, 1, 1),
            reward=torch.tensor([one.reward for one in row]) + nothing,
            value=torch.tensor([one.value for one in row]),
            log_prob=nothing,
            done=torch.tensor([one.end is not None for one in row]),
            valid=~broken,
            executed=torch.full((envs,), CHUNK),
            terminated=torch.tensor([one.end == "terminated" for one in row]),
            final_value=torch.tensor([one.final_value for one in row]) + nothing,
        )
    buffer.compute_returns_and_advantages(torch.full((envs,), last_value))
    return buffer


def steady(ends: dict[int, str], length: int = 5) -> list[Decision]:
    """Values 30, 31, 32, ..; an episode that is truncated bootstraps from 50."""
    return [Decision(30.0 + place, 1.0 + place, ends.get(place), 50.0) for place in range(length)]


EPISODES = {
    "nothing": steady({}),
    "one break": steady({2: "broken"}),
    "two in a row": steady({2: "broken", 3: "broken"}),
    "the first": steady({0: "broken"}),
    "the last": steady({4: "broken"}),
    "all": steady(dict.fromkeys(range(5), "broken")),
    "after a truncation": steady({1: "truncated", 2: "broken"}),
    "before a truncation": steady({2: "broken", 3: "truncated"}),
    "after a termination": steady({1: "terminated", 2: "broken"}),
    "before a termination": steady({2: "broken", 3: "terminated"}),
}


def test_the_decision_before_a_break_bootstraps_from_v_where_the_broken_one_began():
    # 1 + .81 * 31 - 30 = -3.89; scored as a termination it would be 1 - 30 = -29
    advantages = computed([[Decision(30.0), Decision(31.0, end="broken")]]).data["advantages"]
    torch.testing.assert_close(advantages.flatten(), torch.tensor([-3.89, 0.0]))


def test_advantages_around_breaks_are_those_of_a_loop_over_each_env():
    buffer = computed(list(EPISODES.values()))
    for env, (name, decisions) in enumerate(EPISODES.items()):
        expected = by_hand(decisions)
        kept = [advantage is not None for advantage in expected]
        assert (buffer.data["valid"][:, env] > 0).tolist() == kept, name
        assert buffer.data["advantages"][:, env].tolist() == pytest.approx([a or 0.0 for a in expected], abs=1e-4), name
        returns = [advantage + one.value for advantage, one in zip(expected, decisions, strict=True) if advantage]
        assert buffer.data["returns"][kept, env].tolist() == pytest.approx(returns, abs=1e-4), name


def test_nothing_that_is_left_out_holds_a_number_that_is_not_finite():
    data = computed(list(EPISODES.values())).data
    assert all(bool(entry.isfinite().all()) for entry in data.values())


def test_computing_twice_changes_nothing():
    buffer = computed(list(EPISODES.values()))
    once = buffer.data["advantages"].clone()
    buffer.compute_returns_and_advantages(torch.full((len(EPISODES),), LAST_VALUE))
    assert torch.equal(buffer.data["advantages"], once)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_judges_no_decision(value):
    # V of decision 2 is no number: it is left out, and so is 1, which would bootstrap from it; 0 does from V of 1
    bad = [Decision(value) if place == 2 else one for place, one in enumerate(steady({}))]
    hand = by_hand(steady({1: "broken", 2: "broken"}))
    buffer = computed([bad])
    assert buffer.data["valid"].flatten().tolist() == [1, 0, 0, 1, 1]
    assert buffer.data["advantages"].flatten().tolist() == pytest.approx([a or 0.0 for a in hand], abs=1e-4)
    assert all(bool(entry.isfinite().all()) for entry in buffer.data.values())


@pytest.mark.parametrize(("end", "kept"), [("truncated", 0), ("terminated", 1)])
def test_a_final_value_that_is_not_finite_matters_where_it_is_bootstrapped_from(end, kept):
    buffer = computed([[Decision(3.0, 1.0, end, math.nan)]], last_value=math.nan)
    assert buffer.data["valid"].item() == kept
    assert buffer.data["advantages"].item() == (1.0 - 3.0) * kept


def test_a_last_value_that_is_not_finite_matters_where_the_episode_goes_on():
    buffer = computed(
        [[Decision(3.0)], [Decision(3.0, end="broken")], [Decision(3.0, 1.0, "truncated", 3.0)]], math.nan
    )
    assert buffer.data["valid"].flatten().tolist() == [0, 0, 1]
