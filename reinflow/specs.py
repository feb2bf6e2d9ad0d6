"""The part of the vocabulary that is plain values: what a task shows and takes, and which return is maximised.

Nothing here needs torch, so that a command line is quick; `reinflow.types` has the rest and these names too.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor


StillAction = tuple[float | None, ...]
"""Per action dimension what keeps the robot where it is; None where that is the last action again."""


Seed = int | list[int] | None
"""Of a reset: one for all envs together, or one per env, whose start state then depends on its own seed alone."""


Headline = Literal["success_once", "return"]
"""The score by which policies of a task are ranked."""


OBSERVABLE = ("state", "rgb", "depth")
"""parts of an observation mode, in the order of its name"""


def canonical_obs_mode(name: str) -> str:
    """Parts of OBSERVABLE joined by +, in that order; `rgbd` is rgb+depth. ValueError for any other part."""
    parts = {"rgb", "depth"} if name == "rgbd" else set(name.split("+"))
    if unknown := parts - set(OBSERVABLE):
        raise ValueError(f"an observation mode is made of {', '.join(OBSERVABLE)} joined by +, not {min(unknown)!r}")
    return "+".join(part for part in OBSERVABLE if part in parts)


@dataclass(frozen=True)
class ImageSpec:
    """Pictures in an observation; all cameras take them in one size."""

    cameras: tuple[str, ...]
    height: int
    """pixels"""
    width: int
    """pixels"""
    rgb: bool
    depth: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Keys of an observation that hold pictures."""
        return tuple(name for name in ("rgb", "depth") if getattr(self, name))

    @classmethod
    def of(cls, cameras: tuple[str, ...], pictures: dict[str, Tensor]) -> ImageSpec:
        """From one frame's `rgb` and `depth`, (n v y x c) each."""
        height, width = next(iter(pictures.values())).shape[-3:-1]
        return cls(cameras, height, width, rgb="rgb" in pictures, depth="depth" in pictures)


@dataclass(frozen=True)
class EnvSpec:
    """What a policy needs to know of a task, and what a checkpoint stores of it."""

    env_id: str
    obs_mode: str
    control_mode: str
    sim_backend: str
    reward_mode: str
    state_dim: int
    action_low: tuple[float, ...]
    """per action dimension, in env units"""
    action_high: tuple[float, ...]
    max_episode_steps: int
    """env steps after which an episode is truncated"""
    image: ImageSpec | None = None
    """the pictures of an observation, where it has any"""
    still: StillAction = ()
    """what pads actions; empty in a checkpoint that is older than it"""
    headline: Headline = "success_once"
    """the score of a policy, which older checkpoints don't say"""
    env_module: str | None = None
    """Python module that registers the task, where neither this project nor its simulator does"""
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    """what envs are made with beside the fields above; plain values"""
    robot: str | None = None
    """its name, where the simulator has several and the checkpoint isn't older than this"""

    @property
    def action_dim(self) -> int:
        """Numbers in one action."""
        return len(self.action_low)


@dataclass(frozen=True)
class Objective:
    """The return that a stage maximises and that its V predicts."""

    gamma: float
    """discount per env step"""
    reward_mode: str
    terminate_on_success: bool

    def differences(self, other: Objective) -> str:
        """What is another return in `other`, in words; nothing where V of the one serves the other."""
        pairs = ((field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self))
        return ", ".join(f"{name} {own} instead of {theirs}" for name, own, theirs in pairs if own != theirs)
