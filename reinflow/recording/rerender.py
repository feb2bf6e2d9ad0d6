"""Recorded episodes seen again: every recorded state is put back into the simulator, which takes its pictures.

So demonstrations are collected without rendering, and a file of states becomes one of any image mode later.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from reinflow.envs.cameras import full_observation
from reinflow.errors import UserError

Tree = dict[str, Any]
"""tensors by name, nested"""


class Projector:
    """Shows recorded states to the cameras of a ManiSkill env, as many at once as it has scenes."""

    def __init__(self, env: Any):
        """`env` is unwrapped and in an image mode."""
        self.env = env
        _, info = env.reset(seed=0)
        self.layout = [(path, leaf.shape[1:]) for path, leaf in leaves(full_observation(env, info))]

    def observations(self, env_states: Tree, states: Float[Tensor, "t s"]) -> Tree:
        """What the env's mode observes in `t` recorded frames.

        Numbers of the robot and the task are copied out of `states`, recorded in mode `state`: a contact can't be put
        back. UserError where they are not of this task.
        """
        count = self.env.num_envs
        rows = torch.arange(len(states))
        batches = [self._observe(env_states, batch) for batch in rows.split(count)]
        seen = joined(batches)
        recorded = self._split(states)
        for path, leaf in list(leaves({part: seen[part] for part in ("agent", "extra") if part in seen})):
            if path not in recorded:
                raise UserError(f"the recorded states have no {'/'.join(path)}: collect the demonstrations again")
            place(seen, path, recorded[path].to(leaf.dtype).reshape(leaf.shape))
        if "state" in seen:
            seen["state"] = states
        return seen

    def _observe(self, env_states: Tree, rows: Tensor) -> Tree:
        """The first frames of a batch that starts in these states; a short batch repeats its last one."""
        count = self.env.num_envs
        padded = torch.cat((rows, rows[-1:].expand(count - len(rows))))
        chosen = mapped(env_states, lambda value: value[padded].to(self.env.device))
        obs, _ = self.env.reset(options={"reset_to_env_states": {"env_states": chosen}})
        return mapped(obs, lambda value: value[: len(rows)].cpu().clone())

    def _split(self, states: Float[Tensor, "t s"]) -> dict[tuple[str, ...], Tensor]:
        """The parts of flat states by name."""
        sizes = [int(np.prod(shape)) for _, shape in self.layout]
        if sum(sizes) != states.shape[1]:
            raise UserError(
                f"the recorded states have {states.shape[1]} numbers and the task's {sum(sizes)}: collect them again"
            )
        parts = states.split(sizes, dim=1)
        return {path: part for (path, _), part in zip(self.layout, parts, strict=True)}


def leaves(tree: Tree, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Tensor]]:
    """All tensors with their names, in order."""
    found: list[tuple[tuple[str, ...], Tensor]] = []
    for name, value in tree.items():
        found += leaves(value, (*path, name)) if isinstance(value, dict) else [((*path, name), value)]
    return found


def place(tree: Tree, path: tuple[str, ...], value: Tensor) -> None:
    """Put a tensor where `path` leads in a nested dict, in place."""
    for name in path[:-1]:
        tree = tree[name]
    tree[path[-1]] = value


def mapped(tree: Any, function: Any) -> Any:
    """A nested dict with `function` applied to every leaf, arrays as tensors."""
    if isinstance(tree, dict):
        return {name: mapped(value, function) for name, value in tree.items()}
    return function(torch.as_tensor(tree))


def joined(trees: list[Any]) -> Any:
    """Equal nested dicts as one whose tensors are concatenated along the first axis."""
    if isinstance(trees[0], dict):
        return {name: joined([tree[name] for tree in trees]) for name in trees[0]}
    return torch.cat(trees)
