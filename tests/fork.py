"""Two ways around an obstacle, half and half, where the mean of the two is a crash that nothing mends.

The point of `Toy-v0` starts in front of the wall and has to pass it within its first chunk or two, left or right; where
it touches the wall it stays.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reinflow.data.chunks import ChunkDataset
from reinflow.data.trajectories import Demos, Trajectory
from reinflow.envs.toy import STEP, WALL, ToyEnv
from reinflow.types import StepResult

RECORDED = 16
"""env steps of a demonstration, which is at the goal by then"""
START_X = -0.3
"""4.2 steps of the demonstrations before the wall, which reach |y| = .48 in 4"""


class ForkEnv(ToyEnv):
    """`ToyEnv` from right before the wall, which holds whoever touches it."""

    def reset(self, seed: int | None = None, env_idx: Tensor | None = None) -> dict[str, Tensor]:
        super().reset(seed, env_idx)
        where = slice(None) if env_idx is None else env_idx
        self.crashed = torch.zeros(self.num_envs, dtype=torch.bool) if env_idx is None else self.crashed.clone()
        self.crashed[where] = False
        self.position[where] = torch.tensor([START_X, 0.0])  # another y would tell the way
        return self._obs()

    def step(self, action: Tensor, render: bool = True) -> StepResult:
        before = self.position
        after = before + STEP * action.clamp(-1, 1)
        self.crashed = self.crashed | ((before[:, 0] * after[:, 0] <= 0) & (after[:, 1].abs() < WALL))
        return super().step(torch.where(self.crashed[:, None], 0.0, action), render)


def fork_demos(num: int, noise: float, left: float = 0.5) -> ChunkDataset:
    """Windows of `num` episodes, of which the share `left` passes the wall on one side and the others on the other."""
    env = ForkEnv(num)
    generator = torch.Generator().manual_seed(0)
    frame = env.reset(seed=0)["state"]
    side = torch.where(torch.arange(num) < left * num, 1.0, -1.0)
    around = torch.stack((torch.full((num,), 0.6), side), 1)
    frames, actions = [frame], []
    for _ in range(RECORDED):
        position = env.position
        action = torch.where(position[:, :1] < 0.05, around, (env.goal - position) / STEP)
        action = (action + noise * torch.randn(num, 2, generator=generator)).clamp(-1, 1)
        actions.append(action)
        frames.append(env.step(action).obs["state"])
    nothing = torch.zeros(RECORDED, dtype=torch.bool)
    episodes = zip(torch.stack(frames, 1), torch.stack(actions, 1), strict=True)
    trajectories = [Trajectory(obs, action, nothing, nothing, nothing) for obs, action in episodes]
    horizons = {"obs_horizon": 1, "pred_horizon": 4, "act_horizon": 4}
    return ChunkDataset(Demos(trajectories, "Toy-v0", "toy"), **horizons, gamma=1.0, still=env.spec.still)
