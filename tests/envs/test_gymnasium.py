"""Tasks of gymnasium as they are: rows of numbers, successes by any name, ends of their own, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from reinflow.envs import EnvConfig, make_env
from reinflow.envs.arguments import EnvArguments
from reinflow.envs.gymnasium_suite import GymnasiumEnv, of_maniskill, succeeded
from reinflow.envs.suite import suite_of, task_of
from reinflow.errors import UserError


class Walk(gymnasium.Env):
    """From a drawn place on a line to 1; cut short beyond -1, over at 1."""

    action_space = spaces.Box(-1.0, 1.0, (1,), np.float64)
    observation_space = spaces.Dict({
        "place": spaces.Box(-2.0, 2.0, (1,), np.float64),
        "goal": spaces.Dict({"at": spaces.Box(0.0, 2.0, (1,), np.float32), "side": spaces.Discrete(2)}),
    })  # fmt: skip

    def __init__(self, action_space: spaces.Space | None = None, observation_space: spaces.Space | None = None):
        self.action_space = action_space or self.action_space
        self.observation_space = observation_space or self.observation_space
        self.over = False

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.over = False
        self.place = self.np_random.uniform(-0.1, 0.1)
        return self.observed(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        assert not self.over, "an episode that is over was stepped"
        assert action.dtype == np.float64 and action.shape == (1,)
        self.place += float(action[0])
        goal, off = self.place > 1, self.place < -1
        self.over = goal or off
        return self.observed(), self.place, goal, off, {"is_success": np.bool_(goal)}

    def observed(self) -> Any:
        return {"place": np.array([self.place]), "goal": {"at": np.ones(1, np.float32), "side": 1}}


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    gymnasium.register("Walk-v0", Walk, max_episode_steps=9)
    gymnasium.register("Endless-v0", Walk)
    gymnasium.register("Missing-v0", "nowhere:Env", max_episode_steps=9)
    spaces_of = {
        "Buttons-v0": {"action_space": spaces.Discrete(3)},
        "Unbounded-v0": {"action_space": spaces.Box(-np.inf, np.inf, (1,))},
        "Picture-v0": {"observation_space": spaces.Box(0, 255, (8, 8, 3), np.uint8)},
        "Text-v0": {"observation_space": spaces.Sequence(spaces.Box(0, 1, (1,)))},
    }
    for name, kwargs in spaces_of.items():
        gymnasium.register(name, Walk, max_episode_steps=9, kwargs=kwargs)
    yield
    for name in ("Walk-v0", "Endless-v0", "Missing-v0", *spaces_of):
        del gymnasium.registry[name]


def walk(**flags: Any) -> GymnasiumEnv:
    return GymnasiumEnv(EnvConfig("Walk-v0", **flags).completed(), 3)


def test_names_that_gymnasium_knows_have_its_suite_and_maniskills_do_not():
    names = ("Walk-v0", "Pendulum-v1", "FetchPush-v4", "FrankaKitchen-v1", "Hopper-v4", "Hopper-v5", "PickCube-v1")
    suites = [type(suite_of(name)).__name__.removesuffix("Suite") for name in names]
    assert suites == ["Gymnasium"] * 5 + ["Mujoco", "ManiSkill"]

    def make() -> None: ...

    make.__module__ = "mani_skill.utils.registration"
    assert of_maniskill(gymnasium.envs.registration.EnvSpec("X-v0", entry_point=make))
    assert not of_maniskill(gymnasium.spec("Walk-v0"))


def test_a_dict_becomes_a_row_in_the_order_of_its_sorted_keys():
    env = walk()
    frame = env.reset(seed=[1, 2, 3])["state"]
    # goal: at 1, side 1 of two as (0, 1); place
    assert frame[:, :3].tolist() == [[1, 0, 1]] * 3
    stock = gymnasium.make("Walk-v0")
    assert frame[:, 3].tolist() == [np.float32(stock.reset(seed=seed)[0]["place"][0]) for seed in (1, 2, 3)]
    assert (env.spec.state_dim, env.spec.max_episode_steps, env.spec.action_low) == (4, 9, (-1.0,))


def test_ends_of_the_task_terminate_those_cut_short_are_truncated_and_nothing_is_stepped_beyond():
    config = EnvConfig("Walk-v0", num_workers=0)
    env = make_env(config, 3, act_horizon=6, obs_horizon=1, gamma=1.0)
    env.reset(seed=0)
    pushes = torch.tensor([0.6, -0.6, 0.0]).view(3, 1, 1).expand(3, 6, 1)
    step = env.step_chunk(pushes)
    # from within .1 of 0 two pushes of .6 lead beyond 1 and -1
    assert step.executed.tolist() == [2, 2, 6]
    assert step.terminated.tolist() == [True, False, False]
    assert step.truncated.tolist() == [False, True, False]
    assert step.episode.success_once.tolist() == [True, False, False]
    assert step.final_obs["state"][0, 0, 3] > 1 and abs(step.obs["state"][0, 0, 3]) <= 0.1


def test_success_by_any_of_its_names():
    infos = [{"success": 1.0}, {"is_success": np.bool_(True)}, {"tasks_to_complete": []}]
    assert all(map(succeeded, infos))
    assert not any(map(succeeded, [{}, {"success": 0.0, "is_success": True}, {"tasks_to_complete": ["kettle"]}]))


def test_robots_are_ranked_by_success_and_all_else_by_return():
    headlines = {"FetchPush-v4": "success_once", "FrankaKitchen-v1": "return", "Pendulum-v1": "return"}
    assert {name: task_of(name).headline for name in headlines} == headlines
    assert task_of("Walk-v0").limit == 9


@pytest.mark.parametrize(
    ("env_id", "said"),
    [
        ("Buttons-v0", r"takes Discrete\(3\) and policies here act in continuous numbers: choose a task whose .* Box"),
        ("CartPole-v1", r"takes Discrete\(2\)"),
        ("Unbounded-v0", "takes actions without bounds and policies here need them: wrap it in .*RescaleAction"),
        ("Picture-v0", r"observes Box\(0, 255, \(8, 8, 3\), uint8\) and policies here see rows of numbers"),
        ("Text-v0", "observes Sequence.* and policies here see rows of numbers"),
        ("Endless-v0", "Endless-v0 has no time limit of its own: give one with --max_episode_steps"),
        ("Missing-v0", r"gymnasium can't make --env_id Missing-v0 \(No module named 'nowhere'\): install or choose"),
        ("avoid_m1", "D3IL's tasks are on no package index .*; docs/environments.md shows how"),
        ("one_leg_low", "FurnitureBench's tasks need Isaac Gym"),
    ],
)
def test_what_can_not_be_done_is_one_sentence(env_id: str, said: str):
    with pytest.raises(UserError, match=said):
        make_env(EnvConfig(env_id, num_workers=0), 1, act_horizon=1, obs_horizon=1, gamma=1.0)


def test_arguments_reach_the_env():
    def made(env_id: str, kwargs: str):
        config = EnvConfig(env_id, num_workers=0, arguments=EnvArguments(env_kwargs=kwargs))
        return make_env(config, 1, act_horizon=1, obs_horizon=1, gamma=1.0)

    # an Ant's forces are 13 bodies times 6 numbers, and without them 105 - 78 are left
    assert made("Ant-v5", '{"include_cfrc_ext_in_observation": false}').spec.state_dim == 27
    assert made("Pendulum-v1", '{"g": 1.0}').spec.env_kwargs == {"g": 1.0}
    with pytest.raises(UserError, match=r"Pendulum-v1 does not take \{'mass': 1\} .*: mend --env_kwargs"):
        made("Pendulum-v1", '{"mass": 1}')


def test_an_env_of_ones_own_is_registered_by_its_module(tmp_path, monkeypatch):
    (tmp_path / "my_walks.py").write_text(
        "import gymnasium\n"
        "from tests.envs.test_gymnasium import Walk\n"
        "gymnasium.register('MyWalk-v0', Walk, max_episode_steps=7)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    env = make_env(EnvConfig("my_walks:MyWalk-v0", num_workers=0), 2, act_horizon=1, obs_horizon=1, gamma=1.0)
    assert (env.spec.env_id, env.spec.env_module, env.spec.max_episode_steps) == ("MyWalk-v0", "my_walks", 7)
    del gymnasium.registry["MyWalk-v0"]


@pytest.mark.parametrize("env_id", ["Walk-v0", "Pusher-v5"])
def test_another_control_mode_is_refused(env_id: str):
    with pytest.raises(UserError, match="has one control mode: leave --control_mode pd_joint_pos out"):
        make_env(EnvConfig(env_id, control_mode="pd_joint_pos"), 1, act_horizon=1, obs_horizon=1, gamma=1.0)


def test_without_the_package_of_robots_a_sentence_names_the_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"FetchPush-v4 needs gymnasium_robotics: pip install -e '.\[robotics\]'"):
        make_env(EnvConfig("FetchPush-v4"), 1, act_horizon=1, obs_horizon=1, gamma=1.0)


def test_a_robots_task_equals_gymnasiums_own_env():
    pytest.importorskip("gymnasium_robotics")
    env, stock = GymnasiumEnv(EnvConfig("PointMaze_UMaze-v3").completed(), 2), gymnasium.make("PointMaze_UMaze-v3")
    frame, (obs, _) = env.reset(seed=[5, 6])["state"], stock.reset(seed=6)
    for action in 2 * torch.rand(30, 2, 2, generator=torch.Generator().manual_seed(0)) - 1:
        assert frame[1].numpy().tolist() == spaces.flatten(stock.observation_space, obs).astype(np.float32).tolist()
        step, (obs, reward, *_, info) = env.step(action), stock.step(action[1].numpy())
        frame = step.obs["state"]
        assert (step.reward[1].item(), step.success[1].item()) == (reward, info["success"])
