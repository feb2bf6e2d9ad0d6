"""Env suites: what a family of tasks says of itself, and what makes its envs.

    class MySuite(EnvSuite):
        def owns(self, env_id): return env_id == "Mine-v0"
        def task(self, env_id): return Task(control_mode="torque", headline="return", terminates_on="failure")
        def make(self, config, num_envs, wishes): return MyEnv(num_envs)  # a BatchedEnv

    SUITES.add("mine", Entry(MySuite))

Chunks, histories, worker processes, evaluation and all algorithms come free.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from reinflow.envs.arguments import register
from reinflow.envs.builds import Builds
from reinflow.errors import UserError
from reinflow.registry import Registry
from reinflow.specs import Headline

if TYPE_CHECKING:
    import torch

    from reinflow.envs.config import CompleteEnvConfig
    from reinflow.types import BatchedEnv

NATIVE = "native"
"""the control mode and the kind of reward of tasks that have one of each"""


@dataclass(frozen=True)
class Task:
    """What a task says of itself before it is simulated; None is what only its envs know."""

    control_mode: str
    """what an action means, unless a flag says otherwise"""
    limit: int | None = None
    """env steps of an episode"""
    headline: Headline = "success_once"
    """what policies of this task are ranked by"""
    terminates_on: Literal["success", "failure"] = "success"
    """what ends an episode before its limit. Success, or failure beside it, does so only under `terminate_on_success`;
    a failure alone, such as a fall, always does"""
    reward_modes: tuple[str, ...] | None = ("normalized_dense",)
    """the first one is the default"""
    cameras: tuple[str, ...] | None = ()
    """what observations can show"""
    filmed: bool = False
    """whether there is a camera for people"""
    privileged: bool = False
    """whether its full state can be seen beside the observations"""
    takes_kwargs: bool = False
    """whether its envs take the arguments of `--env_kwargs`"""


def cpu() -> torch.device:
    """Where a learner is unless something else is said."""
    import torch

    return torch.device("cpu")


@dataclass(frozen=True)
class Wishes:
    """What is asked of envs beside their task."""

    device: torch.device = field(default_factory=cpu)
    """where the learner is; a simulator may stay elsewhere"""
    builds: Builds = field(default_factory=Builds)
    """geometry, in tasks that draw it"""
    privileged: bool = False
    """the full state is added to every observation, under that name"""
    filmed: bool = False
    """the envs get `picture`"""


@dataclass(frozen=True)
class Setup:
    """How a task is simulated, decided once for all of its processes."""

    config: CompleteEnvConfig
    """what `make` gets"""
    spread: bool = True
    """over the processes that `--num_workers` asks for"""
    rebuilt: bool = False
    """whether envs have to be told when other geometry is due"""


class EnvSuite:
    """A family of tasks. It must be picklable, since workers make their envs themselves."""

    def owns(self, env_id: str) -> bool:
        """Whether this is one of its tasks, as far as the name tells; nothing is imported or simulated for that."""
        raise NotImplementedError

    def task(self, env_id: str) -> Task:
        """What is known of one of its tasks."""
        raise NotImplementedError

    def make(self, config: CompleteEnvConfig, num_envs: int, wishes: Wishes) -> BatchedEnv:
        """A batch of envs in this process; `config` is that of `setup`."""
        raise NotImplementedError

    def refuse(self, config: CompleteEnvConfig, wishes: Wishes) -> None:
        """UserError for what can't be made: flags that the task doesn't take, or a package that has to be installed."""
        refuse_what_a_task_lacks(self.task(config.env_id), config, wishes)

    def setup(self, config: CompleteEnvConfig) -> Setup:
        """What is decided before any process makes envs, such as the simulator."""
        return Setup(config)


class NativeSuite(EnvSuite):
    """Of tasks with one control mode and one kind of reward, both called `native`."""

    def refuse(self, config: CompleteEnvConfig, wishes: Wishes) -> None:
        """UserError for another control mode, too."""
        super().refuse(config, wishes)
        if config.control_mode != NATIVE:
            raise UserError(f"{config.env_id} has one control mode: leave --control_mode {config.control_mode} out")


SUITES: Registry[EnvSuite] = Registry("env suite", flag="env_id")
"""the last one that owns a task makes it"""


def suite_of(env_id: str) -> EnvSuite:
    """UserError where there is none."""
    for name in reversed(list(SUITES)):
        suite = SUITES[name].build()
        if suite.owns(env_id):
            return suite
    raise UserError(f"--env_id {env_id} belongs to no env suite: there are {', '.join(SUITES)}")


def task_of(env_id: str) -> Task:
    """What the suite of a task knows of it."""
    return suite_of(env_id).task(env_id)


def made(suite: EnvSuite, config: CompleteEnvConfig, num_envs: int, wishes: Wishes) -> BatchedEnv:
    """Envs whose spec, and with it every checkpoint, knows what the task is ranked by and who registers it."""
    register(config.arguments.env_module)
    env = suite.make(config, num_envs, wishes)
    env.spec = replace(
        env.spec,
        headline=suite.task(config.env_id).headline,
        env_module=config.arguments.env_module,
        env_kwargs=config.arguments.kwargs,
    )
    return env


def needed(package: str, extra: str, env_id: str) -> None:
    """UserError where a package that simulates a task is not installed; `extra` is the project's that brings it."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"--env_id {env_id} needs {package}: pip install -e '.[{extra}]'")


def refuse_what_a_task_lacks(task: Task, config: CompleteEnvConfig, wishes: Wishes) -> None:
    """UserError for a reward mode, pictures, a film or a full state that it doesn't have."""
    if task.reward_modes is not None and config.reward_mode not in task.reward_modes:
        modes = " or ".join(task.reward_modes)
        raise UserError(f"{config.env_id} does not take --reward_mode {config.reward_mode}: use {modes}")
    if not task.takes_kwargs and config.arguments.kwargs:
        raise UserError(f"{config.env_id} takes no arguments: leave out {', '.join(config.arguments.kwargs)}")
    if task.cameras == () and config.obs_mode != "state":
        raise UserError(f"{config.env_id} has no pictures: use --obs_mode state instead of {config.obs_mode}")
    if wishes.filmed and not task.filmed:
        raise UserError(f"{config.env_id} has no camera: leave --capture_video out")
    if wishes.privileged and not task.privileged:
        raise UserError(f"{config.env_id} has no state to show a critic alone: leave --asymmetric_critic out")
