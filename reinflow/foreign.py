"""Converts a .pt file that torch.save wrote into a checkpoint of this project, without running anything that it holds.

    python -m reinflow.foreign OLD.pt NEW.safetensors                    # this project's own first format
    python -m reinflow.foreign OLD.pt NEW.safetensors --like RUN_DIR     # another code's weights of the same network

Weights are matched by the end of their names and by shape; every match is printed, and a gap is refused. Task, horizons
and normalisers come from the checkpoint that `--like` names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from reinflow.cli import run_script
from reinflow.errors import UserError


@dataclass(frozen=True)
class Config:
    """Convert a .pt file."""

    old: Annotated[str, tyro.conf.Positional]
    """file that torch.save wrote"""
    new: Annotated[str, tyro.conf.Positional]
    """checkpoint to write"""
    like: str | None = None
    """checkpoint of the same network and task, for the weights of other code"""


def main(config: Config) -> None:
    """Convert one file and print which of its weights went where."""
    from reinflow.storage.checkpoint import save_checkpoint
    from reinflow.storage.foreign import check_weights, converted, read_pickled

    if Path(config.new).exists():
        raise UserError(f"{config.new} exists: choose another name")
    payload = read_pickled(Path(config.old))
    checkpoint, matches = converted(payload, config.old, config.like)
    check_weights(checkpoint, config.old)
    for own, theirs in matches.items():
        print(f"{own} <- {theirs}  {tuple(checkpoint.policy_state[own].shape)}")
    save_checkpoint(config.new, checkpoint)
    print(f"wrote {config.new}")


if __name__ == "__main__":
    run_script(main, Config)
