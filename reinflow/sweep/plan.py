"""A sweep as a list of jobs: what each runs and where, before anything runs."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reinflow.commands import script
from reinflow.presets import ONLINE_PRESETS
from reinflow.run.compatibility import FLAGS_ADDED_LATER
from reinflow.storage.names import under_former_name
from reinflow.sweep.configs import Variant

SCRIPT = script("train_online_finetune")


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    variant: Variant
    seed: int
    preset: str
    flags: dict[str, Any]
    """everything that decides the result besides the preset"""
    log_dir: Path

    @property
    def id(self) -> str:
        """Equal for equal configurations, however they are spelt, so that nothing runs twice."""
        resolved = {name: str(value) for name, value in {**ONLINE_PRESETS[self.preset], **self.flags}.items()}
        for name, meant in FLAGS_ADDED_LATER.items():
            if resolved.get(name) == str(meant):
                del resolved[name]  # what a job of an older sweep did, whose id is without it
        if path := resolved.get("pretrained_path"):
            resolved["pretrained_path"] = under_former_name(path)  # as an older sweep spelt it
        return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def name(self) -> str:
        """Configuration, seed and identity: also the name of its folder and record."""
        return f"{self.variant.category}-{self.variant.name}-seed{self.seed}-{self.id}"

    @property
    def run_dir(self) -> Path:
        """Where the run writes, below the sweep's folder."""
        return self.log_dir / self.name

    def below(self, log_dir: Path) -> Job:
        """The same job in another folder."""
        return replace(self, log_dir=log_dir)

    def command(self, resume: bool = False, extra: tuple[str, ...] = ()) -> list[str]:
        """The command line; `resume` continues the run from its newest checkpoint. `extra` decides speed only."""
        if resume:
            return [sys.executable, str(SCRIPT), "--resume", str(self.run_dir), *extra]
        words = [sys.executable, str(SCRIPT), "--preset", self.preset]
        for flag, value in self.flags.items():
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no_{flag}")
            else:
                words += [f"--{flag}", str(value)]
        return [*words, "--runs_dir", str(self.log_dir), "--exp_name", self.name, "--overwrite", *extra]


def make_plan(
    variants: list[Variant], seeds: list[int], common: dict[str, Any], log_dir: Path, preset: str
) -> list[Job]:
    """Every variant with every seed, seeds outermost, so that an interrupted sweep has complete comparisons.

    `common` holds the flags of all jobs; a variant's own win. What equals the baseline, or another variant, is not run
    again: the first one stays.
    """
    jobs: dict[str, Job] = {}
    for seed in seeds:
        for variant in variants:
            job = Job(variant, seed, preset, {**common, **variant.flags, "seed": seed}, log_dir)
            jobs.setdefault(job.id, job)
    return list(jobs.values())
