"""Scripted experts: closed-loop phase machines in `pd_ee_delta_pose`, one batch of torch operations for all envs.

Differs from ManiSkill's planner demonstrations: no planning, no control-mode conversion, and half the length. An
expert only translates the gripper (the rotation part of its actions is zero), because the controller turns .04 rad
per step at most.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CONTROL_MODE = "pd_ee_delta_pose"
POSITION_SCALE = 0.1
"""metres that a position action of 1 asks for (ManiSkill's Panda in pd_ee_delta_pose)"""
FREE = 0.025
"""distance to the waypoint, metres, beyond which action noise is added"""
OPEN, CLOSED = 1.0, -1.0
SPEED = 0.5
"""largest component of a translation, in action units: at full speed an episode has so few steps that a clone of 20 of
them succeeds a quarter less often, and the exploration noise, whose unit this is, shakes the grasp"""


@dataclass
class Plan:
    """What every phase wants of every env now; the expert executes the phase that each env is in."""

    waypoint: Float[Tensor, "n p 3"]
    """tcp position to move to, metres in the world frame"""
    done: Bool[Tensor, "n p"]
    """the phase has reached its purpose, so the next one begins"""
    lost: Bool[Tensor, "n p"]
    """the phase can't succeed any more, so the expert starts over"""


class Expert(ABC):
    """A phase machine over a batch of envs. `phase` and `phase_steps` are its whole state."""

    gripper: ClassVar[tuple[float, ...]]
    """gripper action of every phase"""

    def __init__(self, num_envs: int, device: torch.device | str = "cpu") -> None:
        self.phase: Int[Tensor, "n"] = torch.zeros(num_envs, dtype=torch.long, device=device)
        self.phase_steps: Int[Tensor, "n"] = torch.zeros_like(self.phase)
        self._gripper = torch.tensor(self.gripper, device=device)

    def reset(self, mask: Bool[Tensor, "n"] | None = None) -> None:
        """Begin a new episode in the envs of `mask`, or in all."""
        mask = torch.ones_like(self.phase, dtype=torch.bool) if mask is None else mask
        self.phase = self.phase.masked_fill(mask, 0)
        self.phase_steps = self.phase_steps.masked_fill(mask, 0)

    def act(self, env: Any, noise: Float[Tensor, "n 3"] | None = None) -> Float[Tensor, "n 7"]:
        """The next action of every env, in [-1, 1]: translation, rotation (0), gripper.

        Args:
            env: a ManiSkill env (or a wrapper of one) with as many sub-envs as this expert. noise: added to the
            translation wherever the gripper is further than FREE from its waypoint, so that it disturbs
                the way and not the grasp; the expert then recovers, because it looks again at every step.
        """
        env = env.unwrapped
        tcp = env.agent.tcp.pose.p
        plan = self.plan(env, tcp)
        self._advance(plan)
        rows = torch.arange(len(tcp), device=tcp.device)
        gap = plan.waypoint[rows, self.phase] - tcp
        move = gap / POSITION_SCALE
        move = move * (SPEED / move.abs().amax(dim=1, keepdim=True)).clamp(max=1)
        if noise is not None:
            move = (move + noise * (gap.norm(dim=1, keepdim=True) > FREE)).clamp(-1, 1)
        return torch.cat([move, torch.zeros_like(move), self._gripper[self.phase, None]], dim=1)

    @abstractmethod
    def plan(self, env: Any, tcp: Float[Tensor, "n 3"]) -> Plan:
        """Waypoints and conditions from the current poses."""

    def _advance(self, plan: Plan) -> None:
        rows = torch.arange(len(self.phase), device=self.phase.device)
        done, lost = plan.done[rows, self.phase], plan.lost[rows, self.phase]
        last = len(self.gripper) - 1
        phase = torch.where(done, (self.phase + 1).clamp(max=last), self.phase)
        phase = torch.where(lost, torch.zeros_like(phase), phase)
        self.phase_steps = torch.where(phase == self.phase, self.phase_steps + 1, torch.zeros_like(phase))
        self.phase = phase


def offset(position: Float[Tensor, "n 3"], x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Float[Tensor, "n 3"]:
    """`position` moved by constants, metres."""
    return position + position.new_tensor([x, y, z])


def at_height(position: Float[Tensor, "n 3"], height: Float[Tensor, "n"] | float) -> Float[Tensor, "n 3"]:
    """`position` with its z replaced."""
    z = torch.as_tensor(height, dtype=position.dtype, device=position.device).expand(len(position))
    return torch.cat([position[:, :2], z[:, None]], dim=1)


def near(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"], distance: float) -> Bool[Tensor, "n"]:
    """Whether two points are less than `distance` metres apart."""
    return torch.linalg.vector_norm(a - b, dim=-1) < distance
