"""Phi accrual failure detection (Hayashibara, Defago, Yared, Katayama, SRDS 2004): how surprising is a peer's silence?

Peers are heard at fairly regular intervals. From the intervals seen, phi is how many orders of magnitude of doubt the present silence adds up to:
phi = -log10(probability that a message comes even later). Under a jittery network the same silence means less, and the threshold stays the same.

Intervals are learned from heartbeats; any message at all ends a silence, so a busy peer is never suspected for late heartbeats. A node that was
itself stopped must doubt itself first (Lifeguard, Dadgar et al. 2017): `step` sees its own gap and forgives everybody that much. Opinion only: it
routes requests, and removes nobody.
"""

from __future__ import annotations

import math
from collections import deque

THRESHOLD = 8.0
_SAMPLES_MAX = 64
_DEVIATION_MIN_S = 0.25  # two quick peers on a quiet network would otherwise suspect each other over one slow turn


class FailureDetector:
    """What this node has heard of each peer, in its own monotonic seconds."""

    __slots__ = ("_beat", "_heard", "_intervals", "_stepped", "interval_s", "threshold")

    def __init__(self, interval_s: float, threshold: float = THRESHOLD) -> None:
        assert interval_s > 0 and threshold > 0
        self.interval_s = interval_s
        self.threshold = threshold
        self._intervals: dict[bytes, _Intervals] = {}
        self._beat: dict[bytes, float] = {}
        self._heard: dict[bytes, float] = {}
        self._stepped: float | None = None

    def heartbeat(self, node: bytes, now: float) -> None:
        """A heartbeat, or the answer to one, arrived."""
        last = self._beat.get(node)
        if last is not None and now - last <= 10 * self.interval_s:  # a longer gap was an outage, not an interval
            intervals = self._intervals.get(node)
            if intervals is None:
                intervals = self._intervals[node] = _Intervals()
            intervals.add(now - last)
        self._beat[node] = self._heard[node] = now

    def heard(self, node: bytes, now: float) -> None:
        """Any message arrived."""
        self._heard[node] = now

    def phi(self, node: bytes, now: float) -> float:
        """The doubt about a peer; 0 for one that was never heard of, about which nothing is known."""
        heard = self._heard.get(node)
        if heard is None:
            return 0.0
        intervals = self._intervals.get(node)
        mean, deviation = (self.interval_s, 0.0) if intervals is None else intervals.mean_and_deviation()
        deviation = max(deviation, _DEVIATION_MIN_S)
        late = (now - heard - mean) / deviation
        # The tail of the normal distribution by its logistic approximation, 1 / (1 + e^x); of a large x only the exponent matters.
        x = late * (1.5976 + 0.070566 * late * late)
        return x * math.log10(math.e) if x > 30 else math.log10(1 + math.exp(max(x, -700.0)))

    def step(self, now: float) -> None:
        """Called about once an interval: a gap in our own steps is forgiven to all peers, for we could not have heard them."""
        if self._stepped is not None:
            gap = now - self._stepped - 2 * self.interval_s
            if gap > 0:
                for node in self._heard:
                    self._heard[node] = min(now, self._heard[node] + gap)
        self._stepped = now

    def suspects(self, node: bytes, now: float) -> bool:
        """Whether the doubt passes the threshold."""
        return self.phi(node, now) > self.threshold


class _Intervals:
    """The last intervals between heartbeats of one peer, with their sums kept current: phi is asked for each peer in every step."""

    __slots__ = ("_seen", "_squares", "_sum")

    def __init__(self) -> None:
        self._seen: deque[float] = deque()
        self._sum = 0.0
        self._squares = 0.0

    def add(self, interval_s: float) -> None:
        """One more; the oldest goes when there are enough."""
        self._seen.append(interval_s)
        self._sum += interval_s
        self._squares += interval_s * interval_s
        if len(self._seen) > _SAMPLES_MAX:
            oldest = self._seen.popleft()
            self._sum -= oldest
            self._squares -= oldest * oldest

    def mean_and_deviation(self) -> tuple[float, float]:
        """Of at least one interval. Rounding can leave the variance a hair below zero."""
        mean = self._sum / len(self._seen)
        return mean, math.sqrt(max(0.0, self._squares / len(self._seen) - mean * mean))
