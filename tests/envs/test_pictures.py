"""Pictures: only those that somebody sees are rendered, and rendering changes nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from reinflow.envs import EnvConfig, headless, make_env
from reinflow.envs.maniskill import ManiSkillEnv
from reinflow.envs.synthetic import SyntheticEnv
from reinflow.envs.wrappers import ActionChunk
from reinflow.types import BatchedEnv, ImageSpec, StepResult, canonical_obs_mode

LIMIT = 7
needs_renderer = pytest.mark.skipif(not headless.render_device_available(), reason="needs a Vulkan driver")


class Counting:
    """An env that notes which steps were rendered; `always` renders all of them, as stock ManiSkill does."""

    def __init__(self, env: BatchedEnv, always: bool):
        self.env, self.always = env, always
        self.num_envs, self.device, self.spec = env.num_envs, env.device, env.spec
        self.rendered: list[bool] = []

    def reset(self, seed: int | None = None, env_idx: Tensor | None = None) -> dict[str, Tensor]:
        return self.env.reset(seed=seed, env_idx=env_idx)

    def step(self, action: Tensor, render: bool = True) -> StepResult:
        self.rendered.append(render)
        return self.env.step(action, render or self.always)

    def state(self) -> None:
        """Nothing is resumed here."""

    def close(self) -> None:
        self.env.close()


def synthetic(limit: int = LIMIT) -> SyntheticEnv:
    return SyntheticEnv(3, max_episode_steps=limit, image=ImageSpec(("a", "b"), 16, 24, rgb=True, depth=True))


def simulated(backend: str, num_envs: int) -> ManiSkillEnv:
    return ManiSkillEnv(EnvConfig("PickCube-v1", "rgb+depth", max_episode_steps=LIMIT).completed(), num_envs, backend)


MAKERS: list = [
    pytest.param(synthetic, id="synthetic"),
    pytest.param(lambda: simulated("physx_cpu_batched", 2), id="batched", marks=needs_renderer),
    pytest.param(lambda: simulated("physx_cpu", 1), id="stock", marks=needs_renderer),
]


def frames_seen(act_horizon: int, obs_horizon: int, limit: int) -> list[int]:
    """Numbers, from 0, of the env steps of an episode that are rendered."""
    env = Counting(synthetic(limit), always=False)
    chunk = ActionChunk(env, act_horizon, obs_horizon, gamma=1.0)
    chunk.reset(seed=0)
    while not chunk.step_chunk(torch.zeros(3, act_horizon, 7)).ended.all():
        pass
    return [step for step, rendered in enumerate(env.rendered) if rendered]


def test_of_chunks_of_eight_the_last_two_steps_are_rendered_and_the_last_two_of_the_episode():
    # steps 0..49; chunks start at 0, 8, .., 48 and the episode ends with step 49
    assert frames_seen(8, 2, 50) == [6, 7, 14, 15, 22, 23, 30, 31, 38, 39, 46, 47, 48, 49]
    assert frames_seen(8, 1, 50) == [7, 15, 23, 31, 39, 47, 49]


def test_a_history_longer_than_the_chunk_needs_every_frame():
    assert frames_seen(2, 3, 6) == list(range(6))


@pytest.mark.parametrize("make", MAKERS)
def test_states_rewards_and_seen_pictures_equal_those_of_rendering_every_frame(make: Callable[[], BatchedEnv]):
    def play(always: bool) -> tuple[list[Tensor], int]:
        env = Counting(make(), always)
        chunk = ActionChunk(env, act_horizon=4, obs_horizon=2, gamma=0.9)
        generator = torch.Generator().manual_seed(0)
        obs = chunk.reset(seed=1)
        values = list(obs.values())
        for _ in range(4):  # two episodes of 4 + 3 steps
            step = chunk.step_chunk(torch.rand(env.num_envs, 4, 7, generator=generator) * 2 - 1)
            values += [step.reward, *step.obs.values(), *step.final_obs.values(), *vars(step.episode).values()]
        env.close()
        return values, sum(env.rendered)

    (on_demand, rendered), (stock, _) = play(always=False), play(always=True)
    assert all(torch.equal(a, b) for a, b in zip(on_demand, stock, strict=True))
    assert rendered == 8  # of 14: two of each chunk of 4, two of each of 3
    assert {value.dtype for value in on_demand} >= {torch.uint8, torch.int16, torch.float32}


def test_pictures_do_not_change_when_the_env_moves_on():
    chunk = ActionChunk(synthetic(), 4, 2, 1.0)
    obs = chunk.reset(seed=0)
    kept = obs["rgb"].clone()
    chunk.step_chunk(torch.ones(3, 4, 7))
    assert torch.equal(obs["rgb"], kept)


@needs_renderer
def test_an_image_mode_hides_the_object_and_the_privileged_state_shows_it():
    states = {}
    for mode, privileged in (("state", False), ("rgb", True), ("state+rgb", False)):
        env = ManiSkillEnv(EnvConfig("PickCube-v1", mode).completed(), 2, "physx_cpu_batched", privileged=privileged)
        env.reset(seed=3)
        states[mode] = env.step(torch.full((2, 7), 0.3)).obs
        env.close()
    full = states["state"]["state"]
    assert full.shape == (2, 42)
    assert torch.equal(states["rgb"]["privileged"], full)
    assert torch.equal(states["state+rgb"]["state"], full)
    assert torch.equal(states["rgb"]["state"], full[:, :29])  # joints, gripper and goal, without the cube's pose
    assert states["rgb"]["rgb"].shape == (2, 1, 128, 128, 3)
    assert "depth" not in states["rgb"]


@needs_renderer
def test_worker_processes_carry_pictures_and_privileged_states():
    config = EnvConfig("PickCube-v1", "rgb+depth", max_episode_steps=4, num_workers=2)
    env = make_env(config, 2, act_horizon=2, obs_horizon=2, gamma=1.0, privileged=True)
    obs = env.reset(seed=0)
    assert {name: (tuple(v.shape), v.dtype) for name, v in obs.items()} == {
        "state": ((2, 2, 29), torch.float32),
        "rgb": ((2, 2, 1, 128, 128, 3), torch.uint8),
        "depth": ((2, 2, 1, 128, 128, 1), torch.int16),
        "privileged": ((2, 2, 42), torch.float32),
    }
    first, second = (env.step_chunk(torch.zeros(2, 2, 7)) for _ in range(2))
    env.close()
    assert second.truncated.all()
    assert not torch.equal(second.final_obs["rgb"], second.obs["rgb"])
    assert torch.equal(first.final_obs["rgb"], first.obs["rgb"])
    assert first.obs["rgb"].float().std() > 10
    assert env.spec.image == ImageSpec(("base_camera",), 128, 128, rgb=True, depth=True)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("rgbd", "rgb+depth"), ("depth+rgb", "rgb+depth"), ("rgb+state", "state+rgb"), ("state", "state")],
)
def test_one_name_for_each_observation_mode(name: str, wanted: str):
    assert canonical_obs_mode(name) == wanted
    assert EnvConfig(obs_mode=name).completed().obs_mode == wanted


def test_the_synthetic_env_takes_every_mode() -> None:
    def names(mode: str) -> Iterator[str]:
        env = make_env(EnvConfig("SyntheticChunk-v0", mode), 2, 2, 1, 1.0)
        return iter(env.reset(seed=0))

    assert list(names("rgb")) == ["state", "rgb"]
    assert list(names("depth")) == ["state", "depth"]
    assert list(names("rgb+depth")) == ["state", "rgb", "depth"]
    assert list(names("state")) == ["state"]
