"""An episode starts the same way whatever happened before it."""

from __future__ import annotations

import pytest
import torch

from reinflow.data.experts import make_expert
from reinflow.envs import EnvConfig
from reinflow.envs.maniskill import ManiSkillEnv

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
    again = env.reset(seed=5)["state"]
    assert (again - first).abs().max() == 0
    env.close()
