"""Expert for LiftPegUpright-v1.

Turning the gripper by 90 degrees takes forty steps, so the peg turns instead: a soft grip near one end lets it pivot
between the fingers while the gripper follows an arc around the edge that stays on the table.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from .base import OPEN, Expert, Plan, near, offset

SOFT = 0.2
"""gripper action that presses 5 mm into a peg of 5 cm: strong enough to drag it, weak enough to let it pivot"""
GRIP = 0.1
"""distance of the grip from the peg's centre, metres"""
LEAD = 0.35
"""radians that the arc's target runs ahead of the peg"""


class LiftPegUprightExpert(Expert):
    """Hover over one end, descend, grip softly, follow the arc until the peg stands."""

    gripper = (OPEN, OPEN, SOFT, SOFT)

    def plan(self, env: Any, tcp: Float[Tensor, "n 3"]) -> Plan:
        """Waypoints of its four phases; it starts over where the gripper is 6 cm or more from its grip."""
        peg, axis = env.peg.pose.p, first_axis(env.peg.pose.q)
        grip = peg + GRIP * axis
        angle = torch.atan2(axis[:, 2], axis[:, 0])
        never = torch.zeros_like(angle, dtype=torch.bool)
        lost = ~near(tcp, grip, 0.06)
        arc = self._arc(env, peg, angle)
        return Plan(
            waypoint=torch.stack([offset(grip, z=0.06), grip, grip, arc], dim=1),
            done=torch.stack(
                [near(tcp[:, :2], grip[:, :2], 0.015), near(tcp, grip, 0.01), self.phase_steps >= 2, never], dim=1
            ),
            lost=torch.stack([never, never, lost, lost], dim=1),
        )

    def _arc(self, env: Any, peg: Float[Tensor, "n 3"], angle: Float[Tensor, "n"]) -> Float[Tensor, "n 3"]:
        """The grip's position when the peg has turned by LEAD more around its lower edge."""
        length, width = env.peg_half_length, env.peg_half_width
        edge_x = peg[:, 0] - length * angle.cos() + width * angle.sin()
        ahead = (angle + LEAD).clamp(max=torch.pi / 2)
        reach = length + GRIP
        x = edge_x + reach * ahead.cos() - width * ahead.sin()
        z = reach * ahead.sin() + width * ahead.cos()
        return torch.stack([x, peg[:, 1], z], dim=1)


def first_axis(q: Float[Tensor, "n 4"]) -> Float[Tensor, "n 3"]:
    """The local x axis in the world frame, of quaternions (w, x, y, z)."""
    w, x, y, z = q.unbind(-1)
    return torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)], dim=-1)
