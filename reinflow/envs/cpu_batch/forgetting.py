"""A PhysX scene on the CPU that keeps nothing of what happened in it, and all its numbers that can be read and written.

Equal poses, velocities and actions do not give equal episodes: PhysX keeps more between steps, and shows it to nobody.

* A body's time until it may sleep. Setting a pose raises it to that of a new body but never lowers it, and a body that
  was pushed around has more. Sleeping and waking set it anew.
* Contacts, friction anchors, and the ids of pairs that were freed in the order of the episode, from which the solver
  takes its order. They belong to the scene, so bodies move to a new scene; leaving and entering the same one, in any
  order and with steps in between, is not enough.

Found and measured in docs/lab_log.md (2026-11-28).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import sapien
from jaxtyping import Float
from sapien import physx


def renewed(scene: sapien.Scene) -> sapien.Scene:
    """A new scene with all entities of this one, which ends up empty; they keep their poses, not their velocities."""
    system = new_system(scene.physx_system)
    fresh = sapien.Scene([system, *render_systems_of(scene)])
    entities = sorted(scene.entities, key=lambda entity: entity.per_scene_id)
    ids = [entity.per_scene_id for entity in entities]
    for entity in entities:
        entity.remove_from_scene()
    last = 0
    for entity, wanted in zip(entities, ids, strict=True):
        skip_ids(fresh, wanted - last - 1)
        entity.add_to_scene(fresh)
        last = wanted
    for body in system.rigid_dynamic_components:
        if not body.kinematic:
            sleep_and_wake(body)
    for articulation in articulations_of(system):
        sleep_and_wake(articulation.root)
    return fresh


def new_system(like: physx.PhysxCpuSystem) -> physx.PhysxCpuSystem:
    """SAPIEN gives new systems the configuration of the process, which another env may have changed since."""
    current = physx.get_scene_config()
    physx.set_scene_config(like.config)
    system = physx.PhysxCpuSystem()
    physx.set_scene_config(current)
    system.timestep = like.timestep
    system.scene_collision_id = like.scene_collision_id
    return system


def render_systems_of(scene: sapien.Scene) -> list[Any]:
    """The scene's render system in a list, which is empty where nothing is rendered."""
    try:
        return [scene.render_system]
    except RuntimeError:  # SAPIEN has no other way to ask
        return []


def skip_ids(scene: sapien.Scene, count: int) -> None:
    """Segmentation pictures show the ids that a scene gives to its entities in their order."""
    for _ in range(count):
        placeholder = sapien.Entity()
        placeholder.add_to_scene(scene)
        placeholder.remove_from_scene()


def sleep_and_wake(body: Any) -> None:
    """Give a body back the time until it may sleep that a new one has."""
    body.put_to_sleep()
    body.wake_up()


Take = Callable[[int], Float[np.ndarray, "count"]]
"""the next `count` numbers"""

SIZES = ("half_size", "radius", "half_length", "scale", "vertices")
"""of the kinds of collision shapes, those that they have"""


def articulations_of(system: physx.PhysxCpuSystem) -> list[physx.PhysxArticulation]:
    """All articulations of a system, in the order of their root links."""
    return [link.articulation for link in system.articulation_link_components if link.is_root]


def geometry_of(system: physx.PhysxCpuSystem) -> Float[np.ndarray, "numbers"]:
    """Masses, and places and sizes of all collision shapes."""
    moving = [*system.rigid_dynamic_components, *system.articulation_link_components]
    parts: list[Any] = [[body.mass for body in moving]]
    for body in (*moving, *system.rigid_static_components):
        for shape in body.collision_shapes:
            parts += [shape.local_pose.p, shape.local_pose.q]
            parts += [np.ravel(getattr(shape, size)) for size in SIZES if hasattr(shape, size)]
    return np.concatenate(parts).astype(np.float32)


def numbers_of(system: physx.PhysxCpuSystem) -> Float[np.ndarray, "numbers"]:
    """Poses, velocities, joint states and drive targets of everything that moves."""
    parts: list[Any] = [np.zeros(0)]
    for body in system.rigid_dynamic_components:
        parts += [body.entity.pose.p, body.entity.pose.q, body.linear_velocity, body.angular_velocity]
    for articulation in articulations_of(system):
        parts += [articulation.root_pose.p, articulation.root_pose.q]
        parts += [articulation.root_linear_velocity, articulation.root_angular_velocity]
        parts += [articulation.qpos, articulation.qvel, articulation.qf]
        for joint in articulation.active_joints:
            parts += [joint.drive_target, joint.drive_velocity_target]
    return np.concatenate(parts).astype(np.float32)


def write_numbers(systems: Sequence[physx.PhysxCpuSystem], numbers: Float[np.ndarray, "numbers"]) -> None:
    """Bring equal systems to where those were that `numbers_of` read one after another."""
    taken = 0

    def take(count: int) -> Float[np.ndarray, "count"]:
        nonlocal taken
        taken += count
        return numbers[taken - count : taken]

    for system in systems:
        for body in system.rigid_dynamic_components:
            body.entity.set_pose(sapien.Pose(take(3), take(4)))
            linear, angular = take(3), take(3)
            if not body.kinematic:
                body.set_linear_velocity(linear)
                body.set_angular_velocity(angular)
        for articulation in articulations_of(system):
            write_articulation(articulation, take)


def write_articulation(articulation: physx.PhysxArticulation, take: Take) -> None:
    """Set root, joints and drive targets of one articulation, in the order in which `numbers_of` reads them."""
    articulation.set_root_pose(sapien.Pose(take(3), take(4)))
    articulation.set_root_linear_velocity(take(3))
    articulation.set_root_angular_velocity(take(3))
    articulation.set_qpos(take(articulation.dof))
    articulation.set_qvel(take(articulation.dof))
    articulation.set_qf(take(articulation.dof))
    for joint in articulation.active_joints:
        joint.set_drive_target(take(len(joint.drive_target))[0])
        joint.set_drive_velocity_target(take(len(joint.drive_velocity_target))[0])
