"""How far a policy's actions are from demonstrated ones, without simulating anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from reinflow.data.chunks import ChunkDataset
from reinflow.data.trajectories import Demos
from reinflow.policies.base import Policy
from reinflow.specs import EnvSpec

ROWS = 512
"""windows of a policy call"""


@dataclass(frozen=True)
class ActionError:
    """Over all executed steps of every window; what lies beyond an episode's end doesn't count."""

    mse: float
    """mean squared error in the policy's units, in which the demonstrated range is -1..1"""
    per_dim: list[float]
    """root of the mean squared error of each action dimension, in env units"""
    windows: int
    episodes: int

    def row(self, num_steps: int) -> dict[str, Any]:
        """What is written of one number of denoising steps."""
        return {"num_inference_steps": num_steps, "action_mse": self.mse, "rmse_per_dim": self.per_dim,
                "windows": self.windows, "episodes": self.episodes}  # fmt: skip


@torch.no_grad()
def action_error(policy: Policy, demos: Demos, env: EnvSpec, num_steps: int, seed: int) -> ActionError:
    """Let the policy decide once at every recorded step, each time from noise that the seed draws."""
    spec, device = policy.spec, policy.device
    still = env.still or (None,) * env.action_dim
    dataset = ChunkDataset(
        demos, spec.obs_horizon, spec.pred_horizon, spec.act_horizon, gamma=1.0, device=device, still=still
    )
    recorded = recorded_steps(demos, spec.act_horizon).to(device)
    generator = torch.Generator(device=device).manual_seed(seed)
    policy.eval()
    squares, scaled, count = torch.zeros(env.action_dim, device=device), 0.0, 0
    for first in range(0, len(dataset), ROWS):
        index = torch.arange(first, min(first + ROWS, len(dataset)), device=device)
        window, counts = dataset.window(index), recorded[index].unsqueeze(-1)
        gap = policy.act(window.obs, generator, num_steps) - window.chunk[:, spec.executed]
        squares += (gap.square() * counts).sum(dim=(0, 1))
        scaled += float(((gap / policy.action_normalizer.scale).square() * counts).sum())
        count += int(counts.sum())
    rmse = (squares / count).sqrt().tolist()
    return ActionError(scaled / (count * env.action_dim), rmse, len(dataset), len(demos.trajectories))


def recorded_steps(demos: Demos, act_horizon: int) -> Bool[Tensor, "m e"]:
    """For each window which of its executed steps the recording has."""
    left = torch.cat([torch.arange(len(one), 0, -1) for one in demos.trajectories])
    return torch.arange(act_horizon) < left.unsqueeze(1)
