"""Which task runs, on which simulator, under which rules."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from reinflow.envs.arguments import EnvArguments, register, split_id
from reinflow.envs.suite import Task, task_of
from reinflow.errors import UserError
from reinflow.flags import Flat
from reinflow.specs import EnvSpec, Objective, canonical_obs_mode

DEFAULTS: dict[str, Any] = {
    "env_id": "PickCube-v1",
    "obs_mode": "state",
    "control_mode": "pd_ee_delta_pose",
    "reward_mode": "normalized_dense",
    "terminate_on_success": False,
}
"""for ManiSkill's tasks; others have control and reward modes of their own"""
BACKENDS = {name: name for name in ("auto", "physx_cuda", "physx_cpu_batched", "physx_cpu")} | {
    "gpu": "physx_cuda",
    "cuda": "physx_cuda",
    "cpu": "physx_cpu_batched",
}
"""simulators, also by the short names that ManiSkill has for them; its `cpu` is the stock one, which the batched one
equals to the bit"""
BOUND_TO_POLICY = ("env_id", "obs_mode", "control_mode")
"""what a policy was made for and a later stage can't change"""


@dataclass(frozen=True)
class EnvConfig:
    """The task. What is None comes from the checkpoint, or in Stage 1 from the defaults named here."""

    env_id: str | None = None
    """ManiSkill task, or one of another suite such as `Hopper-v5`; default PickCube-v1"""
    obs_mode: str | None = None
    """observations: `state`, `rgb`, `depth`, or several joined by +; default `state`, the task's full state"""
    control_mode: str | None = None
    """what an action means; default is the task's own, pd_ee_delta_pose for ManiSkill's"""
    reward_mode: str | None = None
    """normalized_dense, dense or sparse; default is that of the checkpoint, else the task's first, normalized_dense for
    ManiSkill's"""
    max_episode_steps: int | None = None
    """env steps of an episode; default is the task's own limit"""
    terminate_on_success: bool | None = None
    """end episodes at success or failure; default is what the checkpoint's V was trained for, else off, because a
    dense reward then punishes finishing"""
    sim_backend: str = "auto"
    """auto: physx_cuda with a GPU, else physx_cpu_batched, which is ManiSkill's batched code on CPU scenes; physx_cpu:
    stock single envs; `gpu` and `cpu` mean the first two, physx_cuda:1 the second GPU"""
    num_workers: int | None = None
    """simulator processes on CPU; None takes one per core, 0 simulates in the trainer's process"""
    ik: Literal["pin", "geo"] = "pin"
    """inverse kinematics of physx_cpu_batched: `pin` equals stock physx_cpu, `geo` is faster and like physx_cuda's"""
    arguments: Flat[EnvArguments] = field(default_factory=EnvArguments)

    def completed(self, source: EnvSpec | None = None, objective: Objective | None = None) -> CompleteEnvConfig:
        """All None fields filled from `objective`, `source` or the defaults.

        UserError where a flag contradicts `source`.
        """
        if self.env_id and ":" in self.env_id:
            env_id, module = split_id(self.env_id, self.arguments.env_module)
            return replace(self, env_id=env_id, arguments=replace(self.arguments, env_module=module)).completed(
                source, objective
            )
        arguments = self.arguments.completed(source)
        register(arguments.env_module)
        values: dict[str, Any] = {"arguments": arguments}
        for name in (one.name for one in fields(EnvConfig) if one.name not in values):
            value = values[name] = self.canonical(name)
            given = getattr(objective, name, getattr(source, name, None))
            if value is None:
                values[name] = self.default(name) if given is None else given
            elif given is not None and name in BOUND_TO_POLICY and value != given:
                raise UserError(
                    f"--{name} {value} contradicts the checkpoint, which was trained with {given}: "
                    f"leave the flag out, or train a checkpoint for {value}"
                )
        return CompleteEnvConfig(**values)

    def settled(self, objective: Objective) -> EnvConfig:
        """The same flags with what `objective` says of the task, so that a resumed run does not ask a checkpoint."""
        return replace(self, reward_mode=objective.reward_mode, terminate_on_success=objective.terminate_on_success)

    def canonical(self, name: str) -> Any:
        """A field's value; UserError for an observation mode or a simulator that there isn't."""
        value = getattr(self, name)
        if name == "sim_backend":
            return canonical_backend(value)
        if name != "obs_mode" or value is None:
            return value
        try:
            return canonical_obs_mode(value)
        except ValueError as error:
            raise UserError(f"--obs_mode {value} is unknown: {error}") from None

    def default(self, name: str) -> Any:
        """What an unset field means where nothing else says it."""
        if name in ("control_mode", "reward_mode"):
            task = task_of(self.env_id or DEFAULTS["env_id"])
            return task.control_mode if name == "control_mode" else (task.reward_modes or [DEFAULTS[name]])[0]
        return DEFAULTS.get(name)


def canonical_backend(name: str) -> str:
    """The project's name of a simulator, with the index of a GPU where one is given; UserError for any other."""
    kind, colon, index = name.partition(":")
    found = BACKENDS.get(kind)
    if found is None or (colon and not (found == "physx_cuda" and index.isdecimal())):
        raise UserError(
            f"--sim_backend {name} is unknown: use auto, physx_cuda (or physx_cuda:1 for the second GPU), "
            "physx_cpu_batched or physx_cpu"
        )
    return found + colon + index


@dataclass(frozen=True)
class CompleteEnvConfig(EnvConfig):
    """What `EnvConfig.completed` returns: nothing is left to decide, but a task may keep its own time limit."""

    env_id: str = DEFAULTS["env_id"]
    obs_mode: str = DEFAULTS["obs_mode"]
    control_mode: str = DEFAULTS["control_mode"]
    reward_mode: str = DEFAULTS["reward_mode"]
    terminate_on_success: bool = DEFAULTS["terminate_on_success"]

    @property
    def task(self) -> Task:
        """What its suite knows of the task."""
        return task_of(self.env_id)
