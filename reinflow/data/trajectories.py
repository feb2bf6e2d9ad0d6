"""Recorded episodes, whatever format they came in, and what is refused of them before anything trains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reinflow.data.config import collect_command
from reinflow.data.pictures import PictureFile
from reinflow.errors import UserError
from reinflow.specs import EnvSpec, ImageSpec

LENGTH_PERCENTILE = 95
CONTACTS_BEHIND = {("Ant", 111): 27, ("Humanoid", 376): 45}
"""of task and recorded numbers how many come first that every version observes, positions and velocities"""
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
    seed: int | None = None
    """what starts it again, where that is known"""

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
    sim_backend: str | None = None
    """simulator of the recording, where that says it"""
    robot: str | None = None
    marks_success: bool = True
    """whether successes are recorded"""
    source: str = "the demonstrations"
    """where they came from, for sentences"""

    def split(self, share: float) -> tuple[Demos, Demos]:
        """Those to learn from and, from the last episode back, a `share` of at least one that is held out.

        UserError where either would be empty; all are learned from where the share is 0.
        """
        if not 0 <= share < 1:
            raise UserError(f"a share of {share} can't be held out: pass a number from 0 to below 1")
        held = max(round(share * len(self.trajectories)), 1) if share else 0
        kept = len(self.trajectories) - held
        if not kept:
            raise UserError(f"{self.source} holds one episode, which can't be learned from and held out: collect more")
        first, last = self.trajectories[:kept], self.trajectories[kept:]
        return replace(self, trajectories=first), replace(self, trajectories=last)

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

    def fit_(self, env: EnvSpec) -> None:
        """Clip actions to the task's bounds, in place, and say what else differs between recording and task.

        UserError where observations or actions differ in size, or pictures in cameras.
        """
        self._leave_out_contacts_(env)
        self._refuse_other_sizes(env)
        for sentence in (*self._other_circumstances(env), *self._clip_(env)):
            print(f"note: {sentence}")

    def _leave_out_contacts_(self, env: EnvSpec) -> None:
        """Older versions of two tasks of gymnasium observe more behind what newer ones can be asked for alone."""
        recorded = self.trajectories[0].obs.shape[1]
        if CONTACTS_BEHIND.get((env.env_id.split("-")[0], recorded)) != env.state_dim:
            return
        for one in self.trajectories:
            one.obs = one.obs[:, : env.state_dim]
        print(
            f"note: the last {recorded - env.state_dim} of {recorded} recorded numbers, which tell of forces and "
            f"masses, are left out, as {env.env_id} does not observe them"
        )

    def _refuse_other_sizes(self, env: EnvSpec) -> None:
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

    def _other_circumstances(self, env: EnvSpec) -> Iterator[str]:
        """Sentences on a robot or simulator that is not the task's."""
        if None not in (self.robot, env.robot) and self.robot != env.robot:
            yield f"the demonstrations are of the robot {self.robot} and {env.env_id} has {env.robot}"
        kinds = [(name or "").replace("physx_cpu_batched", "physx_cpu") for name in (self.sim_backend, env.sim_backend)]
        if all(kind.startswith("physx") for kind in kinds) and kinds[0] != kinds[1]:
            yield (
                f"the demonstrations were recorded on {kinds[0]} and {env.env_id} runs on {kinds[1]}, where contacts "
                "differ a little: if the clone fails, replay them there with collect_demos.py --replay"
            )

    def _clip_(self, env: EnvSpec) -> Iterator[str]:
        """Bring every action inside the bounds, as ManiSkill's normalised controllers do when they execute it.

        A sentence where that changed one by more than rounding.
        """
        low, high = torch.tensor(env.action_low), torch.tensor(env.action_high)
        slack = ACTION_SLACK * (high - low) / 2
        count, farthest = 0, (0.0, 0.0, 0)
        for trajectory in self.trajectories:
            clipped = torch.minimum(torch.maximum(trajectory.actions, low), high)
            beyond = (trajectory.actions - clipped).abs() - slack
            count += int((beyond > 0).any(dim=1).sum())
            row, dim = divmod(int(beyond.argmax()), len(low))
            farthest = max(farthest, (beyond[row, dim].item(), trajectory.actions[row, dim].item(), dim))
            trajectory.actions = clipped
        if count:
            _, value, dim = farthest
            steps = sum(map(len, self.trajectories))
            yield (
                f"{count} of {steps} recorded actions were outside {env.control_mode}'s bounds and are clipped: "
                f"up to {value:.2f} in dimension {dim}, whose bounds are [{low[dim]:g}, {high[dim]:g}]"
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
