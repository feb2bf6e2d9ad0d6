"""Images of batched CPU scenes: every camera of every scene takes its picture, and the pictures are stacked.

Rendering bounds the speed, so this is as fast per image as stock `physx_cpu`, no faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Shaped
from mani_skill.envs.scene import ManiSkillScene
from mani_skill.sensors.camera import Camera
from mani_skill.utils import common
from torch import Tensor


class Picture:
    """Stands in for the CUDA picture of a camera group."""

    def __init__(self, pixels: Shaped[Tensor, "n y x c"]) -> None:
        self._pixels = pixels

    def torch(self) -> Shaped[Tensor, "n y x c"]:
        """The pixels of all scenes, as they were stacked."""
        return self._pixels


class HostCameraGroup:
    """Stands in for `sapien.render.RenderCameraGroup`: the same camera in every scene."""

    def __init__(self, cameras: Sequence[Any]) -> None:
        self._cameras = cameras

    def take_picture(self) -> None:
        """Render this camera's view of every scene, one after another."""
        for camera in self._cameras:
            camera.take_picture()

    def get_picture_cuda(self, name: str) -> Picture:
        """The last pictures under a texture's name, copied to CPU tensors and stacked over scenes."""
        return Picture(torch.stack([common.to_tensor(camera.get_picture(name)) for camera in self._cameras]))


def update_render(scene: ManiSkillScene) -> None:
    """Bring all scenes' render bodies to the simulation's poses; cameras are grouped on the first call."""
    scene.px.run_pending_steps()
    for sensor in (*scene.sensors.values(), *scene.human_render_cameras.values()):
        if isinstance(sensor, Camera) and sensor.camera.camera_group is None:
            sensor.camera.camera_group = HostCameraGroup(sensor.camera._render_cameras)
    for sub_scene in scene.sub_scenes:
        sub_scene.update_render()
