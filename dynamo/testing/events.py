"""Virtual time: one event heap, one clock, one trace. Nothing here knows what a node is.

Deterministic: ties are broken by the order of insertion, and every random draw comes from a stream seeded by the run's seed and the stream's
name, so that a new draw in one part does not shift what another part sees. There are no fixed ticks: time jumps from event to event.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any
from zlib import crc32

_MASK = (1 << 64) - 1
LOG_LINES_MAX = 1_000_000  # of a readable trace; the oldest go first


class World:
    """The clock, the heap and the running hash of all that happened: same seed, same commit, same trace."""

    __slots__ = ("_heap", "_order", "_trace", "delivered", "forced", "healed", "log", "now", "seed")

    def __init__(self, seed: int, *, log: bool = False, forced: dict[str, float] | None = None) -> None:
        """`forced`: probabilities of named fault points, in place of the ones drawn."""
        self.seed = seed
        self.now = 0.0
        self.delivered = 0
        self.healed = False
        self.forced = forced or {}
        self.log: deque[str] | None = deque(maxlen=LOG_LINES_MAX) if log else None
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self._trace = crc32(str(seed).encode())

    def stream(self, name: str) -> random.Random:
        """A random generator of its own for one part of the run."""
        return random.Random(f"{self.seed}/{name}")

    def fault_point(self, name: str, probability: float, rng: random.Random) -> bool:
        """Whether the named fault happens here and now: never after healing, by the forced probability if there is one."""
        if self.healed:
            return False
        return rng.random() < self.forced.get(name, probability)

    def at(self, time: float, action: Callable[..., None], *arguments: Any) -> None:
        """Run the action at that virtual time."""
        self._order = order = self._order + 1
        heappush(self._heap, (time if time > self.now else self.now, order, action, arguments))

    def after(self, delay_s: float, action: Callable[..., None], *arguments: Any) -> None:
        """Run the action after that long."""
        self._order = order = self._order + 1
        heappush(self._heap, (self.now + delay_s, order, action, arguments))

    def push(self, time: float, action: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        """The same as `at`, of a time that is not past: what runs with every message."""
        self._order = order = self._order + 1
        heappush(self._heap, (time, order, action, arguments))

    def run(self, until: float) -> None:
        """Run events up to that time."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, action, arguments = heappop(heap)
            action(*arguments)
        self.now = max(self.now, until)

    def fold(self, a: int, b: int) -> None:
        """Fold an event into the trace: two integers and the time. Cheap, for it runs with every message."""
        self._trace = ((self._trace ^ hash(self.now) ^ (a << 17)) * 0x100000001B3 + b) & _MASK  # hashes of numbers do not depend on the hash seed

    def fold_bytes(self, data: bytes) -> None:
        """Fold bytes into the trace."""
        self.fold(crc32(data), len(data))

    def note(self, *what: object) -> None:
        """Fold a rare event into the trace, and keep it readable if a log is asked for."""
        text = " ".join(map(str, what))
        self.fold_bytes(text.encode())
        if self.log is not None:
            self.log.append(f"{self.now:11.6f} {text}")

    @property
    def trace_hash(self) -> str:
        """16 hex digits over everything that happened so far."""
        return f"{self._trace:016x}"
