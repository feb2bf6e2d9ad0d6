"""An env that is brought back goes on as the one that was left, to the bit: frames, rewards, ends, random starts."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from reinflow.envs import EnvConfig
from reinflow.envs.gymnasium_suite import GymnasiumEnv
from reinflow.envs.maniskill import ManiSkillEnv
from reinflow.envs.mujoco import MujocoEnv
from reinflow.envs.sequence import Sequence
from reinflow.envs.toy import ToyEnv
from reinflow.envs.workers import WorkerChunkEnv
from reinflow.envs.wrappers import ActionChunk
from reinflow.recording.experts import make_expert
from reinflow.runtime.trees import copied, join, split
from reinflow.types import ChunkEnv
from tests.envs.test_episode_start import shaky_grasp

LIMIT, CHUNK = 22, 4
"""an episode ends in the middle of a chunk, after the gripper has closed"""


def toy(num_envs: int, first: int = 0) -> ActionChunk:
    return ActionChunk(ToyEnv(num_envs, terminate_on_success=True), 3, 2, 0.9)


def maniskill(env_id: str, num_envs: int) -> ActionChunk:
    config = EnvConfig(env_id, max_episode_steps=LIMIT).completed()
    return ActionChunk(ManiSkillEnv(config, num_envs, "physx_cpu_batched"), CHUNK, 2, 0.9)


def stock(num_envs: int) -> ActionChunk:
    config = EnvConfig("PickCube-v1", max_episode_steps=LIMIT).completed()
    envs = [ManiSkillEnv(config, 1, "physx_cpu") for _ in range(num_envs)]
    return ActionChunk(Sequence(envs), CHUNK, 2, 0.9)


def mujoco(env_id: str) -> ActionChunk:
    return ActionChunk(MujocoEnv(env_id, 2, LIMIT), CHUNK, 2, 0.9)


def gymnasium(env_id: str) -> ActionChunk:
    config = EnvConfig(env_id, max_episode_steps=LIMIT).completed()
    return ActionChunk(GymnasiumEnv(config, 2), CHUNK, 2, 0.9)


NEEDS = {"Hopper": "mujoco", "Ant": "mujoco", "Humanoid": "mujoco", "toy": "torch", "toy in workers": "torch"}
NEEDS |= {"Pendulum": "gymnasium", "PointMaze": "gymnasium_robotics", "Fetch": "gymnasium_robotics"}
"""others need mani_skill"""

MAKERS = {
    "toy": partial(toy, 5),
    "toy in workers": lambda: WorkerChunkEnv(toy, 5, 2, 3),
    "PickCube": partial(maniskill, "PickCube-v1", 3),
    "StackCube": partial(maniskill, "StackCube-v1", 2),
    "stock PickCube": partial(stock, 2),
    "Hopper": partial(mujoco, "Hopper-v5"),
    "Ant": partial(mujoco, "Ant-v5"),
    "Humanoid": partial(mujoco, "Humanoid-v5"),
    "Pendulum": partial(gymnasium, "Pendulum-v1"),
    "PointMaze": partial(gymnasium, "PointMaze_UMaze-v3"),
    "Fetch": partial(gymnasium, "FetchPush-v4"),
}


def actions(env: ChunkEnv, count: int, seed: int) -> Tensor:
    """Arbitrary, but those that press the hand onto the table are among them."""
    horizon = 3 if env.spec.env_id == "Toy-v0" else CHUNK
    drawn = torch.rand(count, env.num_envs, horizon, env.spec.action_dim, generator=torch.Generator().manual_seed(seed))
    drawn = drawn * 2 - 1
    drawn[..., 2:3] -= 0.7
    return drawn


def play(env: ChunkEnv, chunks: Tensor) -> list[Tensor]:
    parts = []
    for chunk in chunks:
        step = env.step_chunk(chunk)
        parts += [*step.obs.values(), *step.final_obs.values(), step.reward, step.ended, *vars(step.episode).values()]
    return parts


@pytest.mark.parametrize("name", MAKERS)
def test_a_restored_env_goes_on_as_the_one_that_was_left(name: str):
    pytest.importorskip(NEEDS.get(name, "mani_skill"))
    left = MAKERS[name]()
    left.reset(seed=3)
    play(left, actions(left, 9, seed=0))  # into the second episode
    state = copied(left.state())
    after = actions(left, 7, seed=1)
    expected = play(left, after)
    left.close()
    other = MAKERS[name]()
    other.reset(seed=8)
    play(other, after[:2])
    obs = other.restore(join(*split(state)))
    assert obs is not None
    for mine, theirs in zip(play(other, after), expected, strict=True):
        assert torch.equal(mine, theirs)
    other.close()


def test_a_grasped_cube_is_still_grasped_in_the_restored_env():
    pytest.importorskip("mani_skill")
    config = EnvConfig("PickCube-v1").completed()
    left, other = (ActionChunk(ManiSkillEnv(config, 2, "physx_cpu_batched"), 1, 1, 0.9) for _ in range(2))
    expert = make_expert("PickCube-v1", 2)
    left.reset(seed=3)
    for _ in range(16):
        step = left.step_chunk(expert.act(left.env.env)[:, None])
    assert step.obs["state"][:, -1, 18].all()  # is_grasped
    assert other.restore(copied(left.state())) is not None
    lift = torch.zeros(6, 2, 1, 7)
    lift[..., 2], lift[..., 6] = 0.5, -1.0
    assert all(torch.equal(a, b) for a, b in zip(play(other, lift), play(left, lift), strict=True))
    left.close()
    other.close()


@pytest.mark.parametrize(("backend", "num_envs", "seed"), [("physx_cpu_batched", 8, 0), ("physx_cpu", 1, 12)])
def test_a_hand_that_grasps_goes_on_to_the_bit_wherever_it_was_left(backend: str, num_envs: int, seed: int):
    """As Stage 3 does: every moment between chunks may be the one that a resume goes on from."""
    pytest.importorskip("mani_skill")
    config = EnvConfig("PickCube-v1").completed()
    _, moves = shaky_grasp(ManiSkillEnv(config, num_envs, backend), seed)
    chunks = torch.stack(moves, 1).unflatten(1, (-1, CHUNK)).transpose(0, 1)

    def chunk_env() -> ActionChunk:
        env = ManiSkillEnv(config, num_envs, backend)
        return ActionChunk(Sequence([env]) if backend == "physx_cpu" else env, CHUNK, 2, 0.9)

    left, other = chunk_env(), chunk_env()
    left.reset(seed=seed)
    states, expected = [], []
    for chunk in chunks:
        states.append(copied(left.state()))
        expected.append(play(left, chunk[None]))
    for begin in (4, 2, 3, 1):
        assert other.restore(join(*split(states[begin]))) is not None
        for chunk, parts in zip(chunks[begin:], expected[begin:], strict=True):
            other.state()
            assert all(torch.equal(a, b) for a, b in zip(play(other, chunk[None]), parts, strict=True))
    left.close()
    other.close()


def test_another_number_of_envs_or_workers_is_not_restored():
    left, env = toy(5), toy(4)
    assert left.state() is None  # nothing has happened yet
    left.reset(seed=0)
    env.reset(seed=0)
    assert env.restore(left.state()) is None
    workers = WorkerChunkEnv(toy, 5, 1, 3)
    assert workers.restore([{"env": left.state()}] * 2) is None
    assert workers.restore(left.state()) is None  # a run with --num_workers 0 that goes on with workers
    workers.reset(seed=0)
    assert left.restore(workers.state()) is None
    workers.close()


def test_an_env_that_gets_elsewhere_is_not_restored_as_if_it_did():
    pytest.importorskip("mani_skill")
    left = maniskill("PickCube-v1", 2)
    left.reset(seed=0)
    state = copied(left.state())
    assert left.restore(state) is not None
    state["env"]["reached"][0] += 1e-6
    assert left.restore(state) is None
    left.close()


def test_an_env_with_other_parts_is_not_restored():
    pytest.importorskip("mani_skill")
    left = maniskill("PegInsertionSide-v1", 1)
    left.reset(seed=0)
    state = copied(left.state())
    state["env"]["geometry"][-1] += 1e-3
    assert left.restore(state) is None
    left.close()


def test_a_state_of_an_older_version_is_not_restored():
    env = toy(2)
    env.reset(seed=0)
    assert env.restore({"log": [], "frames": {}, "stats": {}}) is None


def test_an_env_goes_on_the_same_way_however_often_its_state_was_taken():
    pytest.importorskip("mani_skill")
    once, thrice = maniskill("PickCube-v1", 2), maniskill("PickCube-v1", 2)
    for env, times in ((once, 1), (thrice, 3)):
        env.reset(seed=3)
        play(env, actions(env, 4, seed=0))
        states = [copied(env.state()) for _ in range(times)]
    assert torch.equal(states[0]["env"]["numbers"], states[-1]["env"]["numbers"])
    after = actions(once, 4, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(play(once, after), play(thrice, after), strict=True))
    once.close()
    thrice.close()
