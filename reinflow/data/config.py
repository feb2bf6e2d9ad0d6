"""Which demonstrations a stage trains on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DemoConfig:
    """Demonstrations of Stages 1 and 2."""

    demo_path: tuple[str, ...] = ()
    """demonstrations of one task: files or folders in any known format, patterns such as `demos/*.h5`, names of Minari
    datasets, hf://owner/name/path; empty takes what collect_demos.py writes for the task"""
    num_demos: int | None = None
    """use only the first ones; None uses all"""
    only_success: bool | None = None
    """leave out episodes that never succeed; default is yes for cloning tasks that are ranked by success, no for
    Stage 2, which learns from failures too"""
    speed_up: int = 1
    """merge up to so many steps into one where the controller's range allows; needs a control mode of deltas"""
    drop_pauses: bool = False
    """merge steps in which nothing moves into the one before; needs a control mode of deltas"""
    reward_source: Literal["recorded", "sparse_success"] | None = None
    """Stage 2: rewards in the file, or 1 on every step that succeeds; default is the latter for --reward_mode sparse,
    else the former"""
    max_picture_gb: float = 4.0
    """GB of pictures that are held in memory; those of a larger set are read from the file as they are needed"""

    def __post_init__(self) -> None:
        if isinstance(self.demo_path, str):
            object.__setattr__(self, "demo_path", (self.demo_path,))  # one name is no sequence of letters

    @property
    def as_recorded(self) -> bool:
        """Whether no steps are merged."""
        return self.speed_up == 1 and not self.drop_pauses


def demo_file_name(obs_mode: str, control_mode: str) -> str:
    """The name under which collect_demos.py writes, in the folder of the task."""
    return f"trajectory.{obs_mode}.{control_mode}.h5"


def collect_command(env_id: str, obs_mode: str = "state") -> str:
    """The command that records what is missing, for an error message."""
    mode = "" if obs_mode == "state" else f" --obs_mode {obs_mode}"
    return f"python collect_demos.py --env_id {env_id}{mode}"


def replay_command(path: str, obs_mode: str = "state", control_mode: str | None = None) -> str:
    """The command that gives a ManiSkill recording other observations or actions, for an error message."""
    mode = f" --control_mode {control_mode}" if control_mode else ""
    return f"python collect_demos.py --replay {path} --obs_mode {obs_mode}{mode}"
