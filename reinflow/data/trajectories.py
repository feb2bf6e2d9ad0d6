"""Recorded episodes, whatever format they came in, and what is refused of them before anything trains."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reinflow.data.config import collect_command
from reinflow.data.pictures import PictureFile
from reinflow.errors import UserError
from reinflow.types import EnvSpec, ImageSpec

LENGTH_PERCENTILE = 95
ACTION_SLACK = 1e-4
"""of half of an action's range, for what was rounded"""


@dataclass
class Trajectory:
    """One episode; `obs` has a row more than there are actions."""

    obs: Float[Tensor, "t1 s"]
    """states"""
    actions: Float[Tensor, "t a"]
    success: Bool[Tensor, "t"]
    terminated: Bool[Tensor, "t"]
    truncated: Bool[Tensor, "t"]
    rewards: Float[Tensor, "t"] | None = None
    pictures: PictureFile | None = None
    """where those of every frame lie"""
    name: str = "an episode"
    """what errors call it"""

    def __len__(self) -> int:
        return len(self.actions)

    def under_rules(self, terminate_on_success: bool, terminates_on: str = "success") -> Trajectory:
        """The same episode in an env that does, or does not, end at success or failure.

        A recording goes on after either and may mark such a step as terminated or not. `terminate_on_success` cuts it
        after the first one. Otherwise only a failure ends it, in tasks that `terminates_on` failure: no value lies
        beyond a fall, while that of a last frame counts.
        """
        if terminate_on_success:
            ended = self.success | self.terminated
        elif terminates_on == "failure":
            ended = self.terminated & ~self.success
        else:
            ended = torch.zeros_like(self.terminated)
        end = int(ended.nonzero()[0]) + 1 if ended.any() else len(self)
        return replace(
            self,
            obs=self.obs[: end + 1],
            actions=self.actions[:end],
            success=self.success[:end],
            terminated=ended[:end],
            truncated=self.truncated[:end],
            rewards=None if self.rewards is None else self.rewards[:end],
            pictures=None if self.pictures is None else replace(self.pictures, frames=end + 1),
        )

    def check(self, where: str) -> None:
        """UserError for lengths that contradict each other and for what is no number; `where` is its file."""
        flags = {"success": self.success, "terminated": self.terminated, "truncated": self.truncated}
        columns = flags if self.rewards is None else {**flags, "rewards": self.rewards}
        check_lengths(f"{where}, {self.name}", self.obs, self.actions, columns)
        check_numbers(f"{where}, {self.name}", {"obs": self.obs, "actions": self.actions, "rewards": self.rewards})


@dataclass
class Demos:
    """Trajectories of one task."""

    trajectories: list[Trajectory]
    env_id: str
    control_mode: str
    max_episode_steps: int | None = None
    reward_mode: str | None = None
    """of `rewards`, where the recording says it"""

    def length_percentile(self, percent: float) -> float:
        """Env steps that `percent` of the episodes do not exceed."""
        return float(np.percentile([len(trajectory) for trajectory in self.trajectories], percent))

    def length_warning(self, max_episode_steps: int | None) -> str | None:
        """A sentence where the policy will have less time than the demonstrations took, else None."""
        longest = self.length_percentile(LENGTH_PERCENTILE)
        if max_episode_steps is None or longest <= max_episode_steps:
            return None
        return (
            f"{LENGTH_PERCENTILE}% of the demonstrations take up to {longest:.0f} env steps but an episode ends after "
            f"{max_episode_steps}: pass --max_episode_steps {round(longest * 1.2)} in every stage"
        )

    def check_fit(self, env: EnvSpec) -> None:
        """UserError where the task's observations or actions differ from the recorded ones in size or cameras."""
        first = self.trajectories[0]
        fix = f"collect them again with {collect_command(self.env_id, env.obs_mode)}"
        for name, wanted, found in (
            ("state", env.state_dim, first.obs.shape[1]),
            ("action", env.action_dim, first.actions.shape[1]),
        ):
            if wanted != found:
                raise UserError(
                    f"the demonstrations have {found} {name} dimensions but {self.env_id} has {wanted}: {fix}"
                )
        recorded = first.pictures.spec if first.pictures else None
        if recorded != env.image:
            raise UserError(
                f"the demonstrations show {described(recorded)} but {self.env_id} shows {described(env.image)}: {fix}"
            )
        self._check_bounds(env)

    def _check_bounds(self, env: EnvSpec) -> None:
        """UserError where an action is none of the task's: it would be executed otherwise than it was recorded."""
        low, high = torch.tensor(env.action_low), torch.tensor(env.action_high)
        slack = ACTION_SLACK * (high - low) / 2
        for trajectory in self.trajectories:
            outside = (trajectory.actions < low - slack) | (trajectory.actions > high + slack)
            if outside.any():
                row, dim = outside.nonzero()[0].tolist()
                raise UserError(
                    f"{trajectory.name} of the demonstrations, actions reach {trajectory.actions[row, dim]:.2f}, "
                    f"outside the [{low[dim]:g}, {high[dim]:g}] of dimension {dim} in {env.control_mode}: "
                    "collect them again or clip them"
                )


def described(image: ImageSpec | None) -> str:
    """Pictures in words."""
    if image is None:
        return "no pictures"
    return f"{'+'.join(image.names)} of {image.height}x{image.width} from {', '.join(image.cameras)}"


def check_lengths(where: str, obs: Tensor, actions: Tensor, columns: dict[str, Tensor]) -> None:
    """UserError unless observations have one row more than actions and each column one number per action."""
    steps = len(actions)
    if obs.dim() != 2 or actions.dim() != 2 or steps == 0 or len(obs) != steps + 1:
        raise UserError(
            f"{where} has obs {tuple(obs.shape)} and actions {tuple(actions.shape)}: "
            f"obs needs one row more than actions; collect it again"
        )
    for name, value in columns.items():
        if value.shape != (steps,):
            raise UserError(f"{where}, {name} has shape {tuple(value.shape)} for {steps} steps: collect it again")


def check_numbers(where: str, columns: dict[str, Tensor | None]) -> None:
    """UserError naming the first column with NaN or an infinite number."""
    for name, value in columns.items():
        if value is not None and not value.isfinite().all():
            raise UserError(f"{where}, {name} holds NaN or infinite numbers: remove the trajectory or collect it again")
