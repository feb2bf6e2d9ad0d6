"""Converts demonstrations from any format that is read into one that is written.

    python -m reinflow.convert hopper_medium-v2.hdf5 data/hopper/train.npz
    python -m reinflow.convert trajectory.h5 faster.h5 --speed_up 3 --drop_pauses

The format to write follows from the name: .npz, .h5 is ManiSkill's, .hdf5 D4RL's, a folder Minari's; `--format` says
otherwise. States only: pictures and simulator states stay behind.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from reinflow.cli import run_script
from reinflow.errors import UserError

SUFFIXES = {".npz": "npz", ".h5": "maniskill", ".hdf5": "d4rl", "": "minari"}


@dataclass(frozen=True)
class Config:
    """Convert demonstrations."""

    source: Annotated[str, tyro.conf.Positional]
    """file or folder to read, in any known format; also a pattern, a Minari name or hf://owner/name/path"""
    output: Annotated[str, tyro.conf.Positional]
    """file or folder to write"""
    format: Literal["maniskill", "d4rl", "robomimic", "npz", "minari"] | None = None
    """format to write; None follows from the name"""
    env_id: str | None = None
    """task, where the recording names none"""
    control_mode: str | None = None
    """what an action means, where the recording doesn't say"""
    num_demos: int | None = None
    """use only the first ones; None uses all"""
    only_success: bool = False
    """leave out episodes that never succeed"""
    speed_up: int = 1
    """merge up to so many steps into one where the controller's range allows; needs a control mode of deltas"""
    drop_pauses: bool = False
    """merge steps in which nothing moves into the one before; needs a control mode of deltas"""
    overwrite: bool = False
    """replace what is there"""


def main(config: Config) -> None:
    """Read, change the tempo where asked for, write."""
    from reinflow.data.demos import load_demos
    from reinflow.data.examination import task_guessed
    from reinflow.data.tempo import faster
    from reinflow.recording.writers import WRITERS

    name = config.format or SUFFIXES.get(Path(config.output).suffix)
    if name is None:
        raise UserError(f"{config.output} has the name of no format: pass --format {', '.join(WRITERS)}")
    demos = load_demos(
        config.source,
        num_demos=config.num_demos,
        env_id=config.env_id,
        control_mode=config.control_mode,
        only_success=config.only_success,
    )
    before = sum(map(len, demos.trajectories))
    if config.speed_up != 1 or config.drop_pauses:
        task = task_guessed(demos)
        demos = replace(
            demos,
            trajectories=[faster(one, task, config.speed_up, config.drop_pauses) for one in demos.trajectories],
        )
    WRITERS[name](Path(config.output), demos, config.overwrite)
    steps = sum(map(len, demos.trajectories))
    change = f" (from {before})" if steps != before else ""
    print(f"wrote {len(demos.trajectories)} episodes of {steps} steps{change} to {config.output} ({name})")


if __name__ == "__main__":
    run_script(main, Config, loads="torch and demonstrations")
