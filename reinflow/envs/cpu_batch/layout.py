"""Which row of the batched buffers every body and articulation has, and where its numbers lie in what SAPIEN packs.

`PhysxCpuSystem.pack()` holds, per dynamic body, quaternion, position, linear and angular velocity; per articulation the
same for the root, then qpos, qvel and two more values per degree of freedom. `Scene.pack_poses()` holds quaternion and
position of every entity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import sapien
from jaxtyping import Float, Int
from sapien import physx

from reinflow.envs.cpu_batch.contacts import Body

BODY_SIZE = 13
"""floats per body: pose 7, velocities 6"""
_PACKED_TO_ROW = np.array([4, 5, 6, 0, 1, 2, 3, 7, 8, 9, 10, 11, 12])
"""buffer rows hold the position before the quaternion"""


class SceneLayout:
    """Indices over all scenes. Body rows: dynamic and kinematic bodies, then articulation roots, then other links."""

    def __init__(self, scenes: Sequence[sapien.Scene]) -> None:
        self._scenes = scenes
        systems = [scene.physx_system for scene in scenes]
        dynamic = [body for system in systems for body in system.rigid_dynamic_components]
        links = [link for system in systems for link in system.articulation_link_components]
        roots = [link for link in links if link.is_root]
        self.bodies: list[Body] = dynamic + roots + [link for link in links if not link.is_root]
        self.articulations: list[Any] = [root.articulation for root in roots]
        self.body_row = {body: row for row, body in enumerate(self.bodies)}
        self.articulation_row = {articulation: row for row, articulation in enumerate(self.articulations)}
        self.dynamic_rows = slice(0, len(dynamic))
        self.root_rows = slice(len(dynamic), len(dynamic) + len(roots))
        self.packed_rows = slice(0, self.root_rows.stop)
        self.link_rows = slice(self.root_rows.stop, len(self.bodies))
        self.max_dof = max((articulation.dof for articulation in self.articulations), default=0)
        self._index_state(systems)
        self._index_link_poses()

    def _index_state(self, systems: Sequence[physx.PhysxCpuSystem]) -> None:
        body_start = np.zeros(self.packed_rows.stop, np.int64)
        self.row_scene: Int[np.ndarray, "packed_rows"] = np.zeros_like(body_start)
        """scene of every dynamic body and root"""
        joint_start, offset = [], 0
        for scene, system in enumerate(systems):
            roots = [link for link in system.articulation_link_components if link.is_root]
            for body in [*system.rigid_dynamic_components, *roots]:
                row = self.body_row[body]
                body_start[row], self.row_scene[row] = offset, scene
                offset += BODY_SIZE
                if row >= self.root_rows.start:
                    joint_start.append(offset)
                    offset += 4 * body.articulation.dof
        self.articulation_scene = self.row_scene[self.root_rows]
        self._body_source = body_start[:, None] + _PACKED_TO_ROW
        self._state = np.zeros(offset + 1, np.float32)  # its last element, always 0, pads rows of fewer joints
        column = np.arange(self.max_dof)
        start = np.array(joint_start, np.int64).reshape(-1, 1)
        dof = np.array([articulation.dof for articulation in self.articulations], np.int64).reshape(-1, 1)
        self._qpos_source = np.where(column < dof, start + column, offset)
        self._qvel_source = np.where(column < dof, start + dof + column, offset)

    def _index_link_poses(self) -> None:
        self._link_source = np.zeros((len(self.bodies) - self.link_rows.start, 7), np.int64)
        offset = 0
        for scene in self._scenes:
            for entity in scene.entities:
                link = entity.find_component_by_type(physx.PhysxArticulationLinkComponent)
                if link is not None and not link.is_root:
                    self._link_source[self.body_row[link] - self.link_rows.start] = offset + _PACKED_TO_ROW[:7]
                offset += 7
        self._num_pose_floats = offset

    def unpack_state(
        self,
        packed: list[bytes],
        bodies: Float[np.ndarray, "packed_rows 13"],
        qpos: Float[np.ndarray, "articulations dof"],
        qvel: Float[np.ndarray, "articulations dof"],
    ) -> None:
        """Scatter every scene's `pack()` into buffer rows."""
        values = np.frombuffer(b"".join(packed), np.float32)
        if len(values) != len(self._state) - 1:
            raise NotImplementedError(
                "A body was added to or removed from a physx_cpu_batched scene after it started; build everything in "
                "_load_scene, or use sim_backend='physx_cpu'"
            )
        self._state[:-1] = values
        np.take(self._state, self._body_source, out=bodies)
        np.take(self._state, self._qpos_source, out=qpos)
        np.take(self._state, self._qvel_source, out=qvel)

    def unpack_link_poses(self, packed: list[bytes], poses: Float[np.ndarray, "link_rows 7"]) -> None:
        """Scatter every scene's `pack_poses()` into the rows of non-root links."""
        values = np.frombuffer(b"".join(packed), np.float32)
        if len(values) != self._num_pose_floats:  # cameras and lights are entities too, and join the scenes late
            self._index_link_poses()
            values = np.frombuffer(b"".join([scene.pack_poses() for scene in self._scenes]), np.float32)
        poses[:] = values[self._link_source]
