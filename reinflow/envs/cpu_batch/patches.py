"""Every patch that makes ManiSkill run on `BatchedPhysxCpuSystem`.

ManiSkill has no hook for a backend, so this leans on internals: only known versions are patched, and
tests/envs/test_cpu_batch.py compares the result with stock `physx_cpu` bit by bit.

Every patch asks `_is_batched(scene)` first, so envs with other backends in the same process keep their behaviour.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import mani_skill.envs.sapien_env as sapien_env
import sapien
import torch
from mani_skill.agents.base_agent import BaseAgent
from mani_skill.agents.controllers.pd_ee_pose import PDEEPosController
from mani_skill.agents.controllers.utils.kinematics import Kinematics
from mani_skill.envs.scene import ManiSkillScene
from mani_skill.envs.utils.system.backend import BackendInfo
from mani_skill.render.utils import can_render
from mani_skill.utils.building.actor_builder import ActorBuilder
from mani_skill.utils.structs.articulation import Articulation
from mani_skill.utils.structs.articulation_joint import ArticulationJoint
from mani_skill.utils.structs.base import PhysxRigidBodyComponentStruct
from mani_skill.utils.structs.link import Link
from sapien import physx

from reinflow.envs import headless
from reinflow.envs.cpu_batch import BACKEND, Ik, kinematics, render
from reinflow.envs.cpu_batch.system import BatchedPhysxCpuSystem, HostDevice, check_room_for
from reinflow.errors import UserError

KNOWN_VERSIONS = {"mani_skill": ("3.0.1",), "sapien": ("3.0.3",)}
"""versions whose internals these patches were compared with"""

NEEDS_RENDERER = ("PushT-v1",)
"""tasks that read render shapes even for state observations"""

NO_PARTIAL_RESET = ("MS-AntRun-v1", "MS-AntWalk-v1", "MS-HopperHop-v1", "MS-HopperStand-v1")
"""tasks that move the camera mount of all envs when some are reset, which raises, on a GPU too"""

_wrapped: list[str] = []


@dataclass
class BatchedBackendInfo(BackendInfo):
    """ManiSkill's backend record with the choice of inverse kinematics."""

    ik: Ik = "pin"


def version_problem() -> str | None:
    """A sentence naming the package whose version is unknown, or None."""
    for package, known in KNOWN_VERSIONS.items():
        version = metadata.version(package)
        if version not in known:
            return (
                f"sim_backend={BACKEND!r} knows {package} {' and '.join(known)}, and {version} is installed; "
                f"run `pip install {package}=={known[-1]}` or use sim_backend='physx_cpu'"
            )
    return None


def unsupported_reason(env_id: str) -> str | None:
    """See the package's function of the same name."""
    if env_id in NEEDS_RENDERER and not headless.render_device_available():
        return f"{env_id} reads render shapes and no Vulkan device was found; install a Vulkan driver"
    if env_id in NO_PARTIAL_RESET:
        return f"{env_id} can't reset a part of its envs in this ManiSkill; run it with sim_backend='physx_cpu'"
    return version_problem()


def install() -> None:
    """Patch ManiSkill; a second call does nothing. Raises UserError for unknown versions, before any change."""
    problem = version_problem()
    if problem:
        raise UserError(problem)
    headless.use_stand_ins_without_renderer()
    if _wrapped:
        return
    _patch_backend()
    _patch_scene()
    _patch_indices()
    _patch_links()
    _patch_kinematics()
    _patch_agents()
    _patch_rendering()


def _is_batched(scene: ManiSkillScene) -> bool:
    return type(scene.px) is BatchedPhysxCpuSystem


def _wrap(owner: Any, name: str) -> Any:
    """Decorator: replace `owner.name` by the decorated function, which gets the original as its first argument."""
    original = getattr(owner, name)

    def decorate(replacement: Any) -> Any:
        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return replacement(original, *args, **kwargs)

        setattr(owner, name, wrapper)
        _wrapped.append(f"{owner.__name__}.{name}")
        return wrapper

    return decorate


def _patch_backend() -> None:
    @_wrap(sapien_env, "parse_sim_and_render_backend")
    def parse(original: Any, sim_backend: str, render_backend: str) -> BackendInfo:
        name, _, ik = sim_backend.partition(":")
        if name != BACKEND:
            return original(sim_backend, render_backend)
        stock = original("physx_cpu", render_backend)
        return BatchedBackendInfo(
            device=stock.device,
            sim_device=HostDevice(),
            sim_backend=BACKEND,
            render_device=stock.render_device,
            render_backend=stock.render_backend,
            ik=kinematics.parse_ik(ik),
        )


def _patch_scene() -> None:
    @_wrap(sapien_env.BaseEnv, "_setup_scene")
    def setup_scene(original: Any, env: sapien_env.BaseEnv) -> None:
        if env.backend.sim_backend != BACKEND:
            original(env)
            return
        check_room_for(env.num_envs)
        env._set_scene_config()
        scenes = []
        for _ in range(env.num_envs):
            systems = [physx.PhysxCpuSystem()]
            if can_render(env._render_device):
                systems.append(sapien.render.RenderSystem(env._render_device))
            scenes.append(sapien.Scene(systems))
        env.scene = ManiSkillScene(scenes, sim_config=env.sim_config, device=env.device, backend=env.backend)
        env.scene.px = BatchedPhysxCpuSystem(scenes)
        env.scene.gpu_sim_enabled = True
        env.scene.px.timestep = 1.0 / env._sim_freq

    @_wrap(sapien_env.BaseEnv, "_clear_sim_state")
    def clear_sim_state(original: Any, env: sapien_env.BaseEnv) -> None:
        original(env)
        if _is_batched(env.scene):
            env.scene.px.forget(env.scene._reset_mask.numpy())

    @_wrap(ActorBuilder, "build_physx_component")
    def build_physx_component(original: Any, builder: ActorBuilder, link_parent: Any = None) -> Any:
        if _is_batched(builder.scene):
            builder._plane_collision_poses = (
                set()
            )  # the GPU path builds one ground for all scenes; here each needs its own
        return original(builder, link_parent)


def _patch_indices() -> None:
    def replace(owner: type, name: str, batched: Any) -> None:
        stock = owner.__dict__[name].func
        index = functools.cached_property(lambda self: batched(self) if _is_batched(self.scene) else stock(self))
        index.__set_name__(owner, name)
        setattr(owner, name, index)

    def body_rows(struct: Any) -> torch.Tensor:
        return torch.tensor([struct.px.layout.body_row[body] for body in struct._bodies], dtype=torch.long)

    def articulation_rows(articulations: list[Any], px: BatchedPhysxCpuSystem) -> torch.Tensor:
        return torch.tensor(
            [px.layout.articulation_row[articulation] for articulation in articulations], dtype=torch.int32
        )

    replace(PhysxRigidBodyComponentStruct, "_body_data_index", body_rows)
    replace(Articulation, "_data_index", lambda struct: articulation_rows(struct._objs, struct.px))
    replace(ArticulationJoint, "_data_index", lambda struct: articulation_rows(struct._physx_articulations, struct.px))


def _patch_links() -> None:
    """Link velocities are copied when they are read: few tasks ask for any."""
    body_data = PhysxRigidBodyComponentStruct._body_data

    def lazy_body_data(struct: PhysxRigidBodyComponentStruct) -> torch.Tensor:
        if isinstance(struct, Link) and _is_batched(struct.scene) and struct.scene._gpu_sim_initialized:
            struct.px.read_link_velocities(struct._bodies, struct._body_data_index.numpy())
        return body_data.fget(struct)

    PhysxRigidBodyComponentStruct._body_data = property(lazy_body_data)


def _patch_kinematics() -> None:
    @_wrap(Kinematics, "_setup_cpu")
    def setup_cpu(original: Any, solver: Kinematics) -> None:
        scene = solver.articulation.scene
        if _is_batched(scene) and scene.backend.ik == "geo":
            kinematics.use_geometric_jacobian(solver)
        else:
            original(solver)

    @_wrap(PDEEPosController, "set_action")
    def set_action(original: Any, controller: PDEEPosController, action: Any) -> None:
        if _is_batched(controller.scene):
            if controller.scene.backend.ik == "pin":
                kinematics.set_action_with_pinocchio(controller, action)
                return
            kinematics.check_frame(controller)
            if kinematics.moves_from_where_it_is(controller):
                kinematics.set_action_with_jacobian(controller, action)
                return
        original(controller, action)


def _patch_agents() -> None:
    @_wrap(BaseAgent, "set_action")
    def refuse_nan(original: Any, agent: BaseAgent, action: torch.Tensor) -> None:
        if _is_batched(agent.scene) and torch.isnan(action).any():
            raise ValueError(f"Action cannot be NaN. Environment received: {action}")
        original(agent, action)

    @_wrap(BaseAgent, "set_state")
    def set_state(original: Any, agent: BaseAgent, state: dict, ignore_controller: bool = False) -> None:
        original(agent, state, ignore_controller)
        if _is_batched(agent.scene):
            agent.scene._gpu_apply_all()
            agent.scene._gpu_fetch_all()


def _patch_rendering() -> None:
    @_wrap(ManiSkillScene, "_sapien_update_render")
    def update_render(original: Any, scene: ManiSkillScene, *args: Any, **kwargs: Any) -> None:
        if _is_batched(scene):
            render.update_render(scene)
        else:
            original(scene, *args, **kwargs)

    @_wrap(ManiSkillScene, "_sapien_add_camera")
    def add_camera(original: Any, scene: ManiSkillScene, *args: Any, **kwargs: Any) -> Any:
        if not _is_batched(scene):
            return original(scene, *args, **kwargs)
        scene.gpu_sim_enabled = False  # a camera mounted on a CPU body follows it; a GPU pose index doesn't exist
        try:
            return original(scene, *args, **kwargs)
        finally:
            scene.gpu_sim_enabled = True
