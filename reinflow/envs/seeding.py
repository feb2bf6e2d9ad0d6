"""How seeds become start states: one for a whole batch, or one per env that knows nothing of its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from reinflow.runtime.rng import Stream, derived_seed
from reinflow.types import Seed


def worker_seed(seed: int, worker: int) -> int:
    """What a simulator process makes of a batch's seed; the first one takes it as it is."""
    return derived_seed(seed, Stream.WORKER, worker) if worker else seed


SINGLE_STRIDE = 1_000_003
"""between the seeds of single envs that are reset with one seed"""


def single_seeds(seed: Seed, num_envs: int) -> Sequence[int | None]:
    """Of envs that know nothing of each other: their own, or of one seed `seed + SINGLE_STRIDE * i`, or none."""
    if isinstance(seed, int):
        return [seed + SINGLE_STRIDE * index for index in range(num_envs)]
    return [None] * num_envs if seed is None else seed


def generator_at(state: dict[str, Any]) -> np.random.Generator:
    """A generator of gymnasium's kind, where `bit_generator.state` says."""
    generator = np.random.Generator(np.random.PCG64())
    generator.bit_generator.state = state
    return generator


def batch_seed(seed: int | list[int]) -> int:
    """The one seed of what is drawn for all envs together."""
    return seed if isinstance(seed, int) else seed[0]


def drawn(draw: Callable[..., Tensor], shape: tuple[int, ...], generator: torch.Generator, seed: Seed) -> Tensor:
    """Random rows from the `generator`: all from where it is or from a seed, or each from its own seed alone."""
    if isinstance(seed, int):
        generator.manual_seed(seed)
    if seed is None or isinstance(seed, int):
        return draw(shape, generator=generator, device=generator.device)
    row = (1, *shape[1:])
    return torch.cat([draw(row, generator=generator.manual_seed(own), device=generator.device) for own in seed])


def seed_torch(seed: int, device: torch.device) -> None:
    """`torch.manual_seed` for one device; that of all kinds takes longer than drawing a start state."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


@contextmanager
def one_by_one(env: Any, seed: Seed) -> Iterator[None]:
    """Let a reset with a seed per env start each of them as a single env with that seed would.

    ManiSkill takes such a list, but draws most of a start state for all envs together, from the first seed.
    """
    if seed is None or isinstance(seed, int):
        yield
        return
    initialize = env._initialize_episode

    def initialize_each(env_idx: Int[Tensor, "n"], options: dict[str, Any]) -> None:
        everywhere = env.scene._reset_mask
        for index, own in enumerate(seed):
            seed_torch(own, env.device)
            env._episode_rng = env._batched_episode_rng[index]
            env.scene._reset_mask = torch.zeros_like(everywhere)
            env.scene._reset_mask[index] = True
            initialize(env_idx[index : index + 1], options)
        env.scene._reset_mask = everywhere
        env._episode_rng = env._batched_episode_rng[0]

    env._initialize_episode = initialize_each
    try:
        yield
    finally:
        del env._initialize_episode
