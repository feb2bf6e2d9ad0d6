"""A data format: one JSON document of episodes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from reinflow.data.formats import Recording
from reinflow.data.trajectories import Trajectory
from reinflow.registry import Entry
from tests.toys.suite import LIMIT, RidgeEnv

MAGIC = '{"ridge episodes":'


class JSONFormat:
    """Reads what `write_episodes` writes."""

    def recognises(self, path: Path) -> bool:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC.encode()

    def describe(self, path: Path) -> Recording:
        return Recording(env_id="Ridge-v0", obs_mode="state", control_mode="push", max_episode_steps=LIMIT)

    def read(self, path: Path, pictures: bool) -> Iterator[Trajectory]:
        episodes = json.loads(path.read_text())["ridge episodes"]
        return (trajectory(index, episode) for index, episode in enumerate(episodes))


def trajectory(index: int, episode: dict[str, list]) -> Trajectory:
    steps = len(episode["pushes"])
    terminated = torch.zeros(steps, dtype=torch.bool)
    terminated[-1] = abs(episode["places"][-1]) > 1
    return Trajectory(
        obs=torch.tensor(episode["places"]).unsqueeze(1),
        actions=torch.tensor(episode["pushes"]).unsqueeze(1),
        success=torch.zeros(steps, dtype=torch.bool),
        terminated=terminated,
        truncated=torch.zeros(steps, dtype=torch.bool),
        rewards=torch.tensor(episode["rewards"]),
        name=f"episode {index}",
    )


def write_episodes(path: Path, count: int = 6) -> Path:
    """Half of the episodes push back to the ridge, the others away from it until they fall."""
    env = RidgeEnv(1)
    episodes = []
    for index in range(count):
        places, pushes, rewards = [env.reset(seed=index)["state"].item()], [], []
        while len(pushes) < LIMIT and abs(places[-1]) <= 1:
            push = max(min((4 if index % 2 else -4) * places[-1], 2.0), -2.0)
            step = env.step(torch.tensor([[push]]))
            places.append(step.obs["state"].item())
            pushes.append(push)
            rewards.append(step.reward.item())
        episodes.append({"places": places, "pushes": pushes, "rewards": rewards})
    path.write_text(MAGIC + json.dumps(episodes) + "}")
    return path


ENTRY = Entry(JSONFormat)
