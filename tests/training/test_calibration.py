"""Q against the discounted return that followed, by hand and against a loop backwards over single episodes."""

from __future__ import annotations

import torch

from reinflow.training.calibration import Calibration
from reinflow.types import ChunkStep, EpisodeStats

GAMMA = 0.9


def outcome(reward: torch.Tensor, executed: torch.Tensor, **flags: torch.Tensor) -> ChunkStep:
    no = torch.zeros(len(reward), dtype=torch.bool)
    flags = {"terminated": no, "truncated": no, "broken": no} | flags
    return ChunkStep({}, {}, reward, executed, episode=EpisodeStats(reward, executed, no, no), **flags)


def test_two_decisions_by_hand():
    calibration = Calibration(GAMMA)
    two = torch.tensor([2])
    calibration.add(torch.tensor([5.0]), outcome(torch.tensor([1.0]), two), 0.0)
    assert calibration.read() == {}
    end = outcome(torch.tensor([3.0]), two, truncated=torch.tensor([True]))
    calibration.add(torch.tensor([4.0]), end, torch.tensor([10.0]))
    # returns: 3 + .81 * 10 = 11.1 and 1 + .81 * 11.1 = 9.991; Q was 4 and 5: ((4 - 11.1) + (5 - 9.991)) / 2 = -6.0455
    torch.testing.assert_close(calibration.read()["losses/q_bias"], torch.tensor(-6.0455))
    assert calibration.read() == {}


def brute_force(script: list[dict[str, torch.Tensor]], env: int) -> list[float]:
    """Gaps of the decisions of one env, episode by episode, backwards."""
    gaps, episode = [], []
    for row in script:
        one = {name: value[env].item() for name, value in row.items()}
        episode.append(one)
        if one["broken"]:
            episode = []
        elif one["terminated"] or one["truncated"]:
            value = 0.0 if one["terminated"] else one["final"]
            for decision in reversed(episode):
                value = decision["reward"] + GAMMA ** decision["executed"] * value
                gaps.append(decision["q"] - value)
            episode = []
    return gaps


def test_many_envs_equal_a_loop_over_their_episodes():
    torch.manual_seed(0)
    script = [
        {
            "reward": torch.randn(8), "q": 3 * torch.randn(8), "final": torch.randn(8),
            "executed": torch.randint(1, 5, (8,)), "terminated": torch.rand(8) < 0.15,
            "truncated": torch.rand(8) < 0.2, "broken": torch.rand(8) < 0.1,
        }
        for _ in range(40)
    ]  # fmt: skip
    for row in script:
        row["terminated"] &= ~row["broken"]
        row["truncated"] &= ~row["broken"]
        row["reward"][row["broken"]] = torch.nan
    calibration = Calibration(GAMMA)
    for row in script:
        step = outcome(row["reward"], row["executed"], **{n: row[n] for n in ("terminated", "truncated", "broken")})
        calibration.add(row["q"], step, row["final"])
    gaps = [gap for env in range(8) for gap in brute_force(script, env)]
    assert len(gaps) > 50
    torch.testing.assert_close(calibration.read()["losses/q_bias"], torch.tensor(sum(gaps) / len(gaps)))
