"""Which suite makes a task, and what a task says before it is simulated."""

from __future__ import annotations

import pytest

from reinflow.envs import EnvConfig, make_env, make_filmed_env
from reinflow.envs.suite import SUITES, EnvSuite, Setup, Task, Wishes, suite_of
from reinflow.envs.toy import ToyEnv
from reinflow.errors import UserError
from reinflow.registry import Entry

CHUNK = {"act_horizon": 2, "obs_horizon": 1, "gamma": 1.0}


class Ranked(EnvSuite):
    """The toy under another name, ranked by its return."""

    def owns(self, env_id: str) -> bool:
        return env_id == "Ranked-v0"

    def task(self, env_id: str) -> Task:
        return Task("torque", limit=9, headline="return", terminates_on="failure", reward_modes=("sparse",))

    def setup(self, config) -> Setup:
        return Setup(config, spread=False)

    def make(self, config, num_envs: int, wishes: Wishes) -> ToyEnv:
        return ToyEnv(num_envs, wishes.device, config.terminate_on_success, config.reward_mode, 9)


def test_every_task_has_the_suite_that_owns_its_name():
    names = {"Toy-v0": "ToySuite", "SyntheticChunk-v0": "SyntheticSuite", "PickCube-v1": "ManiSkillSuite"}
    assert {env_id: type(suite_of(env_id)).__name__ for env_id in names} == names
    with SUITES.having("ranked", Entry(Ranked)):
        assert isinstance(suite_of("Ranked-v0"), Ranked)


def test_a_task_gives_the_defaults_of_its_flags():
    toy, pick = EnvConfig("Toy-v0").completed(), EnvConfig().completed()
    assert (toy.control_mode, toy.reward_mode) == ("toy", "normalized_dense")
    assert (pick.control_mode, pick.reward_mode) == ("pd_ee_delta_pose", "normalized_dense")
    with SUITES.having("ranked", Entry(Ranked)):
        ranked = EnvConfig("Ranked-v0").completed()
    assert (ranked.control_mode, ranked.reward_mode) == ("torque", "sparse")


def test_the_spec_of_its_envs_says_what_a_task_is_ranked_by():
    with SUITES.having("ranked", Entry(Ranked)):
        assert make_env(EnvConfig("Ranked-v0"), 2, **CHUNK).spec.headline == "return"
    assert make_env(EnvConfig("Toy-v0"), 2, **CHUNK).spec.headline == "success_once"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"reward_mode": "dense"}, "does not take --reward_mode dense: use normalized_dense or sparse"),
        ({"obs_mode": "rgb"}, "has no pictures: use --obs_mode state instead of rgb"),
    ],
)
def test_what_a_task_lacks_is_refused(flags, said):
    with pytest.raises(UserError, match=said):
        make_env(EnvConfig("Toy-v0", **flags), 2, **CHUNK)


def test_a_film_and_a_critic_that_sees_more_need_a_task_that_has_them():
    with pytest.raises(UserError, match="no camera: leave --capture_video out"):
        make_filmed_env(EnvConfig("Toy-v0").completed(), 2, 2, 1)
    with pytest.raises(UserError, match="leave --asymmetric_critic out"):
        make_env(EnvConfig("Toy-v0"), 2, **CHUNK, privileged=True)
