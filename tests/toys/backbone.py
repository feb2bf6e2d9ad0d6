"""A velocity network with an option of its own: one hidden layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from nets.embed import StepEmbedding
from nets.velocity import VelocityNet, check_chunk
from reinflow.policies import PolicySpec
from reinflow.policies.parts import PartConfig
from reinflow.registry import Entry


@dataclass(frozen=True)
class ShallowConfig(PartConfig):
    """Options of a shallow network."""

    shallow_dim: int = 32
    """width of its layer"""


class Shallow(VelocityNet):
    """The features enter the only layer."""

    def __init__(self, act_dim: int, horizon: int, cond_dim: int, config: ShallowConfig):
        super().__init__()
        self.chunk_shape = (horizon, act_dim)
        width = config.shallow_dim
        self.embedding = StepEmbedding(16)
        self.step_in = nn.Linear(32, width)
        self.cond_in = nn.Linear(cond_dim, width, bias=False)
        self.sample_in = nn.Linear(horizon * act_dim, width, bias=False)
        self.layer = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.out = nn.Linear(width, horizon * act_dim)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return (self.layer,)

    def times(self, timestep: torch.Tensor, step_size: torch.Tensor) -> torch.Tensor:
        return self.step_in(self.embedding(timestep, step_size))

    def condition(self, global_cond: torch.Tensor) -> torch.Tensor:
        return self.cond_in(global_cond)

    def velocity(self, sample: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        check_chunk(sample, self.chunk_shape)
        hidden = self.layer(self.sample_in(sample.flatten(1)) + features)
        return self.out(hidden).unflatten(1, self.chunk_shape)


def shallow(spec: PolicySpec) -> Shallow:
    return Shallow(spec.action_dim, spec.pred_horizon, spec.cond_dim, spec.net_options)


ENTRY = Entry(shallow, ShallowConfig)
