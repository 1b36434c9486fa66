"""Slots whose operation failed, and which pause before the next one: what a client does whom a node refuses as busy.

Pauses double with each failure in a row and are drawn by chance within half of that either way, as those of `dynamo.client` are; without them, a closed
loop would measure how fast a node refuses.
"""

from __future__ import annotations

import heapq
from itertools import count
from random import Random
from typing import Generic, TypeVar

PAUSE_S, PAUSE_S_MAX = 0.02, 1.0

C = TypeVar("C")


class Resting(Generic[C]):
    """Slots of connections by the time at which they go on. Times in nanoseconds."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, C, int]] = []
        self._sequence = count()
        self._random = Random(0)

    def add(self, now: int, failures: int, connection: C, slot: int) -> None:
        """A slot has failed so often in a row."""
        pause_s = min(PAUSE_S * 2 ** min(failures - 1, 16), PAUSE_S_MAX) * (0.5 + self._random.random())
        heapq.heappush(self._heap, (now + int(pause_s * 1e9), next(self._sequence), connection, slot))

    def rested(self, now: int | None = None) -> list[tuple[C, int]]:
        """Take out those that have rested by now, or all."""
        found = []
        while self._heap and (now is None or self._heap[0][0] <= now):
            found.append(heapq.heappop(self._heap)[2:])
        return found

    def wait_s(self, now: int) -> float:
        """How long until the next one has."""
        return max(0.0, (self._heap[0][0] - now) / 1e9) if self._heap else 1.0
