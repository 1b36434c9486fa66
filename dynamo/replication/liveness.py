"""Local opinion about peers: who is worth asking right now.

Three kinds of evidence: the driver has no connection to the peer and cannot make one; the phi accrual detector finds its silence too long; it let
a request go unanswered for `suspect_after_s` without sending anything else meanwhile. The peer is up again with the first message it sends;
heartbeats go on to suspected peers, so it will. The opinion routes requests, it never removes a member and no promise depends on it (P9).
"""

from __future__ import annotations

from dynamo.membership.failure_detector import FailureDetector


class Liveness:
    """What this node has heard of each peer, in its own monotonic time."""

    __slots__ = ("_disconnected", "_heard", "_suspected", "detector", "version")

    def __init__(self, heartbeat_interval_s: float) -> None:
        self.detector = FailureDetector(heartbeat_interval_s)
        self._heard: dict[bytes, float] = {}
        self._disconnected: set[bytes] = set()
        self._suspected: set[bytes] = set()
        self.version = 0  # grows with every change of opinion

    def heard(self, node: bytes, now: float) -> None:
        """A message of the peer arrived."""
        self._heard[node] = now
        self.detector.heard(node, now)
        if self._suspected and node in self._suspected:
            self._suspected.discard(node)
            self.version += 1

    def silent_since(self, node: bytes, since: float) -> bool:
        """Whether nothing has been heard of the peer since that time."""
        return self._heard.get(node, -1.0) < since

    def suspect(self, node: bytes) -> None:
        """The peer left a request unanswered."""
        if node not in self._suspected:
            self._suspected.add(node)
            self.version += 1

    def connected(self, node: bytes) -> None:
        """The driver has a connection to the peer."""
        if not self.up(node):
            self._disconnected.discard(node)
            self._suspected.discard(node)
            self.version += 1

    def disconnected(self, node: bytes) -> None:
        """The driver has no connection to the peer and could not make one."""
        if node not in self._disconnected:
            self._disconnected.add(node)
            self.version += 1

    def up(self, node: bytes) -> bool:
        """Whether the peer is worth asking."""
        return node not in self._disconnected and node not in self._suspected

    def step(self, nodes: list[bytes], now: float) -> None:
        """Once a heartbeat interval: suspect those whose silence has become too long."""
        self.detector.step(now)
        for node in nodes:
            if self.up(node) and self.detector.suspects(node, now):
                self.suspect(node)
