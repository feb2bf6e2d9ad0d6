"""N PhysX CPU scenes behind the interface of one `PhysxGpuSystem`, so ManiSkill's batched code path runs on them.

ManiSkill asks `isinstance(px, PhysxGpuSystem)`; the `__class__` property answers yes. Buffers are CPU tensors. Two
things are lazy: `step()` only counts, and at the next read each scene runs all its substeps in one go (it stays in the
cache); link velocities and joint accelerations are copied when somebody reads them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, compress
from typing import Any

import numpy as np
import sapien
from jaxtyping import Bool, Float, Int
from sapien import physx

from reinflow.envs.cpu_batch.buffers import HostBuffer
from reinflow.envs.cpu_batch.contacts import Body, ContactReader, ImpulseQuery
from reinflow.envs.cpu_batch.forgetting import renewed
from reinflow.envs.cpu_batch.layout import BODY_SIZE, SceneLayout
from reinflow.errors import UserError

MAX_SCENES = 900
"""per process: every PhysX scene takes a pthread key and there are 1024"""

_POSE, _VELOCITY, _LINEAR, _ANGULAR = slice(0, 7), slice(7, 13), slice(7, 10), slice(10, 13)

SetTarget = Callable[[float], None]
"""sets the drive target of one joint"""

_live_systems: weakref.WeakSet[BatchedPhysxCpuSystem] = weakref.WeakSet()


def check_room_for(num_scenes: int) -> None:
    """Raises UserError when this process can't hold that many more scenes."""
    live = sum(len(system.systems) for system in _live_systems)
    if live + num_scenes > MAX_SCENES:
        raise UserError(
            f"physx_cpu_batched can hold {MAX_SCENES} scenes per process and {live + num_scenes} are asked for "
            f"({live} are open: training and evaluation envs count together); lower num_envs or use more workers"
        )


class HostDevice:
    """Stands in for the simulation's `sapien.Device`; "cuda" makes ManiSkill apply drive targets in batches."""

    def is_cuda(self) -> bool:
        """Always true: ManiSkill's batched code path is the one for CUDA."""
        return True

    def is_cpu(self) -> bool:
        """Always false, to agree with `is_cuda`."""
        return False


class BatchedPhysxCpuSystem:
    """The stand-in; `layout` tells which buffer row belongs to which body."""

    __class__ = property(lambda self: physx.PhysxGpuSystem)  # type: ignore[assignment]

    def __init__(self, scenes: list[sapien.Scene]) -> None:
        """The list is shared with ManiSkill's scene: `forget` replaces its members."""
        check_room_for(len(scenes))
        self._scenes = scenes
        self.systems: list[physx.PhysxCpuSystem] = [scene.physx_system for scene in scenes]
        self.device = HostDevice()
        self._contacts = ContactReader()
        self._pending_steps = 0
        self._pending_targets: list[list[Iterable[tuple[SetTarget, float]]]] = [[] for _ in scenes]
        self._state_fresh = False
        _live_systems.add(self)

    # ---- what a PhysxSystem offers ----------------------------------------------------------------------------------

    @property
    def timestep(self) -> float:
        """Seconds of one substep, the same in all scenes."""
        return self.systems[0].timestep

    @timestep.setter
    def timestep(self, seconds: float) -> None:
        for system in self.systems:
            system.timestep = seconds

    @property
    def config(self) -> Any:
        """The PhysX settings of the first scene, which all share."""
        return self.systems[0].config

    def get_config(self) -> Any:
        """The settings, under the name that SAPIEN's method has."""
        return self.config

    @property
    def rigid_dynamic_components(self) -> list[Body]:
        """Bodies that move freely, scene by scene."""
        return [body for system in self.systems for body in system.rigid_dynamic_components]

    @property
    def rigid_static_components(self) -> list[Body]:
        """Bodies that never move, scene by scene."""
        return [body for system in self.systems for body in system.rigid_static_components]

    @property
    def articulation_link_components(self) -> list[Body]:
        """Links of all articulations, scene by scene."""
        return [link for system in self.systems for link in system.articulation_link_components]

    def get_scene_offset(self, scene: sapien.Scene) -> Float[np.ndarray, "3"]:
        """Zero, in metres."""
        return np.zeros(3, np.float32)  # every scene has a world of its own

    def sync_poses_gpu_to_cpu(self) -> None:
        """Run what is pending; entities then have their poses by themselves."""
        self.run_pending_steps()

    def get_contacts(self) -> list[Any]:
        """Contacts of all scenes after every step that was asked for."""
        self.run_pending_steps()
        return [contact for system in self.systems for contact in system.get_contacts()]

    def step(self) -> None:
        """Ask for one substep of every scene; it runs with the others before anything is read or written."""
        self._pending_steps += 1

    def run_pending_steps(self) -> None:
        """Run the substeps counted so far, scene by scene, each with its own drive targets, and read the result."""
        count, self._pending_steps = self._pending_steps, 0
        if not count:
            return
        packed, poses = [], []
        for scene, system, targets in zip(self._scenes, self.systems, self._pending_targets, strict=True):
            set_targets(targets)
            run_substeps(system, count)
            packed.append(system.pack())
            poses.append(scene.pack_poses())
        self._unpack(packed, poses)
        self._contacts.moved_on()

    # ---- buffers ----------------------------------------------------------------------------------------------------

    def gpu_init(self) -> None:
        """Index all bodies and allocate the buffers; no body may be added to the scenes afterwards."""
        self.layout = SceneLayout(self._scenes)
        num_bodies = len(self.layout.bodies)
        joints = (len(self.layout.articulations), self.layout.max_dof)
        self.cuda_rigid_body_data = HostBuffer((num_bodies, BODY_SIZE))
        self.cuda_rigid_body_force = HostBuffer((num_bodies, 3))
        self.cuda_rigid_body_torque = HostBuffer((num_bodies, 3))
        self.cuda_articulation_qpos, self.cuda_articulation_qvel = HostBuffer(joints), HostBuffer(joints)
        self.cuda_articulation_qf, self._qacc = HostBuffer(joints), HostBuffer(joints)
        self.cuda_articulation_target_qpos, self.cuda_articulation_target_qvel = HostBuffer(joints), HostBuffer(joints)
        self._read_state()
        self._read_drive_targets()

    def _read_drive_targets(self) -> None:
        position, velocity = self.cuda_articulation_target_qpos, self.cuda_articulation_target_qvel
        joints = [articulation.active_joints for articulation in self.layout.articulations]
        self._set_target_position = [[joint.set_drive_target for joint in row] for row in joints]
        self._set_target_velocity = [[joint.set_drive_velocity_target for joint in row] for row in joints]
        for row, active in enumerate(joints):
            for column, joint in enumerate(active):
                position.array[row, column] = joint.drive_target[0]
                velocity.array[row, column] = joint.drive_velocity_target[0]
        position.mark_seen()
        velocity.mark_seen()

    def forget(self, scenes: Bool[np.ndarray, "n"]) -> None:
        """Have these scenes keep nothing of what happened in them.

        The next apply writes all their poses, velocities and joint states, changed or not.
        """
        self.run_pending_steps()
        for index in np.flatnonzero(scenes):
            self._scenes[index] = renewed(self._scenes[index])
            self.systems[index] = self._scenes[index].physx_system
        self._contacts.moved_on()
        self.cuda_rigid_body_data.force(np.flatnonzero(scenes[self.layout.row_scene]))
        articulations = np.flatnonzero(scenes[self.layout.articulation_scene])
        for buffer in (self.cuda_articulation_qpos, self.cuda_articulation_qvel, self.cuda_articulation_qf):
            buffer.force(articulations)

    def settle(self) -> None:
        """Run what is pending, drive targets too: the scenes are where the buffers say."""
        self.run_pending_steps()
        for targets in self._pending_targets:
            set_targets(targets)

    def read_anew(self) -> None:
        """After the scenes were written past the buffers."""
        self._state_fresh = False
        self._contacts.moved_on()
        self._read_state()
        self._read_drive_targets()

    # ---- reading ----------------------------------------------------------------------------------------------------

    def _read_state(self) -> None:
        """Bodies, roots, qpos and qvel: one `pack()` per scene, then one gather per buffer."""
        self.run_pending_steps()
        if self._state_fresh:
            return
        self._unpack([system.pack() for system in self.systems], [scene.pack_poses() for scene in self._scenes])

    def _unpack(self, packed: list[bytes], poses: list[bytes]) -> None:
        bodies, qpos, qvel = self.cuda_rigid_body_data, self.cuda_articulation_qpos, self.cuda_articulation_qvel
        packed_rows, link_rows = self.layout.packed_rows, self.layout.link_rows
        self.layout.unpack_state(packed, bodies.array[packed_rows], qpos.array, qvel.array)
        self.layout.unpack_link_poses(poses, bodies.array[link_rows, _POSE])
        bodies.mark_seen(packed_rows)
        qpos.mark_seen()
        qvel.mark_seen()
        self._state_fresh = True

    def gpu_fetch_rigid_dynamic_data(self) -> None:
        """Bring poses and velocities of bodies up to date."""
        self._read_state()

    def gpu_fetch_articulation_qpos(self) -> None:
        """Bring joint positions up to date, with everything else that one read gives."""
        self._read_state()

    def gpu_fetch_articulation_qvel(self) -> None:
        """Bring joint velocities up to date, with everything else that one read gives."""
        self._read_state()

    def gpu_fetch_articulation_link_pose(self) -> None:
        """Bring the poses of links up to date, but not their velocities."""
        self._read_state()

    def gpu_fetch_articulation_link_velocity(self) -> None:
        """Lazy: see `read_link_velocities`."""

    def gpu_fetch_articulation_qacc(self) -> None:
        """Lazy: see `cuda_articulation_qacc`."""

    def gpu_fetch_articulation_target_qpos(self) -> None:
        """Only this process sets targets, so the buffer is always right."""

    def gpu_fetch_articulation_target_qvel(self) -> None:
        """As for positions."""

    def gpu_update_articulation_kinematics(self) -> None:
        """PhysX on the CPU does this while writing."""

    def read_link_velocities(self, links: Sequence[Body], rows: Int[np.ndarray, "m"]) -> None:
        """Copy the velocities of these links into their rows; roots are already there."""
        self._read_state()
        data = self.cuda_rigid_body_data.array
        for link, row in zip(links, rows, strict=True):
            if row >= self.layout.link_rows.start:
                data[row, _LINEAR], data[row, _ANGULAR] = link.linear_velocity, link.angular_velocity

    @property
    def cuda_articulation_qacc(self) -> HostBuffer:
        """Joint accelerations, rad/s^2 or m/s^2, read from the scenes each time."""
        self.run_pending_steps()
        for row, articulation in enumerate(self.layout.articulations):
            self._qacc.array[row, : articulation.dof] = articulation.qacc
        return self._qacc

    def gpu_fetch_articulation_link_incoming_joint_forces(self) -> None:
        """Read force and torque at each link's joint into a new buffer, zero where an articulation has fewer links."""
        self.run_pending_steps()
        forces = [articulation.get_link_incoming_joint_forces() for articulation in self.layout.articulations]
        buffer = HostBuffer((len(forces), max(map(len, forces)), 6))
        for row, force in enumerate(forces):
            buffer.array[row, : len(force)] = force
        self.cuda_articulation_link_incoming_joint_forces = buffer

    # ---- writing: only what differs from the last exchange ----------------------------------------------------------

    def gpu_apply_rigid_dynamic_data(self) -> None:
        """Set poses and velocities of the bodies whose rows were written; kinematic ones take no velocity."""
        self.run_pending_steps()
        buffer, rows, bodies = self.cuda_rigid_body_data, self.layout.dynamic_rows, self.layout.bodies
        for row in buffer.changed_rows(rows, _POSE):
            bodies[row].entity.set_pose(_pose(buffer.array[row]))
        for row in buffer.changed_rows(rows, _VELOCITY):
            if not bodies[row].kinematic:
                bodies[row].set_linear_velocity(buffer.array[row, _LINEAR])
                bodies[row].set_angular_velocity(buffer.array[row, _ANGULAR])
        buffer.mark_seen(rows)
        self._state_fresh = False

    def gpu_apply_articulation_root_pose(self) -> None:
        """Move the articulations whose root's pose was written."""
        self._apply_to_roots(_POSE, lambda articulation, row: articulation.set_root_pose(_pose(row)))

    def gpu_apply_articulation_root_velocity(self) -> None:
        """Set linear and angular velocity of the roots whose rows were written."""

        def write(articulation: Any, row: Float[np.ndarray, "13"]) -> None:
            articulation.set_root_linear_velocity(row[_LINEAR])
            articulation.set_root_angular_velocity(row[_ANGULAR])

        self._apply_to_roots(_VELOCITY, write)

    def _apply_to_roots(self, columns: slice, write: Callable[[Any, Float[np.ndarray, "13"]], None]) -> None:
        self.run_pending_steps()
        buffer, rows = self.cuda_rigid_body_data, self.layout.root_rows
        for index in buffer.changed_rows(rows, columns):
            write(self.layout.articulations[index], buffer.array[rows.start + index])
        buffer.mark_seen(rows, columns)
        self._state_fresh = False

    def gpu_apply_articulation_qpos(self) -> None:
        """Set the joint positions of the articulations whose rows were written."""
        self._apply_to_joints(self.cuda_articulation_qpos, "set_qpos")

    def gpu_apply_articulation_qvel(self) -> None:
        """Set the joint velocities of the articulations whose rows were written."""
        self._apply_to_joints(self.cuda_articulation_qvel, "set_qvel")

    def gpu_apply_articulation_qf(self) -> None:
        """Set the joint forces of the articulations whose rows were written."""
        self._apply_to_joints(self.cuda_articulation_qf, "set_qf")

    def _apply_to_joints(self, buffer: HostBuffer, setter: str) -> None:
        self.run_pending_steps()
        for row in buffer.changed_rows(slice(None), slice(None)):
            articulation = self.layout.articulations[row]
            getattr(articulation, setter)(buffer.array[row, : articulation.dof])
        buffer.mark_seen()
        self._state_fresh = False

    def gpu_apply_articulation_target_position(self) -> None:
        """Note the drives' new target positions for the next step of their scenes."""
        self._apply_targets(self.cuda_articulation_target_qpos, self._set_target_position)

    def gpu_apply_articulation_target_velocity(self) -> None:
        """Note the drives' new target velocities for the next step of their scenes."""
        self._apply_targets(self.cuda_articulation_target_qvel, self._set_target_velocity)

    def _apply_targets(self, buffer: HostBuffer, setters: Sequence[Sequence[SetTarget]]) -> None:
        """Targets are set when their scene steps next, while it is in the cache."""
        self.run_pending_steps()
        changed = buffer.changed()
        rows = changed.any(1).nonzero()[0]
        scenes, masks, values = self.layout.articulation_scene[rows], changed[rows], buffer.array[rows]
        for row, scene, mask, value in zip(rows, scenes, masks.tolist(), values.tolist(), strict=True):
            self._pending_targets[scene].append(compress(zip(setters[row], value, strict=False), mask))
        buffer.mark_seen()

    def gpu_apply_rigid_dynamic_force(self) -> None:
        """Push bodies at their centres of mass, in N, and clear the buffer."""
        self.run_pending_steps()
        forces = self.cuda_rigid_body_force.array
        for row in forces.any(1).nonzero()[0]:
            body = self.layout.bodies[row]
            body.add_force_at_point(forces[row], (body.entity.pose * body.cmass_local_pose).p)
        forces.fill(0)

    def gpu_apply_rigid_dynamic_torque(self) -> None:
        """Turn bodies by the torques in the buffer, in N m, and clear it."""
        self.run_pending_steps()
        torques = self.cuda_rigid_body_torque.array
        for row in torques.any(1).nonzero()[0]:
            self.layout.bodies[row].add_force_torque(np.zeros(3, np.float32), torques[row])
        torques.fill(0)

    # ---- contacts ---------------------------------------------------------------------------------------------------

    def gpu_create_contact_pair_impulse_query(self, pairs: Sequence[tuple[Body, Body]]) -> ImpulseQuery:
        """A query of the impulses between each two bodies, a row per pair."""
        return self._contacts.add_pair_query(pairs)

    def gpu_create_contact_body_impulse_query(self, bodies: Sequence[Body]) -> ImpulseQuery:
        """A query of the net impulse on each body, a row per body."""
        return self._contacts.add_body_query(bodies)

    def gpu_query_contact_pair_impulses(self, query: ImpulseQuery) -> None:
        """Bring all queries up to date, this one among them."""
        self._read_contacts()

    def gpu_query_contact_body_impulses(self, query: ImpulseQuery) -> None:
        """Bring all queries up to date, this one among them."""
        self._read_contacts()

    def _read_contacts(self) -> None:
        self.run_pending_steps()
        self._contacts.read(self.systems)


def set_targets(pending: list[Iterable[tuple[SetTarget, float]]]) -> None:
    """And empty the list."""
    for set_target, value in chain.from_iterable(pending):
        set_target(value)
    pending.clear()


def run_substeps(system: physx.PhysxCpuSystem, count: int) -> None:
    """All that PhysX computes happens in here, which `python -m benchmarks simulator` looks for."""
    step = system.step
    for _ in range(count):
        step()


def _pose(row: Float[np.ndarray, "at_least_7"]) -> sapien.Pose:
    return sapien.Pose(row[:3], row[3:7])
