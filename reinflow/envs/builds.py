"""Which geometry each env has, in tasks that draw it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Builds:
    """The geometry of envs whose task draws it: other pegs in every env, worker and process."""

    seed: int = 0
    first: int = 0
    """place of the first env among those of all workers and processes"""
    every: int | None = None
    """episodes after which all envs get another geometry; None keeps it, but in stock single envs, and 0 in all"""

    def seeds(self, num_envs: int, generation: int) -> list[int]:
        """One per env; `generation` counts how often they were built before."""
        from reinflow.runtime.rng import Stream, derived_seed

        return [derived_seed(self.seed, Stream.BUILD, self.first + i, generation) for i in range(num_envs)]
