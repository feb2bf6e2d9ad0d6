"""The batched CPU backend against stock `physx_cpu`: the numbers are equal, not close."""

from __future__ import annotations

import gc
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from reinflow.envs import headless
from reinflow.envs.cpu_batch import backend_name, install, supported, unsupported_reason
from reinflow.errors import UserError

pytest.importorskip("mani_skill")

STEPS = 40
TASKS = {
    "PickCube-v1": "cube",
    "PushCube-v1": "obj",
    "PullCube-v1": "obj",
    "StackCube-v1": "cubeA",
    "LiftPegUpright-v1": "peg",
}
"""task -> attribute of the object that the gripper goes for"""


def make(env_id: str, num_envs: int, backend: str, control_mode: str = "pd_ee_delta_pose") -> Any:
    import gymnasium as gym

    torch.set_num_threads(1)
    install()
    return gym.make(
        env_id,
        num_envs=num_envs,
        sim_backend=backend,
        control_mode=control_mode,
        obs_mode="state",
        reward_mode="normalized_dense",
        render_backend="none",
        max_episode_steps=10**6,
    ).unwrapped


def grasp_action(env: Any, target: str, step: int) -> torch.Tensor:
    """Hover over the object, go down, close the gripper, then carry it; in units of the controller's 0.1 m."""
    offset = getattr(env, target).pose.p - env.agent.tcp.pose.p
    action = torch.zeros(env.num_envs, 7)
    action[:, 6] = 1 if step < 22 else -1
    if step < 10:
        action[:, :3] = (offset + torch.tensor([0.0, 0.0, 0.1])) / 0.1
    elif step < 27:
        action[:, :3] = offset / 0.1
    else:
        action[:, :3] = torch.tensor([0.2, 0.1, 0.3])
    return action.clamp(-1, 1)


def record(env: Any, actions: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """obs (t n s), reward (t n) and success (t n) of an action sequence."""
    steps = [env.step(action) for action in actions]
    return {
        "obs": torch.stack([step[0].clone() for step in steps]),
        "reward": torch.stack([step[1].clone() for step in steps]),
        "success": torch.stack([step[4]["success"].clone() for step in steps]),
    }


def copied(state: Any) -> Any:
    return {key: copied(value) for key, value in state.items()} if isinstance(state, dict) else state.clone()


def row_of(state: Any, row: int) -> Any:
    if isinstance(state, dict):
        return {key: row_of(value, row) for key, value in state.items()}
    return state[row : row + 1].clone()


def assert_same(batched: dict[str, torch.Tensor], stock: dict[str, torch.Tensor], row: int) -> None:
    for name in batched:
        assert torch.equal(batched[name][:, row], stock[name][:, 0]), (
            f"{name} of env {row} differs from stock physx_cpu"
        )


@pytest.mark.parametrize("env_id", TASKS)
def test_batched_rows_equal_stock_envs_from_the_same_states(env_id):
    batched, stock = make(env_id, 4, backend_name("pin")), make(env_id, 1, "physx_cpu")
    seeds = [100, 101, 102, 103]
    batched.reset(seed=seeds)
    states = copied(batched.get_state_dict())
    batched.reset(seed=seeds, options={"reset_to_env_states": {"env_states": copied(states)}})
    actions, steps, contacts = [], [], 0
    for step in range(STEPS):
        actions.append(grasp_action(batched, TASKS[env_id], step))
        steps.append(record(batched, actions[-1:]))
        contacts += len(batched.scene.px.get_contacts())
    rows = {name: torch.cat([step[name] for step in steps]) for name in steps[0]}
    for row, seed in enumerate(seeds):
        start = {"env_states": row_of(states, row)}
        stock.reset(seed=seed, options={"reconfigure": True, "reset_to_env_states": start})
        assert_same(rows, record(stock, [action[row : row + 1] for action in actions]), row)
    assert contacts > 0, "the motion should touch something"
    batched.close()
    stock.close()


@pytest.mark.parametrize(
    "control_mode",
    ["pd_ee_delta_pose", "pd_ee_target_delta_pose", "pd_ee_delta_pos", "pd_ee_pose", "pd_joint_delta_pos"],
)
def test_one_batched_env_equals_stock_over_episodes_of_the_same_seeds(control_mode):
    batched = make("PickCube-v1", 1, backend_name("pin"), control_mode)
    stock = make("PickCube-v1", 1, "physx_cpu", control_mode)
    generator = torch.Generator().manual_seed(0)
    for seed in range(3):
        first, second = batched.reset(seed=seed)[0], stock.reset(seed=seed)[0]
        assert torch.equal(first, second)
        random = torch.rand(12, 1, *batched.single_action_space.shape, generator=generator) * 2 - 1
        assert_same(record(batched, list(random)), record(stock, list(random)), row=0)


def test_partial_reset_leaves_the_other_envs_bit_identical():
    reset_rows, kept_rows = torch.tensor([1, 3]), [0, 2, 4]
    plain, partial = (make("PickCube-v1", 5, backend_name("pin")) for _ in range(2))
    plain.reset(seed=5)
    partial.reset(seed=5)
    for step in range(STEPS):
        action = grasp_action(plain, "cube", step)
        if step == 25:
            before = [system.pack() for system in partial.scene.px.systems]
            partial.reset(options={"env_idx": reset_rows})
            after = [system.pack() for system in partial.scene.px.systems]
            assert [row for row in range(5) if before[row] != after[row]] == reset_rows.tolist()
            assert partial.elapsed_steps.tolist() == [25, 0, 25, 0, 25]
        expected, got = record(plain, [action]), record(partial, [action])
        for name in expected:
            assert torch.equal(expected[name][:, kept_rows], got[name][:, kept_rows]), f"{name} at step {step}"
    assert not torch.equal(expected["obs"][:, reset_rows], got["obs"][:, reset_rows])


def test_a_reset_forgets_the_episode_before():
    actions = list(torch.rand(10, 3, 7, generator=torch.Generator().manual_seed(1)) * 2 - 1)
    env = make("PickCube-v1", 3, backend_name("pin"))
    episodes = []
    for _ in range(3):
        env.reset(seed=11)
        episodes.append(record(env, actions))
    for name, values in episodes[0].items():
        assert all(torch.equal(values, episode[name]) for episode in episodes[1:])


def test_geo_reaches_and_grasps_like_pin():
    env = make("PickCube-v1", 6, backend_name("geo"))
    env.reset(seed=3)
    for step in range(STEPS):
        *_, info = env.step(grasp_action(env, "cube", step))
    assert info["is_grasped"].all()


def test_geo_jacobian_equals_pytorch_kinematics():
    env = make("PickCube-v1", 3, backend_name("geo"))
    kinematics = env.agent.controller.controllers["arm"].kinematics
    qpos = env.agent.robot.get_qpos()[:, kinematics.active_ancestor_joint_idxs]
    expected = type(kinematics.pk_chain).jacobian(kinematics.pk_chain, qpos)
    torch.testing.assert_close(kinematics.pk_chain.jacobian(qpos), expected, atol=1e-5, rtol=0)


def test_geo_jacobian_of_a_turning_and_a_sliding_joint_by_hand():
    import sapien

    from reinflow.envs.cpu_batch.kinematics import GeometricJacobian

    def link(parent: Any, kind: str, before: sapien.Pose) -> Any:
        joint = SimpleNamespace(type=kind, dof=1, pose_in_parent=before, pose_in_child=sapien.Pose())
        return SimpleNamespace(joint=SimpleNamespace(_objs=[joint], parent_link=parent))

    arm = link(SimpleNamespace(joint=None), "revolute", sapien.Pose())
    slider = link(arm, "prismatic", sapien.Pose([0, 1, 0]))
    jacobian = GeometricJacobian(slider)(torch.tensor([[torch.pi / 2, 0.3], [0.0, 0.5]]))
    # the end is (slide, cos turn, sin turn): turning moves it by (0, -sin, cos), sliding by (1, 0, 0)
    turning = torch.tensor([[0.0, -1, 0, 1, 0, 0], [0, 0, 1, 1, 0, 0]])
    sliding = torch.tensor([[1.0, 0, 0, 0, 0, 0]] * 2)
    torch.testing.assert_close(jacobian, torch.stack([turning, sliding], 2))


def test_link_velocity_and_acceleration_are_read_lazily_and_equal_sapien():
    env = make("PickCube-v1", 2, backend_name("pin"), "pd_joint_delta_pos")
    env.reset(seed=0)
    env.step(torch.ones(2, 8))
    tcp, robot = env.agent.tcp, env.agent.robot
    for row in range(2):
        assert tcp.linear_velocity[row].tolist() == tcp._objs[row].linear_velocity.tolist()
        assert robot.qacc[row].tolist() == robot._objs[row].qacc.tolist()
    assert tcp.linear_velocity.abs().max() > 0


def test_force_and_torque_move_only_their_row():
    env = make("PickCube-v1", 2, backend_name("pin"))
    env.reset(seed=0)
    env.step(torch.zeros(2, 7))
    row = env.cube._body_data_index[1]
    env.scene.px.cuda_rigid_body_torque.torch()[row] = torch.tensor([0.0, 0.0, 0.05])
    env.scene.px.gpu_apply_rigid_dynamic_torque()
    env.cube.apply_force(torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 30.0]]))
    env.step(torch.zeros(2, 7))
    height, spin = env.cube.linear_velocity[:, 2].abs(), env.cube.angular_velocity[:, 2].abs()
    assert height[1] > 0.01 > height[0]
    assert spin[1] > 0.01 > spin[0]


def test_nan_action_is_refused_as_in_stock():
    env = make("PickCube-v1", 2, backend_name("pin"))
    with pytest.raises(ValueError, match="NaN"):
        env.step(torch.full((2, 7), torch.nan))


def test_agent_state_round_trips():
    env = make("PickCube-v1", 2, backend_name("pin"))
    env.reset(seed=0)
    saved = copied({key: value for key, value in env.agent.get_state().items() if torch.is_tensor(value)})
    pose = env.agent.robot.pose
    env.step(torch.ones(2, 7))
    assert not torch.equal(env.agent.robot.get_qpos(), saved["robot_qpos"])
    env.agent.set_state({**saved, "robot_root_pose": pose})
    assert torch.equal(env.agent.robot.get_qpos(), saved["robot_qpos"])
    assert env.agent.robot._objs[1].qpos.tolist() == saved["robot_qpos"][1].tolist()


def test_more_scenes_than_a_process_holds_are_refused():
    with pytest.raises(UserError, match="900 scenes per process"):
        make("PickCube-v1", 901, backend_name("pin"))


def test_closing_an_env_makes_room_for_another():
    from reinflow.envs.cpu_batch.system import check_room_for

    env = make("PickCube-v1", 30, backend_name("pin"))
    with pytest.raises(UserError, match="900 scenes"):
        check_room_for(880)
    env.close()
    del env
    gc.collect()
    check_room_for(880)


def test_body_added_after_the_start_is_refused():
    env = make("PickCube-v1", 2, backend_name("pin"))
    builder = env.scene.create_actor_builder()
    builder.add_box_collision(half_size=[0.01] * 3)
    builder.build(name="late")
    with pytest.raises(NotImplementedError, match="after it started"):
        env.step(torch.zeros(2, 7))


def test_unknown_version_is_refused_before_anything_is_patched(monkeypatch):
    from reinflow.envs.cpu_batch import patches

    monkeypatch.setattr(patches, "KNOWN_VERSIONS", {"mani_skill": ("2.0.0",)})
    with pytest.raises(UserError, match=r"knows mani_skill 2\.0\.0, and 3"):
        install()
    assert not supported("PickCube-v1")


def test_unknown_ik_is_refused():
    with pytest.raises(UserError, match="choose one of pin, geo"):
        make("PickCube-v1", 2, "physx_cpu_batched:dls")


def test_task_that_reads_render_shapes_is_named_when_there_is_no_renderer(monkeypatch):
    monkeypatch.setattr(headless, "render_device_available", lambda: False)
    assert "Vulkan" in unsupported_reason("PushT-v1")
    assert "reset a part" in unsupported_reason("MS-AntWalk-v1")
    assert supported("PickCube-v1")


def test_render_probe_answers_without_a_driver(monkeypatch):
    monkeypatch.setattr(headless, "_vulkan_driver_installed", lambda: False)
    assert headless.render_device_available.__wrapped__() is False


def test_headless_trajectory_equals_one_with_real_materials():
    if not headless.render_device_available():
        pytest.skip("no Vulkan driver here")
    child = """
import sys, hashlib, torch
from reinflow.envs import headless
if sys.argv[1] == "stand-ins":
    headless.render_device_available = lambda: False
from tests.envs.test_cpu_batch import make
env = make("PegInsertionSide-v1", 1, "physx_cpu")
actions = torch.rand(30, 1, 7, generator=torch.Generator().manual_seed(0))
obs = [env.reset(seed=0)[0]] + [env.step(action)[0] for action in actions]
print(headless.use_stand_ins_without_renderer(), hashlib.sha1(torch.cat(obs).numpy().tobytes()).hexdigest())
"""
    outputs = [
        subprocess.run([sys.executable, "-c", child, kind], capture_output=True, text=True, check=True).stdout.split()[
            -2:
        ]
        for kind in ("stand-ins", "real")
    ]
    assert [used for used, _ in outputs] == ["True", "False"]
    assert outputs[0][1] == outputs[1][1]


def test_batched_images_equal_stock_images():
    if not headless.render_device_available():
        pytest.skip("no Vulkan driver here")
    import gymnasium as gym

    install()
    options = {"obs_mode": "rgb", "control_mode": "pd_ee_delta_pose", "render_backend": "cpu"}
    batched = gym.make("PickCube-v1", num_envs=2, sim_backend=backend_name("pin"), **options).unwrapped
    stock = gym.make("PickCube-v1", num_envs=1, sim_backend="physx_cpu", **options).unwrapped
    batched.reset(seed=[4, 5])
    states = copied(batched.get_state_dict())
    batched.reset(seed=[4, 5], options={"reset_to_env_states": {"env_states": copied(states)}})
    rgb = batched.step(torch.zeros(2, 7))[0]["sensor_data"]["base_camera"]["rgb"]
    for row, seed in enumerate([4, 5]):
        stock.reset(seed=seed, options={"reset_to_env_states": {"env_states": row_of(states, row)}})
        assert torch.equal(stock.step(torch.zeros(1, 7))[0]["sensor_data"]["base_camera"]["rgb"][0], rgb[row])


def test_camera_group_stacks_the_pictures_of_its_scenes():
    from reinflow.envs.cpu_batch.render import HostCameraGroup

    class OnePixel:
        def __init__(self, value: int) -> None:
            self.value, self.taken = value, False

        def take_picture(self) -> None:
            self.taken = True

        def get_picture(self, name: str) -> np.ndarray:
            assert self.taken
            return np.full((1, 1, 3), self.value, np.uint8)

    group = HostCameraGroup([OnePixel(7), OnePixel(9)])
    group.take_picture()
    assert group.get_picture_cuda("Color").torch()[:, 0, 0, 0].tolist() == [7, 9]
