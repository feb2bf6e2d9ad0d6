"""How many envs a core deserves: a step of the batched simulator has a fixed cost that its envs share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

SHARE = 0.1
"""of a step that its fixed cost may be"""
WORTH_A_HINT = 1.3
"""times as many env steps per second, from which a user is told"""
FEWEST_DECISIONS = 4
"""of an env in an iteration: with fewer, advantages see next to nothing of what follows"""


@dataclass(frozen=True)
class StepCost:
    """Seconds of one env step of all envs of a process: `fixed + per_env * envs`."""

    fixed: float
    per_env: float

    @classmethod
    def fitted(cls, seconds: Mapping[int, float]) -> StepCost:
        """By least squares of the relative errors, to seconds by number of envs."""
        envs, found = np.array(list(seconds)), np.array(list(seconds.values()))
        columns = np.stack((np.ones(len(envs)), envs), 1) / found[:, None]
        fixed, per_env = np.linalg.lstsq(columns, np.ones(len(envs)), rcond=None)[0]
        return cls(max(float(fixed), 0.0), float(per_env))

    def speed(self, envs: int, cores: int) -> float:
        """Env steps per second of `envs` envs spread over processes, one per core."""
        return envs / (self.fixed + self.per_env * envs / cores)

    def enough(self) -> int:
        """Envs of a core whose fixed cost is at most `SHARE` of a step, rounded up to a power of two."""
        least = self.fixed / self.per_env * (1 / SHARE - 1)
        return 2 ** int(np.ceil(np.log2(max(least, 1.0))))


PICK_CUBE = StepCost(fixed=3.0e-3, per_env=0.437e-3)
"""PickCube-v1, `--ik pin`, one core of an AMD EPYC: 2,069, 2,206 and 2,232 env steps/s with 64, 128 and 256 envs
(docs/benchmarks.md)"""


def hint_at_more_envs(num_envs: int, rollout_steps: int, cores: int, cost: StepCost = PICK_CUBE) -> str | None:
    """A sentence where the cores of a machine would simulate much faster with more envs in fewer decisions."""
    more = cores * cost.enough()
    gain = cost.speed(more, cores) / cost.speed(num_envs, cores)
    if gain < WORTH_A_HINT or num_envs >= more:
        return None
    decisions = max(-(-num_envs * rollout_steps // more), FEWEST_DECISIONS)
    return (
        f"{num_envs} envs are {num_envs / cores:.0f} for each of {cores} simulator processes, which could make about "
        f"{gain:.1f} times as many env steps/s with --num_envs {more} --rollout_steps {decisions}; "
        "python -m benchmarks cores measures this machine"
    )
