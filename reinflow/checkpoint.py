"""Checkpoints: everything that the next stage, an evaluation or a resume needs, in one file that is complete or absent.

A file holds only tensors, numbers, text and containers of them, so it loads with `weights_only=True`: opening a
stranger's checkpoint runs none of its code.
"""

from __future__ import annotations

import pickle
import random
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from reinflow.errors import UserError
from reinflow.files import replaced_atomically
from reinflow.policies.spec import PolicySpec
from reinflow.types import EnvSpec

if TYPE_CHECKING:
    from reinflow.policies.base import Policy

FORMAT = "reinflow-checkpoint"
FORMAT_VERSION = 1
KEPT = 2
"""resumable checkpoints that stay in a run directory"""
MAKE_ONE = "Stage 1 makes one (python train_shortcut_flow.py --demo_path ...), later stages continue from it"


@dataclass
class Checkpoint:
    """A policy with the task it was trained for; `load_policy` rebuilds it without any flag."""

    policy_spec: PolicySpec
    env_spec: EnvSpec
    policy_state: dict[str, Tensor]
    """state_dict of the policy: network, encoder and normalisers"""
    critic_state: dict[str, Tensor] | None = None
    """state_dict of the value network, where a stage trained one"""
    extra: dict[str, Any] = field(default_factory=dict)
    """what only some stages have: Q ensemble, noise net, network sizes"""
    meta: dict[str, Any] = field(default_factory=dict)
    """stage, step, metrics and versions, for people"""
    training: dict[str, Any] | None = None
    """optimisers, counters and random states; only in resumable checkpoints"""


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write atomically: a kill at any moment leaves the old file or the new one."""
    path = Path(path)
    payload = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "policy_spec": checkpoint.policy_spec.to_dict(),
        "env_spec": asdict(checkpoint.env_spec),
        "policy_state": checkpoint.policy_state,
        "critic_state": checkpoint.critic_state,
        "extra": checkpoint.extra,
        "meta": checkpoint.meta,
        "training": checkpoint.training,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replaced_atomically(path) as temporary:
        torch.save(payload, temporary)


def resolve_checkpoint(path: str | Path) -> Path:
    """The file itself, or the best_model.pt of a run directory; UserError where there is none."""
    path = Path(path)
    if not str(path).strip() or str(path) == ".":
        raise UserError(f"no checkpoint was named: {MAKE_ONE}")
    if path.is_dir():
        best = path / "best_model.pt"
        if not best.is_file():
            raise UserError(f"{path} has no best_model.pt (its run has not been evaluated yet): {MAKE_ONE}")
        return best
    if not path.is_file():
        raise UserError(f"there is no checkpoint at {path}: {MAKE_ONE}")
    return path


def load_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a file or a run directory. UserError if it is missing, cut short, not ours, or of another version."""
    path = resolve_checkpoint(path)
    payload = read_payload(path, device)
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this project: {MAKE_ONE}")
    if payload.get("version") != FORMAT_VERSION:
        raise UserError(
            f"{path} has checkpoint format {payload.get('version')}, this version reads {FORMAT_VERSION}: "
            "load it with the version that wrote it, or train it again"
        )
    env = payload["env_spec"]
    low, high = tuple(env["action_low"]), tuple(env["action_high"])
    try:
        env_spec = EnvSpec(**{**env, "action_low": low, "action_high": high})
    except TypeError:
        raise UserError(f"{path} describes its task with other fields than this version does: train it again") from None
    return Checkpoint(
        policy_spec=PolicySpec.from_dict(payload["policy_spec"]),
        env_spec=env_spec,
        **{name: payload[name] for name in ("policy_state", "critic_state", "extra", "meta", "training")},
    )


def read_payload(path: Path, device: torch.device | str) -> Any:
    """What torch.load returns, with its many exceptions turned into two sentences."""
    with path.open("rb") as file:
        magic = file.read(4)
    if not magic or (magic == b"PK\x03\x04" and not zipfile.is_zipfile(path)):
        raise UserError(
            f"{path} is cut short (an interrupted copy or a full disk): copy it again or take an older checkpoint"
        )
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} is damaged or not a checkpoint of this project ({reason[:120]}): {MAKE_ONE}") from None


def load_policy(path: str | Path, device: torch.device | str) -> tuple[Policy, Checkpoint]:
    """Rebuild the policy of a checkpoint, in eval mode on `device`; UserError lists every tensor that doesn't fit."""
    from reinflow.policies import build_policy

    checkpoint = load_checkpoint(path, device)
    policy = build_policy(checkpoint.policy_spec).to(device)
    load_state_(policy, checkpoint.policy_state, f"the policy of {path}")
    return policy.eval(), checkpoint


def load_state_(module: nn.Module, state: dict[str, Tensor], name: str) -> None:
    """Strict load_state_dict whose UserError names each key with the expected and the given shape."""
    own = module.state_dict()
    shapes = [
        f"{key}: expected {tuple(own[key].shape)}, got {tuple(state[key].shape)}"
        for key in own
        if key in state and own[key].shape != state[key].shape
    ]
    missing = [f"{key}: expected {tuple(own[key].shape)}, got nothing" for key in own if key not in state]
    unknown = [f"{key}: not expected, got {tuple(state[key].shape)}" for key in state if key not in own]
    problems = shapes + missing + unknown
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise UserError(
            f"{name} does not fit ({'; '.join(problems[:8])}{more}): use the settings that it was made with"
        )
    module.load_state_dict(state)


def save_training(run_dir: str | Path, step: int, checkpoint: Checkpoint) -> Path:
    """Write `checkpoints/step_<step>.pt`, whose `training` part resumes the run, and keep the newest two."""
    if checkpoint.training is None:
        raise ValueError("a resumable checkpoint needs its training part")
    path = Path(run_dir) / "checkpoints" / f"step_{step:012d}.pt"
    save_checkpoint(path, checkpoint)
    for old in training_files(run_dir)[KEPT:]:
        old.unlink()
    return path


def latest_training(run_dir: str | Path, device: torch.device | str = "cpu") -> Checkpoint:
    """The newest resumable checkpoint that can be read; UserError if the run has none."""
    reasons = []
    for path in training_files(run_dir):
        try:
            return load_checkpoint(path, device)
        except UserError as error:
            reasons.append(str(error))
    detail = f" ({reasons[0]})" if reasons else ""
    raise UserError(f"{run_dir} has no checkpoint to resume from{detail}: start it again with --overwrite")


def training_files(run_dir: str | Path) -> list[Path]:
    """Resumable checkpoints, newest first."""
    return sorted((Path(run_dir) / "checkpoints").glob("step_*.pt"), reverse=True)


def rng_state() -> dict[str, Any]:
    """State of the global Python, NumPy and torch generators, as values that `weights_only` can load."""
    algorithm, keys, position, has_gauss, cached = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    return {
        "python": random.getstate(),
        "numpy": [algorithm, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Continue the random sequences of `rng_state`; generators of GPUs that aren't here are left out."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    algorithm, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((algorithm, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    for index, saved in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(saved.cpu(), index)
