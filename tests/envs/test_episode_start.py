"""An episode starts the same way whatever happened before it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reinflow.envs import EnvConfig
from reinflow.envs.maniskill import ManiSkillEnv
from reinflow.recording.experts import make_expert

IS_GRASPED = 18
"""place of the flag in PickCube-v1's state: after 9 joint positions and 9 velocities"""


@pytest.mark.parametrize(("backend", "num_envs"), [("physx_cpu_batched", 3), ("physx_cpu", 1)])
def test_the_first_frame_does_not_show_the_last_episodes_grasp(backend: str, num_envs: int):
    env = ManiSkillEnv(EnvConfig(env_id="PickCube-v1").completed(), num_envs, backend)
    expert = make_expert("PickCube-v1", num_envs)
    first = env.reset(seed=5)["state"]
    for _ in range(16):
        frame = env.step(expert.act(env.env)).obs["state"]
    assert frame[:, IS_GRASPED].all()
    if num_envs > 1:
        partly = env.reset(env_idx=torch.tensor([1]))["state"]
        assert partly[:, IS_GRASPED].tolist() == [1, 0, 1]
        partly = env.reset(env_idx=torch.tensor([2]))["state"]
        assert partly[:, IS_GRASPED].tolist() == [1, 0, 0]  # env 1 has not stepped since its reset
    again = env.reset(seed=5)["state"]
    assert (again - first).abs().max() == 0
    env.close()


def shaky_grasp(env: ManiSkillEnv, seed: int) -> tuple[Tensor, list[Tensor]]:
    """Frames (t n s) and actions of a hand that goes for the cube, pushes and turns it, and closes."""
    generator = torch.Generator().manual_seed(seed)
    frames, actions = [env.reset(seed=seed)["state"]], []
    for step in range(20):
        action = 0.15 * torch.randn(env.num_envs, 7, generator=generator)
        action[:, :3] += (env.env.cube.pose.p - env.env.agent.tcp.pose.p) / 0.1
        if step < 8:
            action[:, 2] += 0.8
        action[:, 6] = 1 if step < 14 else -1
        actions.append(action.clamp(-1, 1))
        frames.append(env.step(actions[-1]).obs["state"])
    return torch.stack(frames), actions


def repeated(env: ManiSkillEnv, seed: int, actions: list[Tensor]) -> Tensor:
    return torch.stack([env.reset(seed=seed)["state"], *(env.step(action).obs["state"] for action in actions)])


@pytest.mark.parametrize(
    ("backend", "num_envs", "seeds"), [("physx_cpu_batched", 8, [0, 1]), ("physx_cpu", 1, [9, 12])]
)
def test_an_episode_is_the_one_of_a_fresh_env_whatever_was_pushed_before(backend: str, num_envs: int, seeds: list[int]):
    config = EnvConfig(env_id="PickCube-v1").completed()
    fresh = [ManiSkillEnv(config, num_envs, backend) for _ in seeds]
    first = {seed: shaky_grasp(env, seed) for env, seed in zip(fresh, seeds, strict=True)}
    used = fresh[0]
    for seed in (*reversed(seeds), *seeds):
        frames, actions = first[seed]
        again = repeated(used, seed, actions)
        assert (again - frames).abs().amax((0, 2)).tolist() == [0.0] * num_envs, f"seed {seed}"
    for env in fresh:
        env.close()
