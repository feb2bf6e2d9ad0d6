"""What users bring to a task: a module that registers one of their own, and arguments that its envs are made with."""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reinflow.errors import UserError
from reinflow.specs import EnvSpec

FLAGS = (
    "num_envs", "obs_mode", "control_mode", "reward_mode", "sim_backend", "render_backend", "render_mode",
    "max_episode_steps", "reconfiguration_freq",
)  # fmt: skip
"""arguments of an env that this project decides, most of them by a flag of that name"""


@dataclass(frozen=True)
class EnvArguments:
    """A task of one's own, and what its envs are made with."""

    env_module: str | None = None
    """Python module that registers the task, here and in every simulator process; `--env_id my_pkg.my_env:MyTask-v1`
    names both, and later stages have it in the checkpoint"""
    env_kwargs: str | None = None
    """further arguments of the env's constructor, as JSON: '{"robot_uids": "panda_wristcam"}'"""
    robot_uids: str | None = None
    """robot, of a task that takes several"""
    image_size: int | None = None
    """pixels of each side of the pictures; default is the size of the task's own cameras"""
    sensor_configs: str | None = None
    """ManiSkill's settings of all cameras, as JSON: '{"width": 128, "height": 96}'"""

    @property
    def kwargs(self) -> dict[str, Any]:
        """All arguments together. UserError where they are no JSON object or contradict each other."""
        kwargs = json_object("env_kwargs", self.env_kwargs)
        for name in FLAGS:
            if name in kwargs:
                raise UserError(
                    f"--env_kwargs can't hold {name}, which is decided elsewhere: use --{name} if there is one"
                )
        sensors = json_object("sensor_configs", self.sensor_configs)
        if self.image_size is not None:
            if self.image_size < 1:
                raise UserError(f"--image_size {self.image_size} is too small: pass at least 1")
            add(sensors, {"width": self.image_size, "height": self.image_size}, "--image_size")
        add(kwargs, {"robot_uids": self.robot_uids} if self.robot_uids else {}, "--robot_uids")
        add(kwargs, {"sensor_configs": sensors} if sensors else {}, "--sensor_configs and --image_size")
        return kwargs

    def completed(self, source: EnvSpec | None = None) -> EnvArguments:
        """As `env_module` and `env_kwargs` alone, over those that a checkpoint was trained with.

        UserError for another robot; another value is a printed line, since it may be what is to be tried.
        """
        own, theirs = self.kwargs, source.env_kwargs if source else {}
        for name, value in own.items() if source else ():
            if theirs.get(name) == value:
                continue
            trained = f"{name} {json.dumps(theirs[name])}" if name in theirs else f"the task's own {name}"
            if name == "robot_uids":
                raise UserError(
                    f"--robot_uids {value} contradicts the checkpoint, which was trained with {trained}: leave it out, "
                    f"or train a checkpoint for {value}"
                )
            print(
                f"note: {name} is {json.dumps(value)} here, and the checkpoint was trained with {trained}", flush=True
            )
        merged = theirs | own
        return EnvArguments(
            self.env_module or (source.env_module if source else None),
            json.dumps(merged, sort_keys=True) if merged else None,
        )


def json_object(flag: str, text: str | None) -> dict[str, Any]:
    """What a flag holds; nothing where it isn't given. UserError for anything but an object."""
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(f"--{flag} {text} is no JSON object: write it as '{{\"name\": value}}', with double quotes")
    return value


def add(values: dict[str, Any], more: Mapping[str, Any], flag: str) -> None:
    """Put a flag's values beside others, in place; UserError where these say something else."""
    for name, value in more.items():
        if values.setdefault(name, value) != value:
            raise UserError(f"{flag} {value} contradicts {name} {values[name]} of another flag: leave one of them out")


def split_id(env_id: str, env_module: str | None) -> tuple[str, str | None]:
    """`my_pkg.my_env:MyTask-v1` as task and module; UserError where that is another module than the given one."""
    module, colon, name = env_id.rpartition(":")
    if not colon:
        return env_id, env_module
    if env_module not in (None, module):
        raise UserError(f"--env_id {env_id} names another module than --env_module {env_module}: leave one of them out")
    return name, module


def register(module: str | None) -> None:
    """Import a module that registers tasks, from Python's path or the working directory; UserError says what is wrong.

    A simulator process does so for itself.
    """
    if module is None or module in sys.modules:
        return
    if module.endswith(".py") or "/" in module:
        name = module.removesuffix(".py").strip("./").replace("/", ".")
        raise UserError(f"--env_module {module} is a path: name the module as Python imports it, such as {name}")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ManiSkill's, about packages that it can do without
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            raise UserError(
                f"--env_module {module} is not on Python's path: start from the folder that holds it, or add that "
                f"folder to PYTHONPATH"
            ) from None
        raise UserError(f"--env_module {module} imports {error.name}, which is not installed: install it") from error
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"--env_module {module} can't be imported ({type(error).__name__}: {error}, in {last.filename}, line "
            f"{last.lineno}): mend it"
        ) from error
