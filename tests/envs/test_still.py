"""Padded actions keep every robot where it is, in every control mode; PhysX knows what it was told to do."""

from __future__ import annotations

from contextlib import closing

import pytest
import torch

from reinflow.data.chunks import pad_actions
from reinflow.envs import cpu_batch
from reinflow.envs.headless import use_stand_ins_without_renderer
from reinflow.envs.maniskill import no_questions, quiet_maniskill
from reinflow.envs.still import still_action

ROBOTS = [
    ("PickCube-v1", "panda"),
    ("PickCube-v1", "panda_wristcam"),
    ("DrawTriangle-v1", "panda_stick"),
    ("PickCube-v1", "fetch"),
    ("PickCube-v1", "so100"),
    ("MS-AntRun-v1", None),
    ("MS-HopperHop-v1", None),
    ("MS-CartpoleBalance-v1", None),
    ("MS-HumanoidStand-v1", None),
    ("TriFingerRotateCubeLevel0-v1", None),
    ("RotateSingleObjectInHandLevel0-v1", None),
    ("RotateValveLevel0-v1", None),
    ("UnitreeG1TransportBox-v1", None),
    ("UnitreeG1Stand-v1", None),
]
"""robots of ManiSkill's tasks that need no download; None is the task's own"""
CANNOT_STEP = "pd_ee_delta_pose_align"
"""ManiSkill 3.0.1 offers this mode and fails in its first step"""


def make(env_id: str, robot: str | None):
    import gymnasium

    quiet_maniskill()
    use_stand_ins_without_renderer()
    cpu_batch.install()
    options = {} if robot is None else {"robot_uids": robot}
    with no_questions():
        return gymnasium.make(
            env_id,
            num_envs=2,
            obs_mode="none",
            sim_backend=cpu_batch.backend_name("pin"),
            render_backend="none",
            **options,
        ).unwrapped


def commanded(env) -> tuple[torch.Tensor, torch.Tensor]:
    """Where PhysX drives the first env's joints to, and how fast."""
    joints = [joint._objs[0] for joint in env.agent.robot.active_joints]
    position = torch.tensor([float(joint.drive_target[0]) for joint in joints])
    return position, torch.tensor([float(joint.drive_velocity_target[0]) for joint in joints])


def aims(env) -> list[torch.Tensor]:
    """Poses that inverse kinematics turns into joint targets."""
    poses = [getattr(part, "_target_pose", None) for part in parts(env.agent.controller)]
    return [pose.raw_pose[0].clone() for pose in poses if pose is not None]


def parts(controller):
    return getattr(controller, "controllers", {"": controller}).values()


def some_action(env, generator: torch.Generator) -> torch.Tensor:
    """From the middle of the bounds, but never at rest."""
    space = env.agent.controller.single_action_space
    low, high = (torch.from_numpy(bound).clamp(-3, 3) for bound in (space.low, space.high))
    share = 0.6 + 0.15 * torch.rand(space.shape, generator=generator)
    return low + share * (high - low)


@pytest.mark.parametrize(("env_id", "robot"), ROBOTS)
def test_a_padded_action_commands_no_motion(env_id: str, robot: str | None):
    generator = torch.Generator().manual_seed(0)
    with closing(make(env_id, robot)) as env:
        for mode in (mode for mode in env.agent.supported_control_modes if mode != CANNOT_STEP):
            env.agent.set_control_mode(mode)
            env.reset(seed=0)
            action = some_action(env, generator)
            env.step(action.expand(2, -1))
            target, _ = commanded(env)
            place, aim = env.agent.robot.qpos[0].clone(), aims(env)
            still = still_action(env.agent.controller)
            env.step(pad_actions(action[None], 0, 1, still)[-1].expand(2, -1))
            position, velocity = commanded(env)
            if not target.isfinite().all():
                continue  # this mode of ManiSkill's scales actions by infinite joint limits
            assert velocity.abs().max() < 1e-5, mode
            # the last command stands, or, for deltas without a target of their own, the joints stay where they are
            moved = torch.minimum((position - target).abs(), (position - place).abs()).max()
            same_aim = aim and all(torch.allclose(*pair, atol=1e-5) for pair in zip(aim, aims(env), strict=True))
            assert moved < 1e-5 or same_aim, (mode, moved)
