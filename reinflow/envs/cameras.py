"""Pictures of a ManiSkill env: taken only when somebody will look, and handed over in the project's own form."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from reinflow.errors import UserError
from reinflow.types import ImageSpec

FILM_SIZE = 256
"""pixels of each side of a film"""


@functools.cache
def hold_renderer(device: str) -> Any:
    """Keep SAPIEN's renderer for the life of the process.

    It would go with the last env that renders, and with it its lighting tables, which take lavapipe ten seconds a time.
    """
    import sapien

    return sapien.render.RenderSystem(sapien.Device(device))


def render_device(rendered: bool, backend: str = "") -> str:
    """ManiSkill's `render_backend`: none for states, which then need no Vulkan driver, else the simulator's own GPU."""
    if not rendered:
        return "none"
    if not torch.cuda.is_available():
        return "cpu"
    _, colon, index = backend.partition(":")
    return f"gpu{colon}{index}"


class Shutter:
    """Decides whether the env's next observation takes its pictures; states and rewards do not depend on it."""

    def __init__(self, env: Any):
        """Replaces the env's own sensor reading, which renders after every step."""
        self.open = True
        take_pictures = env._get_obs_sensor_data

        def pictures_if_open(*args: Any, **kwargs: Any) -> dict[str, Any]:
            return take_pictures(*args, **kwargs) if self.open else {}

        env._get_obs_sensor_data = pictures_if_open


def frame_of(obs: Any, device: torch.device) -> dict[str, Tensor]:
    """One frame in the project's form from ManiSkill's observation, copied out of the simulator's buffers."""
    from mani_skill.utils.common import flatten_state_dict

    if isinstance(obs, Tensor):
        return {"state": obs.clone()}
    state = obs.get("state")
    if state is None:
        parts = {"agent": obs["agent"], "extra": obs["extra"]}
        state = flatten_state_dict(parts, use_torch=True, device=device)
    return {"state": state.clone(), **stacked_pictures(obs.get("sensor_data", {}))}


def stacked_pictures(sensor_data: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """`rgb` and `depth` of all cameras, (n v y x c) each; empty where no picture was taken."""
    cameras = list(sensor_data.values())
    names = [name for name in ("rgb", "depth") if cameras and name in cameras[0]]
    return {name: torch.stack([camera[name] for camera in cameras], dim=1) for name in names}


def has_pictures(obs_mode: str) -> bool:
    """Whether observations of this mode hold more than the state."""
    return obs_mode != "state"


def image_spec(env: Any, env_id: str, frame: dict[str, Tensor]) -> ImageSpec:
    """What the pictures of a frame are; UserError where the task has no camera, or cameras of several sizes."""
    cameras = env.scene.sensors
    sizes = {name: (camera.config.height, camera.config.width) for name, camera in cameras.items()}
    if not sizes:
        raise UserError(f"{env_id} has no camera: use --obs_mode state")
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{name} {height}x{width}" for name, (height, width) in sizes.items())
        raise UserError(f"{env_id} has cameras of several sizes ({listed}), which don't stack: use --obs_mode state")
    return ImageSpec.of(tuple(cameras), {name: frame[name] for name in ("rgb", "depth") if name in frame})


def full_observation(env: Any, info: dict[str, Any]) -> dict[str, Any]:
    """What observation mode `state` observes, by name, whatever mode the env is in."""
    from mani_skill.envs.utils.observations import parse_obs_mode_to_struct

    mode, struct = env._obs_mode, env.obs_mode_struct
    env._obs_mode, env.obs_mode_struct = "state", parse_obs_mode_to_struct("state")
    try:
        return env.get_obs(info, unflattened=True)
    finally:
        env._obs_mode, env.obs_mode_struct = mode, struct


def privileged_state(env: Any, info: dict[str, Any]) -> Tensor:
    """`full_observation` as one row per env."""
    from mani_skill.utils.common import flatten_state_dict

    return flatten_state_dict(full_observation(env, info), use_torch=True, device=env.device).clone()
