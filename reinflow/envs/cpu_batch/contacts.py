"""Contact impulses between pairs of bodies, and net impulses on bodies, over all scenes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from sapien import physx

from reinflow.envs.cpu_batch.buffers import HostBuffer

Body = Any
"""a SAPIEN rigid body component or articulation link"""


class ImpulseQuery:
    """One row per asked pair or body; `cuda_impulses` is (rows, 3) in N s, positive on the pair's first body."""

    def __init__(self, rows: int) -> None:
        self.cuda_impulses = HostBuffer((rows, 3))


class ContactReader:
    """Answers all queries from one pass over the scenes' contacts, repeated when the simulation has moved on.

    Contacts keep their values through a reset until the next step, as in stock ManiSkill.
    """

    def __init__(self) -> None:
        self._queries: list[ImpulseQuery] = []
        self._pair_rows: dict[tuple[Body, Body], list[tuple[np.ndarray, int, float]]] = defaultdict(list)
        self._body_rows: dict[Body, list[tuple[np.ndarray, int]]] = defaultdict(list)
        self._fresh = False

    def moved_on(self) -> None:
        """The simulation stepped."""
        self._fresh = False

    def add_pair_query(self, pairs: Sequence[tuple[Body, Body]]) -> ImpulseQuery:
        """A query with a row per pair: the impulse (x, y, z) on the first body from the second, in N s."""
        query = self._add_query(len(pairs))
        for row, (first, second) in enumerate(pairs):
            self._pair_rows[first, second].append((query.cuda_impulses.array, row, 1.0))
            self._pair_rows[second, first].append((query.cuda_impulses.array, row, -1.0))
        return query

    def add_body_query(self, bodies: Sequence[Body]) -> ImpulseQuery:
        """A query with a row per body: the sum of impulses (x, y, z) on it, in N s."""
        query = self._add_query(len(bodies))
        for row, body in enumerate(bodies):
            self._body_rows[body].append((query.cuda_impulses.array, row))
        return query

    def _add_query(self, rows: int) -> ImpulseQuery:
        query = ImpulseQuery(rows)
        self._queries.append(query)
        self._fresh = False
        return query

    def read(self, systems: Sequence[physx.PhysxCpuSystem]) -> None:
        """Fill the impulses of every query, unless they are up to date."""
        if self._fresh:
            return
        for query in self._queries:
            query.cuda_impulses.array.fill(0)
        for system in systems:
            for contact in system.get_contacts():
                self._add_contact(contact)
        self._fresh = True

    def _add_contact(self, contact: Any) -> None:
        first, second = contact.bodies
        pair_rows = self._pair_rows.get((first, second), ())
        first_rows, second_rows = self._body_rows.get(first, ()), self._body_rows.get(second, ())
        if not (pair_rows or first_rows or second_rows):
            return
        # np.sum adds in the same order but costs several times as much for the few points of a contact
        impulse = reduce(add, (point.impulse for point in contact.points), 0.0)
        for impulses, row, sign in pair_rows:
            impulses[row] += sign * impulse
        for impulses, row in first_rows:
            impulses[row] += impulse
        for impulses, row in second_rows:
            impulses[row] -= impulse
