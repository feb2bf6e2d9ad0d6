"""The resumable states of a run: `checkpoints/step_<N>/`, each complete or absent, newest verified one first.

    model.safetensors    the policy, the same file that best_model.safetensors is
    optim.safetensors    the other tensors: optimisers, averages, envs, random states
    state.json           everything else, with the places of those tensors
    manifest.sha256      digests of the three, as `sha256sum --check` reads them

A state is written beside its place, flushed, and renamed; `latest` is a link to the newest. Older states go only when
a newer one is complete, and a reader walks back over damaged ones; those are set aside as `step_<N>.skipped` once the
run that went on has a state of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reinflow.errors import UserError
from reinflow.runtime.files import flush_folder, write_durably
from reinflow.runtime.trees import join, not_finite, split
from reinflow.storage.checkpoint import Checkpoint, load_checkpoint, packed, refuse_not_finite
from reinflow.storage.names import MODEL
from reinflow.storage.sealed import Damaged, seal, unseal

OPTIM, STATE, MANIFEST = "optim.safetensors", "state.json", "manifest.sha256"
FILES = (MODEL, OPTIM, STATE)
LATEST = "latest"
NAME = re.compile(r"step_\d{12,}(-\d{3,})?")
"""of a state; copies under other names are nobody's business"""
KEPT = 2
"""resumable states that stay in a run directory"""
FORMAT, FORMAT_VERSION = "reinflow-state", 2
MAY_HOLD_ANYTHING = "env/"
"""places of tensors that are no weights, so they may hold numbers that aren't finite"""


def save_training(run_dir: str | Path, step: int, checkpoint: Checkpoint) -> Path:
    """Write the state of `step`, point `latest` to it, and keep the newest two.

    OSError if the disk doesn't take it, NotFinite (an OSError) for NaN or infinite weights; earlier states stay then.
    """
    if checkpoint.training is None:
        raise ValueError("a resumable checkpoint needs its training part")
    folder = Path(run_dir) / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    path = free_place(folder, step)
    temporary = path.with_name(f"{path.name}.tmp")
    contents = packed_state(step, checkpoint)
    for left_over in folder.glob("*.tmp"):
        discard(left_over)
    try:
        write_state(temporary, contents)
        os.rename(temporary, path)
        flush_folder(folder)
        point_to(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    found = states(run_dir)
    for skipped in found[: found.index(path)]:
        set_aside(skipped)
    for old in found[found.index(path) :][KEPT:]:
        discard(old)
    return path


def free_place(folder: Path, step: int) -> Path:
    """A state is never replaced: a second one of the same step is `step_<N>-001`, which sorts behind it."""
    name = f"step_{step:012d}"
    taken = [path.name.removeprefix(name).lstrip("-") for path in folder.glob(f"{name}*") if NAME.fullmatch(path.name)]
    return folder / (f"{name}-{max(int(count or 0) for count in taken) + 1:03d}" if taken else name)


def set_aside(path: Path) -> None:
    """What the run has stepped over is no longer its newest state, should it become readable again."""
    place = path.with_name(f"{path.name}.skipped")
    if place.exists():
        discard(place)
    os.rename(path, place)


def packed_state(step: int, checkpoint: Checkpoint) -> dict[str, bytes | bytearray]:
    """The files of a state."""
    plain, tensors = split(checkpoint.training)
    refuse_not_finite(weights(tensors))
    state = {"format": FORMAT, "version": FORMAT_VERSION, "step": step, "training": plain}
    return {
        MODEL: packed(checkpoint),
        OPTIM: seal(tensors, {"format": FORMAT, "version": FORMAT_VERSION}),
        STATE: json.dumps(state, allow_nan=False).encode(),
    }


def weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of a training state that have to be finite."""
    return {place: value for place, value in tensors.items() if not place.startswith(MAY_HOLD_ANYTHING)}


def write_state(folder: Path, contents: dict[str, bytes | bytearray]) -> None:
    """Make the folder and write its files durably, the digests last."""
    os.mkdir(folder)
    for name, data in contents.items():
        write_durably(folder / name, data)
    write_durably(folder / MANIFEST, manifest(contents))
    flush_folder(folder)


def manifest(contents: Mapping[str, bytes | bytearray]) -> bytes:
    """Digests of the state's files, a line each, as the command `sha256sum` prints them."""
    return "".join(f"{hashlib.sha256(contents[name]).hexdigest()}  {name}\n" for name in FILES).encode()


def point_to(path: Path) -> None:
    """Replace the link `latest` atomically."""
    temporary = path.with_name(f"{LATEST}.tmp")
    temporary.unlink(missing_ok=True)
    os.symlink(path.name, temporary)
    os.replace(temporary, path.with_name(LATEST))


def discard(path: Path) -> None:
    """Delete a state, or what is left of one, so that a kill in between leaves nothing that looks like one."""
    if path.is_symlink() or path.is_file():
        path.unlink()
        return
    doomed = path
    if path.suffix != ".tmp":
        doomed = path.with_name(f"{path.name}.old.tmp")
        os.rename(path, doomed)
    shutil.rmtree(doomed)


def states(run_dir: str | Path) -> list[Path]:
    """Resumable states, newest first."""
    found = (Path(run_dir) / "checkpoints").glob("step_*")
    return sorted((path for path in found if NAME.fullmatch(path.name) and path.is_dir()), reverse=True)


def latest_training(
    run_dir: str | Path, device: torch.device | str = "cpu", say: Callable[[str], None] = print
) -> Checkpoint:
    """The newest state that verifies; `say` hears of those that were skipped. UserError if the run has none.

    Only the policy and the critic move to `device`; what resumes from `training` moves its tensors itself.
    """
    reasons = []
    for path in states(run_dir):
        try:
            checkpoint = load_state(path, device)
        except UserError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            say(f"skipped {reason}; going on from {path.name}")
        return checkpoint
    detail = f" ({reasons[0]})" if reasons else ""
    raise UserError(f"{run_dir} has no checkpoint to resume from{detail}: start it again with --overwrite")


def load_state(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read one state; UserError names the file that is missing, damaged or of another version."""
    contents = verified(path)
    state = parsed(contents[STATE], path)
    try:
        tensors, _ = unseal(contents[OPTIM])
        training = join(state["training"], tensors)
    except (Damaged, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} holds no training state of this project ({error})") from None
    if not isinstance(training, dict):
        raise UserError(f"{path}/{STATE} holds no training state of this project")
    if bad := not_finite(weights(tensors)):
        raise UserError(f"{path}/{OPTIM} holds NaN or infinite numbers ({bad[0]} first)")
    checkpoint = load_checkpoint(path / MODEL, device)
    checkpoint.training = training
    return checkpoint


def verified(path: Path) -> dict[str, bytes]:
    """The files of a state, whose digests are those of its manifest."""
    try:
        contents = {name: (path / name).read_bytes() for name in (*FILES, MANIFEST)}
    except OSError as error:
        name = Path(error.filename).name if error.filename else "a file"
        raise UserError(f"{path}: {name} can't be read ({error.strerror})") from None
    expected, found = contents[MANIFEST].split(b"\n"), manifest(contents).split(b"\n")
    if expected != found:
        pairs = zip(expected, found, (*FILES, MANIFEST), strict=False)
        wrong = next((name for mine, theirs, name in pairs if mine != theirs), MANIFEST)
        raise UserError(f"{path}: {wrong} differs from its digest in {MANIFEST}, so it is cut short or corrupt")
    return contents


def parsed(data: bytes, path: Path) -> dict[str, Any]:
    """The content of state.json; UserError where it is none, or of another version."""
    try:
        state = json.loads(data)
    except (ValueError, RecursionError):
        state = None
    if not isinstance(state, dict) or state.get("format") != FORMAT or "training" not in state:
        raise UserError(f"{path}/{STATE} is no training state of this project")
    if state.get("version") != FORMAT_VERSION:
        raise UserError(
            f"{path} has format {state.get('version')}, this version resumes {FORMAT_VERSION}: "
            "resume it with the version that wrote it, or start it again with --overwrite"
        )
    return state
