"""Converts a .pt file that torch.save wrote into a checkpoint of this project, without running anything that it holds.

    python -m reinflow.foreign OLD.pt NEW.pt                        # this project's own first format
    python -m reinflow.foreign OLD.pt NEW.pt --like best_model.pt   # another code's weights of the same network
    python -m reinflow.foreign state_2000.pt NEW.pt --like best_model.pt --normalization normalization.npz

Weights are matched by the end of their names and by shape, or where they are a residual MLP of ReinFlow's ReFlow under
their names there (reinflow/storage/dialects.py); every match is printed, and a gap is refused. Task and horizons come
from the checkpoint that `--like` names, a single iteration of Stage 1 with `--family reflow --net preact
--preact_max_frequency 1` and their sizes; normalisers too, or from their normalization.npz.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from reinflow.cli import run_script
from reinflow.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Config:
    """Convert a .pt file."""

    old: Annotated[str, tyro.conf.Positional]
    """file that torch.save wrote, or hf://owner/name/path"""
    new: Annotated[str, tyro.conf.Positional]
    """checkpoint to write"""
    like: str | None = None
    """checkpoint of the same network and task, for the weights of other code"""
    normalization: str | None = None
    """bounds that the weights were trained with, DPPO's and ReinFlow's normalization.npz; None keeps those of --like"""


def main(config: Config) -> None:
    """Convert one file and print which of its weights went where."""
    from reinflow.data.places import HUB, from_hub
    from reinflow.storage.checkpoint import save_checkpoint
    from reinflow.storage.foreign import check_weights, converted, read_pickled

    if Path(config.new).exists():
        raise UserError(f"{config.new} exists: choose another name")
    old = from_hub(config.old, "model") if config.old.startswith(HUB) else Path(config.old)
    payload = read_pickled(old)
    checkpoint, matches = converted(payload, config.old, config.like)
    if config.normalization:
        state = checkpoint.policy_state
        checkpoint = replace(checkpoint, policy_state=state | normalizers(Path(config.normalization), state))
    check_weights(checkpoint, config.old)
    for own, theirs in matches.items():
        print(f"{own} <- {theirs}  {tuple(checkpoint.policy_state[own].shape)}")
    save_checkpoint(config.new, checkpoint)
    print(f"wrote {config.new}")


def normalizers(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of states and actions that scale a range to -1..1; UserError where the bounds have other sizes."""
    from reinflow.data.archives import read_arrays
    from reinflow.data.formats.npz import WIDENED

    bounds = read_arrays(path, ("obs_min", "obs_max", "action_min", "action_max"))
    made: dict[str, Tensor] = {}
    for name, short in {"encoder.state_normalizer": "obs", "action_normalizer": "action"}.items():
        low, high = bounds.get(f"{short}_min"), bounds.get(f"{short}_max")
        if low is None or high is None or not low.shape == high.shape == state[f"{name}.shift"].shape:
            raise UserError(f"{path} has no {short}_min and {short}_max of the size of this policy: check the file")
        scale = (high.float() - low.float() + WIDENED) / 2
        made |= {f"{name}.scale": scale, f"{name}.shift": low.float() + scale}
    return made


if __name__ == "__main__":
    run_script(main, Config)
