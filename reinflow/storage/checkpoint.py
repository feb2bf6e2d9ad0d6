"""Checkpoints: everything that the next stage or an evaluation needs, in one file that is complete or absent.

A file is sealed (`reinflow.storage.sealed`): safetensors and JSON, so opening a stranger's checkpoint runs none of its
code, and a changed byte is noticed. `best_model.safetensors` of a run and `model.safetensors` of its resumable states
are such files.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from reinflow.errors import UserError
from reinflow.policies.spec import PolicySpec
from reinflow.runtime.files import flush_folder, replace
from reinflow.runtime.trees import not_finite
from reinflow.storage.names import BEST, FORMER_BEST, MODEL
from reinflow.storage.sealed import Damaged, seal, unseal
from reinflow.types import EnvSpec, Headline, ImageSpec, Objective

if TYPE_CHECKING:
    from reinflow.policies.base import Policy

FORMAT = "reinflow-checkpoint"
FORMAT_VERSION = 2
POLICY = "policy"
"""what the names of its tensors start with in a file, as those of every part do with the part's"""
LEGACY_MAGICS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x04")
"""first bytes of what torch.save writes"""
MAKE_ONE = "Stage 1 makes one (python train_shortcut_flow.py --demo_path ...), later stages continue from it"


@dataclass
class Checkpoint:
    """A policy with the task it was trained for; `load_policy` rebuilds it without any flag."""

    policy_spec: PolicySpec
    env_spec: EnvSpec
    policy_state: dict[str, Tensor]
    """state_dict of the policy: network, encoder and normalisers"""
    parts: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """state_dicts of what else was learned, by name: `critic` is the value network, `q` an ensemble of Qs; who doesn't
    need a part ignores it"""
    objective: Objective | None = None
    """what the last stage with rewards maximised; None in Stage 1 and in older files, which don't say"""
    extra: dict[str, Any] = field(default_factory=dict)
    """plain values that only some stages have"""
    meta: dict[str, Any] = field(default_factory=dict)
    """stage, step, metrics and versions, for people"""
    training: dict[str, Any] | None = None
    """optimisers, counters, envs, random states; only in resumable checkpoints (`reinflow.storage.resumable`)"""


class NotFinite(OSError):
    """A checkpoint with NaN or infinite weights was not written."""


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write atomically, all but `training`: a kill at any moment leaves the old file or the new one.

    OSError if the disk doesn't take it, NotFinite (an OSError) if weights are NaN or infinite; the old file stays.
    """
    path = Path(path)
    data = packed(checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, data)
    flush_folder(path.parent)


def packed(checkpoint: Checkpoint) -> bytearray:
    """The bytes of a checkpoint's file."""
    states = {POLICY: checkpoint.policy_state, **checkpoint.parts}
    tensors = {f"{part}.{name}": value for part, state in states.items() for name, value in state.items()}
    refuse_not_finite(tensors)
    return seal(
        tensors,
        {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "policy_spec": checkpoint.policy_spec.to_dict(),
            "env_spec": asdict(checkpoint.env_spec),
            "parts": sorted(checkpoint.parts),
            "objective": asdict(checkpoint.objective) if checkpoint.objective else None,
            "extra": checkpoint.extra,
            "meta": checkpoint.meta,
        },
    )


def refuse_not_finite(tensors: dict[str, Tensor]) -> None:
    """NotFinite where a tensor holds NaN or infinity, naming how many do and the first of them."""
    if bad := not_finite(tensors):
        raise NotFinite(f"{len(bad)} tensors hold NaN or infinite numbers, {bad[0]} first")


def resolve_checkpoint(path: str | Path) -> Path:
    """The file itself, its other name, or the file of a run's or a resumable state's directory.

    UserError where there is none.
    """
    path = Path(path)
    if not str(path).strip() or str(path) == ".":
        raise UserError(f"no checkpoint was named: {MAKE_ONE}")
    if path.is_dir():
        for name in (BEST, FORMER_BEST, MODEL):
            if (path / name).is_file():
                return path / name
        raise UserError(f"{path} has no {BEST} (its run has not been evaluated yet): {MAKE_ONE}")
    names = (path.name, BEST, FORMER_BEST) if path.name in (BEST, FORMER_BEST) else (path.name,)
    for name in names:
        if path.with_name(name).is_file():
            return path.with_name(name)
    raise UserError(f"there is no checkpoint at {path}: {MAKE_ONE}")


def rename_former_best(run_dir: Path) -> None:
    """Give the best policy of an older run its name of today, so that a later best one does not stand beside it."""
    former, best = run_dir / FORMER_BEST, run_dir / BEST
    if former.is_file() and not best.exists():
        former.rename(best)


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a file or a directory. UserError if it is missing, damaged, not ours, or of another version."""
    path = resolve_checkpoint(path)
    tensors, description = read_sealed(path)
    if description.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this project: {MAKE_ONE}")
    if description.get("version") != FORMAT_VERSION:
        raise UserError(
            f"{path} has checkpoint format {description.get('version')}, this version reads {FORMAT_VERSION}: "
            "load it with the version that wrote it, or train it again"
        )
    if bad := not_finite(tensors):
        raise UserError(f"{path} holds NaN or infinite weights ({bad[0]} first): take an older checkpoint")
    on_device = {name: value.to(device) for name, value in tensors.items()}
    try:
        return Checkpoint(
            policy_spec=PolicySpec.from_dict(typed(description, "policy_spec", dict)),
            env_spec=env_spec_from(typed(description, "env_spec", dict)),
            policy_state=part_of(on_device, POLICY),
            parts={name: part_of(on_device, name) for name in parts_in(description)},
            objective=objective_from(typed(description, "objective", dict | None)),
            extra=typed(description, "extra", dict),
            meta=typed(description, "meta", dict),
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} describes its policy or task in another way than this version ({error})") from None


def read_sealed(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a sealed file; UserError names the file and what is wrong with it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}): check its permissions and the disk") from None
    if data.startswith(LEGACY_MAGICS):
        raise UserError(
            f"{path} was written by torch.save, which this project does not open: convert it with "
            f"python -m reinflow.foreign {path} NEW.safetensors"
        )
    try:
        return unseal(data)
    except Damaged as error:
        raise UserError(
            f"{path} is damaged or not a checkpoint of this project ({error}): copy it again, or take an older one; "
            f"{MAKE_ONE}"
        ) from None


def typed(description: dict[str, Any], name: str, kind: type | UnionType) -> Any:
    """The entry `name` of a description; TypeError where it is missing or of another kind."""
    value = description.get(name)
    if not isinstance(value, kind):
        raise TypeError(f"{name} is no {getattr(kind, '__name__', kind)}")
    return value


def env_spec_from(data: dict[str, Any]) -> EnvSpec:
    """TypeError if a field is missing, unknown or of another kind."""
    low, high, image = tuple(data["action_low"]), tuple(data["action_high"]), data.get("image")
    still = tuple(data.get("still", ()))
    if image is not None:
        image = ImageSpec(**{**image, "cameras": tuple(image["cameras"])})
    spec = EnvSpec(**{**data, "action_low": low, "action_high": high, "image": image, "still": still})
    kinds = {"int": int, "str": str}
    for one in fields(EnvSpec):
        kind = kinds.get(str(one.type))
        if kind is not None and not isinstance(getattr(spec, one.name), kind):
            raise TypeError(f"{one.name} is no {one.type}")
    if not isinstance(spec.env_kwargs, dict) or not isinstance(spec.env_module, str | None):
        raise TypeError("env_kwargs is no dict or env_module no name")
    if spec.headline not in get_args(Headline):
        raise TypeError(f"{spec.headline} is no score")
    if len(low) != len(high) or not all(isinstance(bound, float) and math.isfinite(bound) for bound in low + high):
        raise TypeError("the bounds of its actions are no numbers")
    return spec


def objective_from(data: dict[str, Any] | None) -> Objective | None:
    """KeyError, TypeError or ValueError if a field is missing or of another kind."""
    if data is None:
        return None
    mode, ends = typed(data, "reward_mode", str), typed(data, "terminate_on_success", bool)
    return Objective(float(data["gamma"]), mode, ends)


def parts_in(description: dict[str, Any]) -> list[str]:
    """Names of what a file holds beside the policy: V or nothing in an older one. TypeError for anything else."""
    if "parts" not in description:
        return ["critic"] if typed(description, "has_critic", bool) else []
    names = typed(description, "parts", list)
    if not all(isinstance(name, str) for name in names):
        raise TypeError("parts holds something else than names")
    return names


def part_of(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """The state_dict of that name."""
    prefix = f"{part}."
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def load_policy(path: str | Path, device: torch.device | str) -> tuple[Policy, Checkpoint]:
    """Rebuild the policy of a checkpoint, in eval mode on `device`; UserError lists every tensor that doesn't fit."""
    from reinflow.policies import build_policy

    checkpoint = load_checkpoint(path, device)
    policy = build_policy(checkpoint.policy_spec).to(device)
    load_state_(policy, checkpoint.policy_state, f"the policy of {path}")
    return policy.eval(), checkpoint


def adopt_teacher_(policy: Policy) -> None:
    """Give a new policy the teacher that its options name, where they do; UserError if that one doesn't fit."""
    if path := policy.teacher_path:
        policy.learn_from_(load_policy(path, policy.device)[0])


def load_state_(module: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Strict load_state_dict whose UserError names each key with the expected and the given shape."""
    if problems := misfits(module.state_dict(), state):
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise UserError(
            f"{name} does not fit ({'; '.join(problems[:8])}{more}): use the settings that it was made with"
        )
    module.load_state_dict(state)


def misfits(own: dict[str, Tensor], state: dict[str, Tensor]) -> list[str]:
    """Every key whose tensor is missing, unknown or of another shape."""
    shapes = [
        f"{key}: expected {tuple(own[key].shape)}, got {tuple(state[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    missing = [f"{key}: expected {tuple(own[key].shape)}, got nothing" for key in own if key not in state]
    unknown = [f"{key}: not expected, got {tuple(state[key].shape)}" for key in state if key not in own]
    return shapes + missing + unknown
