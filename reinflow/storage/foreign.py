"""Weights out of a .pt file that torch.save wrote, without running anything that it holds.

Weights are matched by the end of their names and by shape; a gap is refused.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reinflow.errors import UserError
from reinflow.policies import build_policy
from reinflow.policies.spec import PolicySpec
from reinflow.storage.checkpoint import Checkpoint, env_spec_from, load_checkpoint, load_state_

SAFE_TORCH = (2, 10)
"""older versions of torch have known ways around weights_only"""
FIRST_FORMAT = "reinflow-checkpoint"
NETWORK = "net."
"""what has to come from the file; the rest of a policy is normalisers"""


def read_pickled(path: Path) -> Any:
    """What torch.load returns with `weights_only`: containers, numbers, text and tensors, never objects."""
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < SAFE_TORCH:
        raise UserError(f"torch {torch.__version__} can't open a stranger's file safely: install torch 2.10 or newer")
    if not path.is_file():
        raise UserError(f"there is no file at {path}: check the name")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError) as error:
        reason = str(error).strip().splitlines()[0][:150] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} is damaged, or holds more than weights ({reason}): it was not opened") from None
    except (AttributeError, AssertionError, RecursionError, MemoryError, OverflowError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}): it was not opened") from None


def converted(payload: Any, old: str, like: str | None) -> tuple[Checkpoint, dict[str, str]]:
    """The checkpoint, and which of its weights came from which name in the file."""
    if isinstance(payload, dict) and payload.get("format") == FIRST_FORMAT:
        return from_first_format(payload, old), {}
    if like is None:
        raise UserError(f"{old} says nothing about its policy: name a checkpoint of the same one with --like")
    model = load_checkpoint(like)
    wanted = {name: value for name, value in model.policy_state.items() if name.startswith(NETWORK)}
    found = dict(tensors_of(payload))
    matches, state = match(wanted, found), dict(model.policy_state)
    missing = [f"{name} {tuple(value.shape)}" for name, value in wanted.items() if name not in matches]
    if missing:
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise UserError(
            f"{old} has no weights for {', '.join(missing[:8])}{more}: it is of another network than "
            f"{like}; its own names start with {', '.join(list(found)[:3]) or 'nothing'}"
        )
    state |= {name: found[theirs] for name, theirs in matches.items()}
    return replace(model, policy_state=state, parts={}, meta={"imported_from": old}), matches


def from_first_format(payload: dict[str, Any], name: str) -> Checkpoint:
    """A checkpoint of what the project's first format held; UserError where something is missing."""
    try:
        return Checkpoint(
            policy_spec=PolicySpec.from_dict(payload["policy_spec"]),
            env_spec=env_spec_from(payload["env_spec"]),
            policy_state=dict(payload["policy_state"]),
            parts={"critic": payload["critic_state"]} if payload["critic_state"] else {},
            meta={"imported_from": name},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{name} lacks what its format has ({error}): it is damaged") from None


def check_weights(checkpoint: Checkpoint, name: str) -> None:
    """UserError unless the weights fit the policy that the checkpoint describes."""
    state = checkpoint.policy_state
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise UserError(f"{name} holds other things than tensors among its weights: it is damaged")
    load_state_(build_policy(checkpoint.policy_spec), state, f"the policy of {name}")


def tensors_of(tree: Any, place: str = "") -> list[tuple[str, Tensor]]:
    """Every tensor of nested dicts under its dotted name."""
    if isinstance(tree, Tensor):
        return [(place, tree)]
    if not isinstance(tree, Mapping):
        return []
    below = ((f"{place}.{key}" if place else str(key), value) for key, value in tree.items())
    return [pair for name, value in below for pair in tensors_of(value, name)]


def match(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> dict[str, str]:
    """For each wanted name the found one of equal shape with the same end, all below one common prefix."""
    ends = {name: name.removeprefix(NETWORK) for name in wanted}
    best: dict[str, str] = {}
    for prefix in sorted({name.removesuffix(end) for name in found for end in ends.values() if name.endswith(end)}):
        fitting = {
            name: prefix + end
            for name, end in ends.items()
            if prefix + end in found and found[prefix + end].shape == wanted[name].shape
        }
        if len(fitting) > len(best):
            best = fitting
    return best
