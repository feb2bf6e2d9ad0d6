"""Weights out of a .pt file that torch.save wrote, without running anything that it holds.

Weights are matched by the end of their names and by shape, or are translated where they are a residual MLP of
ReinFlow's ReFlow (dialects.py); a gap is refused.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nets.config import PreactMLPConfig
from reinflow.errors import UserError
from reinflow.policies import build_policy
from reinflow.policies.spec import PolicySpec
from reinflow.storage.checkpoint import Checkpoint, env_spec_from, load_checkpoint, load_state_
from reinflow.storage.dialects import Named, in_our_words

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


def converted(payload: Any, old: str, like_path: str | None) -> tuple[Checkpoint, dict[str, str]]:
    """The checkpoint, and which of its weights came from which name in the file."""
    if isinstance(payload, dict) and payload.get("format") == FIRST_FORMAT:
        return from_first_format(payload, old), {}
    if like_path is None:
        raise UserError(f"{old} says nothing about its policy: name a checkpoint of the same one with --like")
    like = load_checkpoint(like_path)
    wanted = {name: value for name, value in like.policy_state.items() if name.startswith(NETWORK)}
    found = dict(tensors_of(payload))
    matches, state = match(wanted, found), dict(like.policy_state)
    origins: dict[str, str] = {}
    if len(matches) < len(wanted) and (translated := residual_mlp(found, like.policy_spec, old, like_path)):
        matches = match(wanted, {name: value for name, (value, _) in translated.items()})
        origins = {NETWORK + name: theirs for name, (_, theirs) in translated.items()}
        found = {name.removeprefix(NETWORK): value for name, (value, _) in translated.items()}
    missing = [f"{name} {tuple(value.shape)}" for name, value in wanted.items() if name not in matches]
    if missing:
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise UserError(
            f"{old} has no weights for {', '.join(missing[:8])}{more}: it is of another network than "
            f"{like_path}; its own names start with {', '.join(list(found)[:3]) or 'nothing'}"
        )
    state |= {name: found[theirs] for name, theirs in matches.items()}
    imported = replace(like, policy_state=state, parts={}, meta={"imported_from": old})
    return imported, {name: origins.get(name, theirs) for name, theirs in matches.items()}


def residual_mlp(found: dict[str, Tensor], spec: PolicySpec, old: str, like: str) -> Named:
    """What the file holds of ReinFlow's ReFlow network, in the words of `--net preact`; empty where it is another.

    UserError where `--like` would compute something else with it.
    """
    options = spec.net_options
    if not isinstance(options, PreactMLPConfig):
        return {}
    named = in_our_words(found, spec.pred_horizon * spec.action_dim, options.preact_time_dim)
    if named and (spec.family, options.preact_max_frequency, spec.obs_horizon) != ("reflow", 1.0, 1):
        raise UserError(
            f"{old} is a velocity network of ReinFlow, which is --family reflow, --net preact "
            f"--preact_max_frequency 1 and --obs_horizon 1 here: train {like} so for an iteration"
        )
    if named:
        print(
            f"note: the file doesn't say its activation, taken for {options.preact_activation} (--preact_activation), "
            "nor whether it is a flow: a diffusion policy of DPPO has the same names and would be a wrong policy here"
        )
    return named


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
