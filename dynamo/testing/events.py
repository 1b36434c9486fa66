"""Virtual time: an event heap and a network of faulty links. Deterministic: one seeded random generator, ties broken by insertion order."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32


@dataclass(slots=True)
class Faults:
    """Probabilities and times (virtual seconds) of what goes wrong; drawn anew for each seed."""

    drop: float = 0.0  # share of messages lost
    duplicate: float = 0.0
    delay_mean_s: float = 0.001
    slow: float = 0.0  # share of messages that take a hundred times as long
    crash_interval_s: float = 0.0  # mean time between crashes of some node; 0 = none
    blackout: float = 0.0  # share of crashes that take all nodes at once
    cut_interval_s: float = 0.0  # mean time between cuts of some link
    outage_s: float = 1.0  # mean length of either
    commit_s: float = 0.002
    commit_failure: float = 0.0  # share of groups that fail

    @classmethod
    def draw(cls, rng: random.Random) -> Faults:
        """A random subset, each in a random strength."""

        def some(chance: float, low: float, high: float) -> float:
            return rng.uniform(low, high) if rng.random() < chance else 0.0

        return cls(
            drop=some(0.5, 0.0, 0.1),
            duplicate=some(0.3, 0.0, 0.1),
            delay_mean_s=rng.choice((0.0005, 0.002, 0.02)),
            slow=some(0.4, 0.0, 0.05),
            crash_interval_s=some(0.7, 0.5, 3.0),
            blackout=some(0.4, 0.1, 0.5),
            cut_interval_s=some(0.5, 0.5, 3.0),
            outage_s=rng.choice((0.1, 0.5, 2.0)),
            commit_s=rng.choice((0.0005, 0.005, 0.05)),
            commit_failure=some(0.2, 0.0, 0.05),
        )


@dataclass(slots=True)
class World:
    """The clock, the heap and the links. `trace` is a running hash of everything that was delivered: same seed, same trace."""

    seed: int
    faults: Faults
    rng: random.Random
    now: float = 0.0
    trace: int = 0
    delivered: int = 0
    healed: bool = False
    log: list[str] | None = None
    _heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = field(default_factory=list)
    _order: int = 0
    _cut: set[tuple[Any, Any]] = field(default_factory=set)

    def at(self, time: float, action: Callable[..., None], *arguments: Any) -> None:
        """Run the action at that virtual time."""
        self._order += 1
        heapq.heappush(self._heap, (max(time, self.now), self._order, action, arguments))

    def after(self, delay_s: float, action: Callable[..., None], *arguments: Any) -> None:
        """Run the action after that long."""
        self.at(self.now + delay_s, action, *arguments)

    def run(self, until: float) -> None:
        """Run events up to that time."""
        while self._heap and self._heap[0][0] <= until:
            self.now, _, action, arguments = heapq.heappop(self._heap)
            action(*arguments)
        self.now = max(self.now, until)

    def note(self, *what: object) -> None:
        """Fold an event into the trace, and keep it readable if a log is asked for."""
        line = f"{self.now:.6f} {' '.join(map(str, what))}"
        self.trace = crc32(line.encode(), self.trace)
        if self.log is not None:
            self.log.append(line)

    def cut(self, one: object, other: object) -> None:
        """Nothing passes between the two, in either direction, until `join`."""
        self._cut |= {(one, other), (other, one)}

    def join(self, one: object, other: object) -> None:
        """Mend the link."""
        self._cut -= {(one, other), (other, one)}

    def carry(self, source: object, destination: object, once: bool, deliver: Callable[..., None], *arguments: Any) -> None:
        """Carry a message over the link, as far as its faults let it. `once`: it may be lost or late, but not come twice."""
        faults, rng = self.faults, self.rng
        if not self.healed:
            if (source, destination) in self._cut or rng.random() < faults.drop:
                return
            if not once and rng.random() < faults.duplicate:
                self.after(rng.expovariate(1 / faults.delay_mean_s), deliver, *arguments)
        delay = rng.expovariate(1 / faults.delay_mean_s)
        if not self.healed and rng.random() < faults.slow:
            delay *= 100
        self.after(delay, deliver, *arguments)
