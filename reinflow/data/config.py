"""Which demonstrations a stage trains on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DemoConfig:
    """Demonstrations of Stages 1 and 2."""

    demo_path: str | None = None
    """demonstrations in a known format (ManiSkill's .h5); None takes those that collect_demos.py writes for the task"""
    num_demos: int | None = None
    """use only the first ones; None uses all"""
    reward_source: Literal["recorded", "sparse_success"] | None = None
    """Stage 2: rewards in the file, or 1 on every step that succeeds; default is the latter for --reward_mode sparse,
    else the former"""
    max_picture_gb: float = 4.0
    """GB of pictures that are held in memory; those of a larger set are read from the file as they are needed"""


def demo_file_name(obs_mode: str, control_mode: str) -> str:
    """The name under which collect_demos.py writes, in the folder of the task."""
    return f"trajectory.{obs_mode}.{control_mode}.h5"


def collect_command(env_id: str, obs_mode: str = "state") -> str:
    """The command that records what is missing, for an error message."""
    mode = "" if obs_mode == "state" else f" --obs_mode {obs_mode}"
    return f"python collect_demos.py --env_id {env_id}{mode}"
