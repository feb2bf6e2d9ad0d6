"""The random generators of a process, as data."""

from __future__ import annotations

import random
from enum import IntEnum
from typing import Any, cast

import numpy as np
import torch


class Stream(IntEnum):
    """What a seed is used for, where several things of one run draw from it."""

    WORKER = 1
    RANK = 2
    BUILD = 3
    NOISE = 4
    GROUP = 5


def derived_seed(seed: int, stream: Stream, *place: int) -> int:
    """31 bits that depend on all of these; neighbours, and the same place of another stream, have nothing in common."""
    return int(np.random.SeedSequence((seed % 2**64, stream, *place)).generate_state(1)[0]) >> 1


def seed_globals(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """State of the global Python, NumPy and torch generators, as tensors and plain values."""
    return {
        "python": random.getstate(),
        "numpy": numpy_state(np.random.mtrand._rand),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Continue the random sequences of `rng_state`; generators of GPUs that aren't here are left out."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    set_numpy_state_(state["numpy"], np.random.mtrand._rand)
    torch.set_rng_state(state["torch"].cpu())
    for index, saved in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(saved.cpu(), index)


def numpy_state(*generators: np.random.RandomState) -> dict[str, Any]:
    """States of several generators."""
    states = [cast(tuple[Any, ...], generator.get_state(legacy=True)) for generator in generators]
    keys = np.stack([keys for _, keys, *_ in states]).view(np.int32)
    return {"keys": torch.from_numpy(keys), "rest": [[algorithm, *rest] for algorithm, _, *rest in states]}


def set_numpy_state_(state: dict[str, Any], *generators: np.random.RandomState) -> None:
    """Put generators back where `numpy_state` found them, in the same order."""
    keys = state["keys"].cpu().numpy().view(np.uint32)
    for generator, own, (algorithm, *rest) in zip(generators, keys, state["rest"], strict=True):
        generator.set_state((algorithm, own, *rest))
