"""robosuite's Lift, Can, Square and Transport as robomimic, DPPO and ReinFlow have them: Pandas that take small poses.

robosuite's own loop steps one env after another; `robosuite_env.py` makes each of them one of gymnasium's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from reinflow.envs.config import CompleteEnvConfig
from reinflow.envs.gymnasium_suite import GymnasiumEnv
from reinflow.envs.suite import EnvSuite, Task, Wishes, needed
from reinflow.errors import UserError
from reinflow.types import StillAction

CONTROL = "osc_pose"
"""steps of a hand's pose, in its own units of -1 to 1, and of its gripper"""
SPARSE, DENSE = "sparse", "dense"


@dataclass(frozen=True)
class Robot:
    """A task of robosuite."""

    name: str
    """robosuite's own"""
    limit: int
    """env steps of an episode, as DPPO has them"""
    arms: int = 1

    @property
    def rows(self) -> tuple[str, ...]:
        """What is observed, in DPPO's order: hand, fingers, and again of a second arm, then objects."""
        parts = ("eef_pos", "eef_quat", "gripper_qpos")
        return (*(f"robot{arm}_{part}" for arm in range(self.arms) for part in parts), "object-state")

    @property
    def still(self) -> StillAction:
        """No step of a hand, and the last command of its gripper."""
        return (*(0.0,) * 6, None) * self.arms


ROBOTS = {
    "lift": Robot("Lift", 300),
    "can": Robot("PickPlaceCan", 300),
    "square": Robot("NutAssemblySquare", 400),
    "transport": Robot("TwoArmTransport", 800, arms=2),
}
"""by the names of DPPO, in small letters"""


def made(robot: Robot, reward_mode: str, env_id: str) -> Any:
    """One env, as gymnasium has them."""
    from reinflow.envs.robosuite_env import RobosuiteEnv

    return RobosuiteEnv(robot.name, robot.arms, robot.rows, shaped=reward_mode == DENSE)


class RobosuiteSuite(EnvSuite):
    """Four tasks, with states."""

    def owns(self, env_id: str) -> bool:
        """DPPO's names, in whatever letters."""
        return env_id.lower() in ROBOTS

    def task(self, env_id: str) -> Task:
        """Ranked by success, which ends nothing by itself; rewards are 1 for each step that succeeds, or shaped."""
        return Task(CONTROL, ROBOTS[env_id.lower()].limit, reward_modes=(SPARSE, DENSE))

    def refuse(self, config: CompleteEnvConfig, wishes: Wishes) -> None:
        """UserError without robosuite, or for another control mode, too."""
        super().refuse(config, wishes)
        if config.control_mode != CONTROL:
            raise UserError(f"{config.env_id} acts in {CONTROL} alone: leave --control_mode {config.control_mode} out")
        needed("robosuite", extra="robosuite", env_id=config.env_id)

    def make(self, config: CompleteEnvConfig, num_envs: int, wishes: Wishes) -> GymnasiumEnv:
        """Envs in this process, stepped one after another."""
        robot = ROBOTS[config.env_id.lower()]
        env = GymnasiumEnv(config, num_envs, partial(made, robot, config.reward_mode))
        env.spec = replace(env.spec, sim_backend="robosuite", still=robot.still)
        return env
