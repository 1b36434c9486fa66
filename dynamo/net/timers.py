"""Timers for the rare events of the network side: HELLO deadlines, dialling, backing off. Requests have their own wheel in the replica."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from math import inf

Action = Callable[[float], None]


class Timers:
    """Actions by time. An action cannot be cancelled; it looks whether it is still wanted."""

    __slots__ = ("_heap", "_sequence")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Action]] = []
        self._sequence = count()

    @property
    def next(self) -> float:
        """When the next action is due; infinity if there is none."""
        return self._heap[0][0] if self._heap else inf

    def at(self, when: float, action: Action) -> None:
        """Call `action(now)` once `when` is reached."""
        heapq.heappush(self._heap, (when, next(self._sequence), action))

    def run(self, now: float) -> None:
        """Call what is due."""
        while self._heap and self._heap[0][0] <= now:
            heapq.heappop(self._heap)[2](now)
