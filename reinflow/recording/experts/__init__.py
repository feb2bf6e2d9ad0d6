"""Scripted experts by task, each a phase machine over a batch of envs; `make_expert` gives the one of a task.

Only collect.py imports them.
"""

from __future__ import annotations

import torch

from reinflow.errors import UserError

from .base import CONTROL_MODE, Expert
from .cubes import PickCubeExpert, PullCubeExpert, PushCubeExpert, StackCubeExpert
from .peg import LiftPegUprightExpert

EXPERTS: dict[str, type[Expert]] = {
    "PickCube-v1": PickCubeExpert,
    "PushCube-v1": PushCubeExpert,
    "PullCube-v1": PullCubeExpert,
    "StackCube-v1": StackCubeExpert,
    "LiftPegUpright-v1": LiftPegUprightExpert,
}
"""by task; a module that `--env_module` names may add its own"""


def make_expert(env_id: str, num_envs: int, device: torch.device | str = "cpu") -> Expert:
    """The scripted expert of a task; a UserError where there is none."""
    if env_id not in EXPERTS:
        raise UserError(
            f"there is no scripted expert for {env_id!r}; use one of {', '.join(EXPERTS)}, add one in a module of your "
            "own (docs/own_tasks.md), or use --source motionplanning"
        )
    return EXPERTS[env_id](num_envs, device)


__all__ = ["CONTROL_MODE", "EXPERTS", "Expert", "make_expert"]
