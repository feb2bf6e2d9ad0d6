"""What keeps a robot where it is, per action dimension: asked of ManiSkill's controllers, not of a mode's name."""

from __future__ import annotations

from typing import Any

import numpy as np

from reinflow.types import StillAction


def still_action(controller: Any) -> StillAction:
    """Of a controller with flat actions: absolute positions hold, deltas and velocities are zero."""
    if hasattr(controller, "controllers"):
        return tuple(value for part in controller.controllers.values() for value in still_action(part))
    zeros = no_motion(controller)
    if not controller.sets_target_qpos or controller.config.use_delta:
        return zeros
    # where velocities are commanded as well, they are the second half
    positions = len(zeros) // 2 if controller.sets_target_qvel else len(zeros)
    return (None,) * positions + zeros[positions:]


def no_motion(controller: Any) -> StillAction:
    """The action that the controller turns into zeros."""
    if not controller._normalize_action:
        return (0.0,) * controller.single_action_space.shape[0]
    bounds = controller._original_single_action_space
    with np.errstate(invalid="ignore"):  # absolute joints may turn without limits
        zeros = np.zeros_like(bounds.low) - (bounds.high + bounds.low) / (bounds.high - bounds.low)
    if hasattr(controller.config, "rot_lower"):
        zeros[3:] = 0.0  # rotations are multiplied by one bound
    return tuple(zeros.tolist())
