"""Deadlines of pending requests: one FIFO queue per length of time-out.

Every request waits for one of a few fixed times, so the queue of one length is sorted by being appended to: adding and expiring are O(1) and
nothing is ever removed from the middle. A request that is finished leaves its entry behind; it is skipped when it comes up.
Lengths are rounded up to a coarse scale, so that clients with odd time-outs cannot make a queue each.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Container


class Deadlines:
    """Queues of (deadline, request id) by length of wait, in seconds."""

    __slots__ = ("_queues",)

    def __init__(self) -> None:
        self._queues: dict[float, deque[tuple[float, int]]] = {}

    def add(self, now: float, delay_s: float, request_id: int) -> None:
        """Wake the request up after `delay_s`, rounded up by at most a quarter."""
        length = _EXACT.get(delay_s) or _rounded(delay_s)
        queue = self._queues.get(length)
        if queue is None:
            queue = self._queues[length] = deque()
        queue.append((now + length, request_id))

    def due(self, now: float) -> list[int]:
        """Take out what is due, in the order of its deadlines within each length."""
        found: list[int] = []
        for queue in self._queues.values():
            while queue and queue[0][0] <= now:
                found.append(queue.popleft()[1])
        return found

    def next(self, pending: Container[int]) -> float | None:
        """The earliest deadline of a request still pending."""
        earliest: float | None = None
        for queue in self._queues.values():
            while queue and queue[0][1] not in pending:
                queue.popleft()
            if queue and (earliest is None or queue[0][0] < earliest):
                earliest = queue[0][0]
        return earliest


_EXACT: dict[float, float] = {}


def _rounded(delay_s: float) -> float:
    """The next of four steps to each power of two milliseconds; remembered for the few lengths that recur."""
    milliseconds = max(1.0, delay_s * 1000.0)
    power = 2.0 ** math.floor(math.log2(milliseconds))
    length = math.ceil(milliseconds / power * 4) / 4 * power / 1000.0
    if len(_EXACT) < 1024:
        _EXACT[delay_s] = length
    return length
