"""Inverse kinematics for the end-effector controllers of batched CPU scenes.

`pin` solves each env with pinocchio, as stock `physx_cpu` does: the trajectories are the same to the bit. `geo` takes
one damped least-squares step for all envs at once, ManiSkill's formula for GPU simulation, on a Jacobian computed here
(pytorch_kinematics' own takes most of an env step on a CPU).
"""

from __future__ import annotations

from typing import Any, cast, get_args

import numpy as np
import sapien
import torch
from jaxtyping import Float
from mani_skill.agents.controllers.pd_ee_pose import PDEEPosControllerConfig
from torch import Tensor

from reinflow.envs.cpu_batch import Ik
from reinflow.errors import UserError

_ROOT_FRAMES = ("root_translation", "root_translation:root_aligned_body_rotation")
_MAX_PIN_ITERATIONS = 100
"""as in ManiSkill's CPU path"""


class GeometricJacobian:
    """Jacobian, in the root frame, of a serial chain of revolute and prismatic joints, batched over envs.

    SAPIEN's joints act along their x axis. A pose is held by its columns, (column xyz env), so that a joint's motion is
    a few products of rows; numpy's cost less than torch's at this size.
    """

    def __init__(self, end_link: Any) -> None:
        joints, link = [], end_link
        while link is not None and link.joint is not None:
            joints.append(link.joint._objs[0])
            link = link.joint.parent_link
        before, self._frames, revolute = np.eye(4, dtype=np.float32), [], []
        for joint in reversed(joints):
            before = before @ _matrix(joint.pose_in_parent)
            after = np.linalg.inv(_matrix(joint.pose_in_child))
            if joint.dof:
                self._frames.append(before.T)
                revolute.append("prismatic" not in joint.type)
                before = after
            else:
                before = before @ after
        self._tail = before[:, 3]
        self._revolute = np.array(revolute)[:, None, None]

    def __call__(self, q: Float[Tensor, "n j"]) -> Float[Tensor, "n 6 j"]:
        """Linear, then angular velocity of the end link per joint velocity."""
        joints = q.numpy().T
        poses = np.empty((len(joints), 4, 3, len(q)), np.float32)
        before = np.repeat(np.eye(4, 3, dtype=np.float32)[..., None], len(q), 2)
        for frame, pose, revolute, joint, cos, sin in zip(
            self._frames, poses, self._revolute, joints, np.cos(joints), np.sin(joints), strict=True
        ):
            np.matmul(frame, before.reshape(4, -1), out=pose.reshape(4, -1))
            x, y, z, origin = pose
            if revolute:
                pose[1], pose[2] = y * cos + z * sin, z * cos - y * sin
            else:
                origin += x * joint
            before = pose
        end = (self._tail @ before.reshape(4, -1)).reshape(3, -1)
        axis, lever = poses[:, 0], end - poses[:, 3]
        turned = axis[:, [1, 2, 0]] * lever[:, [2, 0, 1]] - axis[:, [2, 0, 1]] * lever[:, [1, 2, 0]]
        linear, angular = np.where(self._revolute, turned, axis), np.where(self._revolute, axis, np.float32(0))
        return torch.from_numpy(np.concatenate([linear, angular], 1)).permute(2, 1, 0)


def use_geometric_jacobian(kinematics: Any) -> None:
    """Set up a ManiSkill `Kinematics` for `geo`: its GPU formula with the fast Jacobian."""
    kinematics._setup_gpu()
    kinematics.pk_chain.jacobian = GeometricJacobian(kinematics.end_link)


def solve_with_pinocchio(
    kinematics: Any, target: Float[Tensor, "n 7"], qpos: Float[Tensor, "n d"]
) -> Float[Tensor, "n c"]:
    """Controlled joint positions that reach `target` (position, quaternion, root frame); unreachable rows stay put."""
    solution = qpos[:, kinematics.active_joint_indices]
    start = qpos[:, kinematics.pmodel_active_joint_indices].numpy().astype(np.float64)
    controlled = kinematics.pmodel_controlled_joint_indices.numpy()
    mask = kinematics.qmask.numpy().astype(np.int32)
    solve, end_link, rows = kinematics.pmodel.compute_inverse_kinematics, kinematics.end_link_idx, solution.numpy()
    poses = target.numpy()
    for row, (position, quaternion) in enumerate(zip(poses[:, :3], poses[:, 3:], strict=True)):
        q, success, _ = solve(
            end_link,
            sapien.Pose(position, quaternion),
            initial_qpos=start[row],
            active_qmask=mask,
            max_iterations=_MAX_PIN_ITERATIONS,
        )
        if success:
            rows[row] = q[controlled]
    return solution


def set_action_with_pinocchio(controller: Any, action: Float[Tensor, "n a"]) -> None:
    """`PDEEPosController.set_action` as on the CPU: a target pose first, then converged inverse kinematics."""
    action = _begin_action(controller, action)
    previous = controller._target_pose if controller.config.use_target else controller.ee_pose_at_base
    controller._target_pose = controller.compute_target_pose(previous, action)
    qpos = controller.articulation.get_qpos()
    _drive_to(controller, solve_with_pinocchio(controller.kinematics, controller._target_pose.raw_pose, qpos))


def set_action_with_jacobian(controller: Any, action: Float[Tensor, "n a"]) -> None:
    """`PDEEPosController.set_action` as on the GPU, for an action that moves the end effector from where it is.

    ManiSkill computes the end effector's pose twice for it and then needs only the change.
    """
    action = _begin_action(controller, action)
    if type(controller.config) is PDEEPosControllerConfig:
        action = torch.hstack([action, action.new_zeros(len(action), 3)])
    target = controller.kinematics.compute_ik(
        action,
        controller.articulation.get_qpos(),
        is_delta_pose=True,
        solver_config=controller.config.delta_solver_config,
    )
    _drive_to(controller, target)


def moves_from_where_it_is(controller: Any) -> bool:
    """Whether actions are relative to the pose now, neither absolute nor relative to the last target."""
    return controller.config.use_delta and not controller.config.use_target


def _begin_action(controller: Any, action: Float[Tensor, "n a"]) -> Float[Tensor, "n a"]:
    """The action in metres and radians."""
    action = controller._preprocess_action(action)
    controller._step = 0
    controller._start_qpos = controller.qpos
    return action


def _drive_to(controller: Any, qpos: Float[Tensor, "n c"]) -> None:
    controller._target_qpos = qpos
    if controller.config.interpolate:
        controller._step_size = (qpos - controller._start_qpos) / controller._sim_steps
    else:
        controller.set_drive_targets(qpos)


def check_frame(controller: Any) -> None:
    """Raises UserError for a control frame that the `geo` formula doesn't know."""
    if controller.config.frame not in _ROOT_FRAMES:
        raise UserError(f"ik='geo' controls in the root frame and got {controller.config.frame!r}; choose ik='pin'")


def parse_ik(name: str | None) -> Ik:
    """`pin` by default. Raises UserError for an unknown name."""
    ik = name or "pin"
    if ik not in get_args(Ik):
        raise UserError(f"Unknown ik {ik!r} for physx_cpu_batched; choose one of {', '.join(get_args(Ik))}")
    return cast(Ik, ik)


def _matrix(pose: sapien.Pose) -> Float[np.ndarray, "4 4"]:
    return pose.to_transformation_matrix().astype(np.float32)
