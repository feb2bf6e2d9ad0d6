"""F3, F5, F16: damaged files, full and forbidden disks, and states that come back the same."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import re
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from reinflow.errors import UserError
from reinflow.policies import build_policy
from reinflow.runtime.rng import rng_state, set_rng_state
from reinflow.storage.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from reinflow.storage.resumable import FILES, MANIFEST, latest_training, load_state, save_training
from reinflow.training import keeper
from tests.faults.fuzz import fuzz
from tests.faults.runs import assert_same, fork, newest_step, prepared, stage, status, tail
from tests.test_checkpoint import ENV, SPEC


def damage(folder: Path, full: bool) -> str:
    """F3: cuts and flips in every file of a checkpoint, then arbitrary mutations of checkpoints."""
    cuts, flips, mutations = (20, 50, 2000) if full else (4, 8, 40)
    weights, draw = build_policy(SPEC).state_dict(), random.Random(0)
    for step in (1, 2):
        save_training(folder, step, Checkpoint(SPEC, ENV, weights, training={"step": step, "moments": torch.ones(9)}))
    save_checkpoint(folder / "best_model.safetensors", Checkpoint(SPEC, ENV, weights))
    newest = folder / "checkpoints" / "step_000000000002"
    tried = 0
    for path in (*(newest / name for name in (*FILES, MANIFEST)), folder / "best_model.safetensors"):
        whole = path.read_bytes()
        damaged = [whole[: draw.randrange(len(whole))] for _ in range(cuts)]
        for _ in range(flips):
            place = draw.randrange(len(whole))
            damaged.append(whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :])
        for data in damaged:
            path.write_bytes(data)
            tried += 1
            said: list[str] = []
            if path.parent == newest:
                assert (latest_training(folder, say=said.append).training or {})["step"] == 1, f"{path.name} was taken"
                assert path.name == MANIFEST or path.name in said[0], f"{path.name} is not named: {said[0]}"
            else:
                refused = ""
                try:
                    load_checkpoint(path)
                except UserError as error:
                    refused = str(error)
                assert path.name in refused, f"{path.name} was taken"
        path.write_bytes(whole)
    fuzzed = fuzz(folder / "best_model.safetensors", load_checkpoint, mutations // 2)
    sealed_again = fuzz(folder / "best_model.safetensors", load_checkpoint, mutations // 2, resealed)
    noticed = f"{tried} cuts and flips: all noticed, named and stepped over"
    return f"{noticed}; {mutations // 2} mutations: {fuzzed}; {mutations // 2} with a forged seal: {sealed_again}"


def resealed(data: bytes) -> bytes:
    """What a forger would do: fit the seal to the mutated bytes, so that the parsers behind it are tested too."""
    found = re.search(rb"sha256\\\\?\": \\\\?\"([0-9a-f]{64})", data)
    if found is None:
        return data
    start, end = found.span(1)
    blank = data[:start] + b"0" * 64 + data[end:]
    return data[:start] + hashlib.sha256(blank).hexdigest().encode() + data[end:]


def disks(folder: Path, full: bool) -> str:
    """F5: full, read-only and forbidden disks, by refused system calls, and a real limit on the size of files."""
    prepared(folder)
    assert fork(stage(3, folder, "whole"), folder / "whole.log").wait() == 0, tail(folder / "whole.log")
    kinds = {"full": errno.ENOSPC, "quota": errno.EDQUOT, "read-only": errno.EROFS, "no permission": errno.EACCES}
    counted = []
    for kind, number in kinds.items() if full else [("full", errno.ENOSPC)]:
        name = f"disk-{number}"
        assert fork(refusing(stage(3, folder, name), number), folder / f"{name}.log").wait() == 0, f"{kind}: " + tail(
            folder / f"{name}.log"
        )
        counted.append(f"{kind} {status(folder / 'runs' / name)['write_failures']}")
        assert status(folder / "runs" / name)["write_failures"] > 0
        assert_same(folder, "whole", name)

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
        stage(3, folder, "limited")()

    assert fork(limited, folder / "limited.log").wait() == 0, tail(folder / "limited.log")
    run = folder / "runs" / "limited"
    assert (status(run)["state"], newest_step(run)) == ("done", -1)
    assert status(run)["write_failures"] > 0
    return (
        f"training went on bit-equal, earlier states load; failures counted: {', '.join(counted)}, file limit "
        f"{status(run)['write_failures']}"
    )


def refusing(work: Callable[[], None], number: int) -> Callable[[], None]:
    """`work` on a disk that refuses everything for a while and then recovers."""

    def refused() -> None:
        mark, plain, marks = keeper.Keeper.mark, (os.open, os.write), 0

        def refuse(*arguments: object, **options: object) -> int:
            if arguments and isinstance(arguments[0], int) and arguments[0] in (1, 2):
                return plain[1](*arguments, **options)  # type: ignore[arg-type]
            raise OSError(number, os.strerror(number))

        def counted(self: keeper.Keeper, step: int) -> None:
            nonlocal marks
            marks += 1
            os.open, os.write = (refuse, refuse) if 3 <= marks <= 5 else plain  # type: ignore[assignment]
            mark(self, step)

        keeper.Keeper.mark = counted  # type: ignore[method-assign]
        work()

    return refused


def round_trips(folder: Path, full: bool) -> str:
    """F16: save, load, save: the same manifest; and every random stream goes on."""
    count = 200 if full else 10
    generator = torch.Generator().manual_seed(0)
    for index in range(count):
        weights = {
            name: torch.randn(value.shape, generator=generator)
            for name, value in build_policy(SPEC).state_dict().items()
        }
        torch.rand(index % 7)
        np.random.rand(index % 5)
        random.random()
        moments = {
            place: {"step": torch.tensor(float(index)), "avg": torch.randn(3, generator=generator)}
            for place in range(3)
        }
        training = {"adam": moments, "lr": random.random(), "best": None, "first": float("nan"), "rng": rng_state()}
        first = save_training(folder / "a", 1, Checkpoint(SPEC, ENV, weights, meta={"step": 1}, training=training))
        loaded = load_state(first)
        second = save_training(folder / "b", 1, loaded)
        manifests = [(path / MANIFEST).read_bytes() for path in (first, second)]
        assert manifests[0] == manifests[1], f"state {index} came back as another one"
        expected = draws()
        set_rng_state((loaded.training or {})["rng"])
        assert draws() == expected, f"the random streams of state {index} did not go on"
    return f"{count} states: identical manifests, 3 random streams equal for 1,000 draws"


def draws() -> list[list[float]]:
    return [[random.gauss(0, 1) for _ in range(1000)], np.random.randn(1000).tolist(), torch.randn(1000).tolist()]
