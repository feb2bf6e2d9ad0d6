"""Recorded ManiSkill episodes played again, to get the observations, rewards or control mode that a file lacks.

In the recorded control mode every step starts from the recorded state where the file has states, so that an episode
can't drift away from itself, and each observation comes from a real step, contacts included. In another mode
ManiSkill's own conversion acts, from the recorded first state on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from reinflow.data.formats.maniskill import ManiSkillFormat, episode_names, read_description
from reinflow.data.hdf5 import numbers, opened
from reinflow.envs.arguments import EnvArguments
from reinflow.envs.config import EnvConfig
from reinflow.envs.maniskill import make, task_spec
from reinflow.errors import UserError
from reinflow.recording.collect import Episode, copied, cut, mapped, stacked

SOURCES = ("pd_joint_pos", "pd_joint_delta_pos")
"""control modes that ManiSkill converts from"""
REWARDS = ("normalized_dense", "dense", "sparse")
"""in the order of preference"""


@dataclass(frozen=True)
class Recorded:
    """What a file says of its task."""

    path: Path
    env_id: str
    info: dict[str, Any]
    """`env_info`, as ManiSkill writes it"""
    control_mode: str
    max_episode_steps: int
    source: dict[str, str]
    """`source_type` and `source_desc`, where it names them"""
    episodes: list[dict[str, Any]]
    """by `episode_id`, in the order of the file"""


def recorded(path: Path) -> Recorded:
    """UserError where it is no ManiSkill recording that can be replayed."""
    if not path.is_file() or not ManiSkillFormat().recognises(path):
        raise UserError(f"--replay {path} is no ManiSkill trajectory file: name an .h5 with its .json beside it")
    about, text = ManiSkillFormat().describe(path), read_description(path)
    assert about.env_id is not None
    if about.control_mode is None:
        raise UserError(f"{path} names no control mode in its .json, so its actions have no meaning: record it again")
    known = {one.get("episode_id"): one for one in text.get("episodes", []) if isinstance(one, dict)}
    with opened(path) as file:
        numbers_there = [int(name.removeprefix("traj_")) for name in episode_names(file)]
    limit = about.max_episode_steps or task_spec(about.env_id).max_episode_steps or 0
    source: dict[str, str] = {name: str(text[name]) for name in ("source_type", "source_desc") if name in text}
    episodes = [{"episode_id": number, **known.get(number, {})} for number in numbers_there]
    return Recorded(path, about.env_id, text["env_info"], about.control_mode, limit, source, episodes)


def reward_mode_of(env_id: str) -> str:
    """The reward that a replay records."""
    offered = task_spec(env_id).cls.SUPPORTED_REWARD_MODES
    return next((mode for mode in REWARDS if mode in offered), "none")


def replays(file: Recorded, control_mode: str, arguments: EnvArguments) -> Iterator[Episode]:
    """Every episode of the file in `control_mode`, with state observations; one without steps is named and left out."""
    reward_mode = reward_mode_of(file.env_id)

    def single(mode: str) -> Any:
        settings = EnvConfig(file.env_id, "state", mode, reward_mode=reward_mode, arguments=arguments)
        return make(settings.completed(), 1, "physx_cpu")

    if control_mode != file.control_mode and file.control_mode not in SOURCES:
        raise UserError(
            f"{file.path} has actions of {file.control_mode}, and ManiSkill converts only those of "
            f"{' and '.join(SOURCES)}: pass --control_mode {file.control_mode}"
        )
    with ExitStack() as stack:
        tape = Tape(stack.enter_context(closing(single(control_mode))))
        original = None
        if control_mode != file.control_mode:
            original = Tape(stack.enter_context(closing(single(file.control_mode))))
        data = stack.enter_context(opened(file.path))
        for about in file.episodes:
            name = f"traj_{about['episode_id']}"
            group, where = data[name], f"{file.path}, {name}"
            actions = numbers(group, "actions", where)
            if not len(actions):
                print(f"note: {where} has no steps and is left out")
                continue
            states = states_of(group, len(actions), where)
            seed = about.get("episode_seed")
            play(tape, original, actions, states, seed if isinstance(seed, int) else 0, where)
            yield tape.episode(file.max_episode_steps)


def states_of(group: Any, steps: int, where: str) -> dict[str, Any] | None:
    """Nested tensors of t+1 rows; None where the file has no states."""
    if "env_states" not in group:
        return None

    def read(node: Any, key: str) -> Any:
        if hasattr(node[key], "keys"):
            return {name: read(node[key], name) for name in node[key]}
        value = numbers(node, key, where)
        if len(value) != steps + 1:
            raise UserError(f"{where}, state of {key} has {len(value)} rows for {steps} steps: copy the file again")
        return value

    return read(group, "env_states")


def play(
    tape: Tape,
    original: Tape | None,
    actions: Float[Tensor, "t a"],
    states: dict[str, Any] | None,
    seed: int,
    where: str,
) -> None:
    """Put one episode on the tape; `original` is an env in the recorded control mode, where that is another one."""
    try:
        first = None if states is None else mapped(states, partial(row_of, 0))
        tape.start(seed, first)
        if original is not None:
            original.start(seed, first)
            convert(tape, original, actions)
            return
        for step, action in enumerate(actions):
            tape.step(action)
            if states is not None:
                tape.env.set_state_dict(mapped(states, partial(row_of, step + 1)))
    except UserError:
        raise
    except (KeyError, AssertionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:150]
        raise UserError(
            f"{where} does not fit the task ({type(error).__name__}: {reason}): it is of another robot or version"
        ) from None


def row_of(step: int, values: Float[Tensor, "t d"]) -> Float[Tensor, "1 d"]:
    """What a single env is set to."""
    return values[step : step + 1]


def convert(tape: Tape, original: Tape, actions: Float[Tensor, "t a"]) -> None:
    """Act on the tape so that it follows the original, whose control mode the actions are of."""
    from mani_skill.trajectory.utils.actions import conversion

    mode, source = tape.env.control_mode, original.env.control_mode
    act = conversion.from_pd_joint_pos if source == "pd_joint_pos" else conversion.from_pd_joint_delta_pos
    try:
        act(mode, actions.numpy(), original, tape)
    except (NotImplementedError, AssertionError):
        raise UserError(f"ManiSkill doesn't convert {source} to {mode}: pass another --control_mode") from None


class Tape:
    """A single ManiSkill env that remembers what it did since its start."""

    def __init__(self, env: Any):
        """`env` is unwrapped, with state observations."""
        self.env = env

    @property
    def unwrapped(self) -> Any:
        """What ManiSkill's conversion asks for the robot."""
        return self.env

    def start(self, seed: int, state: dict[str, Any] | None) -> None:
        """Begin where the seed leads, or in this state of that scene."""
        obs, _ = self.env.reset(seed=seed)
        if state is not None:
            self.env.set_state_dict(state)
            self.env.agent.controller.reset()
            obs = self.env.get_obs()
        self.seed = seed
        self.frames, self.states = [obs.clone()], [copied(self.env.get_state_dict())]
        self.columns: dict[str, list[Tensor]] = {"actions": [], "rewards": [], "success": [], "terminated": []}

    def step(self, action: Any) -> tuple[Any, ...]:
        """One env step, which is remembered."""
        action = torch.as_tensor(np.asarray(action), dtype=torch.float32).reshape(1, -1)
        obs, reward, terminated, truncated, info = self.env.step(action)
        success = info.get("success", torch.zeros(1, dtype=torch.bool))
        row = {"actions": action, "rewards": reward.float(), "success": success, "terminated": terminated}
        for name, value in row.items():
            self.columns[name].append(value.clone())
        self.frames.append(obs.clone())
        self.states.append(copied(self.env.get_state_dict()))
        return obs, reward, terminated, truncated, info

    def episode(self, limit: int) -> Episode:
        """What was remembered."""
        table = {name: torch.stack(values) for name, values in self.columns.items()}
        steps = len(table["actions"])
        table["truncated"] = torch.arange(1, steps + 1)[:, None] >= max(limit, steps)
        ends, succeeded = torch.tensor([steps]), table["success"].any(dim=0)
        (episode,) = cut(torch.stack(self.frames), stacked(self.states), table, [self.seed], ends, succeeded)
        return episode
