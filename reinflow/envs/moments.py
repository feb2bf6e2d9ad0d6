"""The moment that a ManiSkill env on a CPU is at, as data, and an env of the same kind brought to it.

Poses and velocities are not all that the next step depends on (see `cpu_batch/forgetting.py`), and the rest can't be
read. So the env that is saved forgets the rest as well, and both go on from what the data say.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reinflow.envs.cpu_batch.forgetting import geometry_of, numbers_of, renewed, write_numbers

NOT_REMEMBERED = ("_last_obs", "_init_raw_obs", "_init_raw_state")
"""large, and nothing that an episode depends on"""


def numbers_of_env(env: Any) -> Tensor:
    """Of all its scenes, one after another."""
    if is_batched(env):
        env.scene.px.settle()
    return torch.from_numpy(np.concatenate([numbers_of(scene.physx_system) for scene in env.scene.sub_scenes]))


def geometry_of_env(env: Any) -> Tensor:
    """Differs where the env was built of other parts: their numbers would say little then."""
    return torch.from_numpy(np.concatenate([geometry_of(scene.physx_system) for scene in env.scene.sub_scenes]))


def forget_everything(env: Any) -> None:
    """Have all scenes keep nothing but the poses of their bodies."""
    if is_batched(env):
        env.scene.px.forget(np.ones(env.num_envs, dtype=bool))
    else:
        env.scene.sub_scenes[0] = renewed(env.scene.sub_scenes[0])
        env.scene.px = env.scene.sub_scenes[0].physx_system


def go_on_from(env: Any, numbers: Tensor) -> None:
    """Bring the scenes to `numbers_of_env` of an env of equal geometry."""
    forget_everything(env)
    write_numbers([scene.physx_system for scene in env.scene.sub_scenes], numbers.cpu().numpy())
    if is_batched(env):
        env.scene.px.read_anew()


def is_batched(env: Any) -> bool:
    """Whether many scenes run behind ManiSkill's batched code path; a stock env has one."""
    return bool(env.scene.gpu_sim_enabled)


def memory_of(env: Any) -> list[dict[str, Any]]:
    """What the env, its robot and its controllers have noted in attributes: steps, targets, the task's own."""
    return [
        {
            name: noted
            for name, value in vars(owner).items()
            if name not in NOT_REMEMBERED and (noted := encoded(value)) is not None
        }
        for owner in owners(env)
    ]


def remember(env: Any, memory: list[dict[str, Any]]) -> None:
    """Put back `memory_of` an equal env."""
    for owner, notes in zip(owners(env), memory, strict=True):
        for name, noted in notes.items():
            setattr(owner, name, decoded(noted, env.device))


def owners(env: Any) -> Iterator[Any]:
    """The objects whose attributes are remembered: the env, its agent and the agent's controllers."""
    yield env
    if env.agent is not None:
        yield env.agent
        yield from controllers_of(env.agent.controller)


def controllers_of(controller: Any) -> Iterator[Any]:
    """A controller and all that it is composed of, the outer one first."""
    yield controller
    for part in getattr(controller, "controllers", {}).values():
        yield from controllers_of(part)


def encoded(value: Any) -> tuple[str, Any] | None:
    """A kind and data; None for what is no data, like a robot."""
    from mani_skill.utils.structs import Pose

    if isinstance(value, Tensor):
        return "tensor", value.clone()
    if isinstance(value, Pose):
        return "pose", value.raw_pose.clone()
    if isinstance(value, np.ndarray) and value.dtype.kind in "bif":
        return "array", torch.from_numpy(value.copy())
    if isinstance(value, (bool, int, float)):
        return "number", value
    if isinstance(value, dict) and value and all(isinstance(key, str) for key in value):
        parts = {key: encoded(part) for key, part in value.items()}
        return None if None in parts.values() else ("dict", parts)
    return None


def decoded(noted: tuple[str, Any], device: torch.device) -> Any:
    """The attribute that was noted as a kind and data, as copies with tensors on `device`."""
    from mani_skill.utils.structs import Pose

    kind, data = noted
    if kind == "tensor":
        return data.to(device, copy=True)
    if kind == "pose":
        return Pose.create(data.to(device, copy=True))
    if kind == "array":
        return data.cpu().numpy().copy()
    if kind == "dict":
        return {key: decoded(part, device) for key, part in data.items()}
    return data
