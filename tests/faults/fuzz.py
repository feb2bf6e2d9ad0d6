"""Mutated files for the loaders: flipped, cut, repeated and overwritten bytes, drawn by hypothesis.

An example is fine when the loader reads it or says what is wrong in a UserError, soon and in little memory.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from reinflow.errors import UserError

MOST_SECONDS = 5.0
"""of CPU time for one file"""
MOST_MEMORY = 512 * 2**20
"""bytes that reading small files may add to the process"""
INTERESTING = (b"\x00" * 8, b"\xff" * 8, b"\xff\xff\xff\x7f", b"\x00\x00\x00\x01", b"\x01" * 64)


KINDS = ("flip", "byte", "words", "cut", "drop", "repeat")
REACHES = (2**40, 4096, 512)
"""early bytes hold a file's structure and are hit more often"""

Mutation = tuple[str, int, int, int]
mutations = st.lists(
    st.tuples(st.sampled_from(KINDS), st.sampled_from(REACHES), st.integers(0, 2**40), st.integers(0, 255)),
    min_size=1,
    max_size=8,
)


def mutated(whole: bytes, changes: list[Mutation]) -> bytes:
    """A damaged copy."""
    data = bytearray(whole)
    for kind, reach, draw, value in changes:
        if not data:
            break
        place = draw % min(len(data), reach)
        if kind == "flip":
            data[place] ^= 1 << value % 8
        elif kind == "byte":
            data[place] = value
        elif kind == "words":
            word = INTERESTING[value % len(INTERESTING)]
            data[place : place + len(word)] = word
        elif kind == "cut":
            del data[place:]
        else:
            piece = data[place : place + 1 + value % 64]
            data[place : place + len(piece)] = b"" if kind == "drop" else piece * 2
    return bytes(data)


def fuzz(path: Path, load: Callable[[Path], object], count: int, repair: Callable[[bytes], bytes] = bytes) -> str:
    """Put `count` mutations of the file at `path` before `load`; `repair` may mend what a checksum would notice."""
    whole, tally = path.read_bytes(), {"refused": 0, "read": 0}
    before, slowest = peak(), 0.0

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(mutations)
    def one(changes: list[Mutation]) -> None:
        nonlocal slowest
        path.write_bytes(repair(mutated(whole, changes)))
        began = time.process_time()
        try:
            load(path)
            tally["read"] += 1
        except UserError:
            tally["refused"] += 1
        slowest = max(slowest, time.process_time() - began)

    try:
        one()
    finally:
        path.write_bytes(whole)
    grown = peak() - before
    assert slowest < MOST_SECONDS, f"a file took {slowest:.1f} s"
    assert grown < MOST_MEMORY, f"reading took {grown / 2**20:.0f} MiB"
    return f"{tally['refused']} refused, {tally['read']} read, slowest {slowest * 1e3:.0f} ms, +{grown / 2**20:.0f} MiB"


def peak() -> int:
    """Most memory that this process held so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
