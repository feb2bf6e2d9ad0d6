"""Whether a task that nobody has tried runs in several CPU scenes at once, and as it does in stock single envs."""

from __future__ import annotations

import functools
import traceback
from contextlib import closing
from dataclasses import replace

import torch
from torch import Tensor

from reinflow.envs.config import CompleteEnvConfig
from reinflow.envs.cpu_batch import BACKEND
from reinflow.envs.maniskill import ManiSkillEnv
from reinflow.errors import UserError

SEEDS, STEPS = [1, 2], 3
"""episodes that are compared, one per scene, and env steps of each"""


@functools.cache
def what_fails(config: CompleteEnvConfig) -> str | None:
    """What keeps the task from batched scenes, as the end of a sentence; None where nothing does.

    The two episodes of a batch have to be those of two stock single envs, to the bit, and the reset of one scene must
    leave the other as it is.
    """
    config = replace(config, obs_mode="state")
    try:
        with closing(ManiSkillEnv(config, len(SEEDS), BACKEND)) as env:
            batched = episode(env, SEEDS)
            before = batched[-1][0, :-1]
            after = env.reset(env_idx=torch.tensor([1]))["state"][0]
    except UserError:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        text = " ".join(str(error).split())[:200]
        place = f"in {last.filename}, line {last.lineno}"
        return f"does not run in several scenes at once ({type(error).__name__}: {text}, {place})"
    if not torch.equal(before, after):
        return "changes running envs when it resets others"
    for index, seed in enumerate(SEEDS):
        with closing(ManiSkillEnv(config, 1, "physx_cpu")) as env:
            alone = episode(env, [seed], slice(index, index + 1))
        if any(not torch.equal(mine[index], other[0]) for mine, other in zip(batched, alone, strict=True)):
            return "does something else in several scenes than in one"
    return None


def episode(env: ManiSkillEnv, seeds: list[int], rows: slice = slice(None)) -> list[Tensor]:
    """Frames with the rewards that led to them, under the same random actions of the scenes in `rows`."""
    generator = torch.Generator().manual_seed(0)
    low, high = torch.tensor(env.spec.action_low), torch.tensor(env.spec.action_high)
    env.rebuild(seeds)
    seen = [torch.nn.functional.pad(env.reset(seed=seeds)["state"], (0, 1))]
    for _ in range(STEPS):
        action = low + (high - low) * torch.rand(len(SEEDS), len(low), generator=generator)
        step = env.step(action[rows])
        seen.append(torch.cat((step.obs["state"], step.reward[:, None]), 1))
    return seen
