"""robosuite's Lift: DPPO's row of numbers, starts by seed, a scripted lift that succeeds, and a moment brought back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from reinflow.envs import EnvConfig, make_env
from reinflow.envs.robosuite_suite import ROBOTS
from reinflow.envs.suite import suite_of, task_of
from reinflow.errors import UserError
from reinflow.runtime.trees import copied
from reinflow.types import ChunkEnv

ENDLESS = {"act_horizon": 1, "obs_horizon": 1, "gamma": 1.0}


@pytest.fixture(scope="module")
def env() -> Iterator[ChunkEnv]:
    pytest.importorskip("robosuite", reason="needs the extra: pip install -e '.[robosuite]'")
    env = make_env(EnvConfig("Lift", num_workers=0), 1, **ENDLESS)
    yield env
    env.close()


def towards_the_cube(frame: Tensor, closes: bool) -> Tensor:
    """A command of the hand: a full step of 1 is 5 cm; the gripper opens at -1."""
    hand, cube = frame[:3], frame[9:12]
    return torch.cat(((cube - hand) / 0.05, torch.zeros(3), torch.tensor([1.0 if closes else -1.0]))).clamp(-1, 1)


def test_what_is_observed_done_and_counted(env: ChunkEnv):
    # hand 3 + 4, fingers 2, cube 3 + 4 and its distance from the hand 3
    assert (env.spec.state_dim, env.spec.action_dim, env.spec.max_episode_steps) == (19, 7, 300)
    assert env.spec.action_low == (-1.0,) * 7
    assert env.spec.still == (0.0,) * 6 + (None,)
    frame = env.reset(seed=[3])["state"][0, 0]
    torch.testing.assert_close((frame[:3] - frame[9:12]).abs(), frame[16:].abs())
    assert ROBOTS["transport"].still == ((0.0,) * 6 + (None,)) * 2
    assert len(ROBOTS["transport"].rows) == 7


def test_a_seed_is_a_start(env: ChunkEnv):
    starts = [env.reset(seed=[seed])["state"] for seed in (3, 4, 3)]
    assert torch.equal(starts[0], starts[2])
    assert not torch.equal(starts[0], starts[1])


def test_a_scripted_lift_succeeds_and_is_paid_for_and_can_be_brought_back(env: ChunkEnv):
    frame = env.reset(seed=[3])["state"][0, 0]
    lift = torch.tensor([0, 0, 0.8, 0, 0, 0, 1.0])
    for count in range(40):
        action = towards_the_cube(frame, closes=count >= 15) if count < 22 else lift
        step = env.step_chunk(action.view(1, 1, 7))
        frame = step.obs["state"][0, 0]
        if step.episode.success_once:
            break
    assert step.episode.success_once and 22 < count < 39
    assert step.reward.item() == 1.0
    state = copied(env.state())
    after = env.step_chunk(lift.view(1, 1, 7)).obs["state"]
    env.reset(seed=[5])
    assert torch.equal(env.restore(state)["state"][0, 0], frame)
    assert torch.equal(env.step_chunk(lift.view(1, 1, 7)).obs["state"], after)


def test_names_of_dppo_and_what_is_refused(monkeypatch):
    assert {type(suite_of(name)).__name__ for name in ("Lift", "can", "Square", "transport")} == {"RobosuiteSuite"}
    assert (task_of("Lift").headline, task_of("can").reward_modes) == ("success_once", ("sparse", "dense"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--env_id Lift needs robosuite: pip install -e '.\[robosuite\]'"):
        make_env(EnvConfig("Lift"), 1, **ENDLESS)
    with pytest.raises(UserError, match="Lift acts in osc_pose alone: leave --control_mode joint out"):
        make_env(EnvConfig("Lift", control_mode="joint"), 1, **ENDLESS)
