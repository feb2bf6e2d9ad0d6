"""Experts for the tasks with cubes of 4 cm: pick, push, pull, stack."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .base import CLOSED, OPEN, Expert, Plan, at_height, near, offset

CUBE = 0.04
"""edge, metres"""
GRASP_STEPS = 6
"""steps that a closing gripper gets before the expert starts over"""


PUSH_LEAD = 0.04
"""metres that the target of a push runs ahead of the gripper; more would knock the cube away"""


class PickCubeExpert(Expert):
    """Hover over the cube, descend, close, carry it to the goal."""

    gripper = (OPEN, OPEN, CLOSED, CLOSED)

    def plan(self, env: Any, tcp: Float[Tensor, "n 3"]) -> Plan:
        """Waypoints of its four phases; it starts over where the grip failed or the cube was lost."""
        cube, goal = env.cube.pose.p, env.goal_site.pose.p
        grasped = env.agent.is_grasping(env.cube)
        never = torch.zeros_like(grasped)
        above = near(tcp[:, :2], cube[:, :2], 0.015)
        return Plan(
            waypoint=torch.stack([offset(cube, z=0.06), cube, cube, tcp + goal - cube], dim=1),
            done=torch.stack([above, near(tcp, cube, 0.012), grasped, never], dim=1),
            lost=torch.stack(
                [never, never, ~grasped & (self.phase_steps >= GRASP_STEPS), ~near(tcp, cube, 0.05)], dim=1
            ),
        )


class PushCubeExpert(Expert):
    """Go behind the cube with a closed gripper, descend, push it along +x into the goal region."""

    gripper = (CLOSED, CLOSED, CLOSED)
    side = -1.0
    """where the gripper goes: -1 behind the cube, seen from the robot's base to the goal; +1 in front"""

    def plan(self, env: Any, tcp: Float[Tensor, "n 3"]) -> Plan:
        """Waypoints of its three phases; it starts over where the gripper is not behind the cube."""
        cube, goal = env.obj.pose.p, env.goal_region.pose.p
        never = torch.zeros(len(tcp), dtype=torch.bool, device=tcp.device)
        start = at_height(offset(cube, x=self.side * 0.055), CUBE / 2)
        hover = at_height(start, 0.09)
        remaining = (goal[:, 0] + self.side * 0.035 - tcp[:, 0]).clamp(-PUSH_LEAD, PUSH_LEAD)
        contact = torch.stack([tcp[:, 0] + remaining, cube[:, 1], start[:, 2]], dim=1)
        beside = (tcp[:, 0] - cube[:, 0]) * self.side > 0.035
        return Plan(
            waypoint=torch.stack([hover, start, contact], dim=1),
            done=torch.stack([near(tcp[:, :2], hover[:, :2], 0.015), near(tcp, start, 0.015), never], dim=1),
            lost=torch.stack([never, ~beside, (tcp[:, 0] - cube[:, 0]) * self.side < 0.0], dim=1),
        )


class PullCubeExpert(PushCubeExpert):
    """The mirror of pushing: from the far side along -x."""

    side = 1.0


class StackCubeExpert(Expert):
    """Pick cube A, lift it, carry it over cube B, lower it, let go."""

    gripper = (OPEN, OPEN, CLOSED, CLOSED, CLOSED, CLOSED, OPEN)

    def plan(self, env: Any, tcp: Float[Tensor, "n 3"]) -> Plan:
        """Waypoints of its seven phases; it starts over where the grip failed or the cube was dropped."""
        cube, base = env.cubeA.pose.p, env.cubeB.pose.p
        grasped = env.agent.is_grasping(env.cubeA)
        never = torch.zeros_like(grasped)
        top = offset(base, z=CUBE)
        above = near(tcp[:, :2], cube[:, :2], 0.015)
        over_base = near(cube[:, :2], base[:, :2], 0.012)
        carry_height = base[:, 2] + CUBE + 0.03
        held = ~grasped & (self.phase_steps >= GRASP_STEPS)
        dropped = ~near(tcp, cube, 0.05)
        place = tcp + top - cube
        return Plan(
            waypoint=torch.stack(
                [
                    offset(cube, z=0.06),
                    cube,
                    cube,
                    at_height(tcp, carry_height + 0.02),
                    at_height(place, tcp[:, 2] + carry_height - cube[:, 2]),
                    place,
                    tcp,
                ],
                dim=1,
            ),
            done=torch.stack(
                [
                    above,
                    near(tcp, cube, 0.012),
                    grasped,
                    cube[:, 2] > carry_height - 0.02,
                    over_base,
                    near(cube, top, 0.012) & ((cube - top)[:, 2] < 0.004),
                    never,
                ],
                dim=1,
            ),
            lost=torch.stack([never, never, held, dropped, dropped, dropped, ~near(cube, top, 0.03)], dim=1),
        )
