"""Scans while faults strike, and what they must show: nothing twice, nothing that nobody wrote, and every key that was there all along.

A key was there all along if a write of it was acknowledged by so many owners that any `pr` of them meet one, before the scan began, if nobody began to
delete it before the scan ended, if no disk lost its copies, and if the ring stood still.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynamo.client.scan import Scan
from dynamo.client.verbs import Place
from dynamo.errors import DynamoError
from dynamo.testing.checkers import Violation
from dynamo.testing.client import SimulatedClient
from dynamo.testing.history import ACKNOWLEDGED, REFUSED

if TYPE_CHECKING:
    from dynamo.client.core import RetryPolicy
    from dynamo.testing.simulator import SimulatedCluster

_CLIENT = 1000  # its number
_PAUSE_S, _TIMEOUT_S = 1.5, 3.0
_TRIES = 8  # of pages that fail, before a scan is given up


class Scanner:
    """One client that scans one bucket after another, until all is healed."""

    def __init__(self, cluster: SimulatedCluster, policy: RetryPolicy) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.rng = self.world.stream("scanner")
        self.client = SimulatedClient(cluster, _CLIENT, policy)
        self.finished = 0  # scans that came to their end
        self._buckets = sorted({b"default", *cluster.definition.buckets})
        self.world.after(self.rng.expovariate(1 / _PAUSE_S), self._begin)

    def _begin(self) -> None:
        if self.world.healed:
            return
        bucket = b"strict" if self.rng.random() < 0.5 else self.rng.choice(self._buckets)
        n = self.cluster.definition.bucket(bucket).n or self.cluster.definition.n
        r, pr = (None, None) if bucket == b"strict" else (self.rng.choice((None, 1, n)), self.rng.choice((None, 0, 1)))
        _Scan(self, bucket, r, pr).go_on()

    def ended(self, whole: bool) -> None:
        """A scan is over; the next one follows."""
        self.finished += whole
        self.world.after(self.rng.expovariate(1 / _PAUSE_S), self._begin)


class _Scan:
    """One scan under way: page after page, taken up again by cursor now and then, as another process would."""

    def __init__(self, scanner: Scanner, bucket: bytes, r: int | None, pr: int | None) -> None:
        self.scanner = scanner
        self.place = Place(bucket)
        self.counts = r, pr
        self.began = scanner.world.now
        self.keys: list[bytes] = []
        self.failures = 0
        self.scan = Scan(self.place, b"", None, None, r, pr)

    def go_on(self) -> None:
        """Ask for the next page."""
        self.scanner.client.run(self.scan.page(), _TIMEOUT_S, self._answered)

    def _answered(self, results: Any, error: DynamoError | None) -> None:
        if error is not None:
            self.failures += 1
            if self.failures >= _TRIES or self.scanner.world.healed:
                self.scanner.ended(False)
            else:
                self.scanner.world.after(0.3, self.go_on)
            return
        self.keys += [result.key for result in results if result.error is None]  # of a damaged row perhaps only the beginning of its key is known
        if self.scan.done:
            self._judge()
            self.scanner.ended(True)
            return
        if results and self.scanner.rng.random() < 0.2:
            self.scan = Scan(self.place, b"", None, results[-1].cursor, *self.counts)
        self.go_on()

    def _judge(self) -> None:
        cluster, bucket = self.scanner.cluster, self.place.bucket
        name, found = bucket.decode(), {cluster.key_name(key) for key in self.keys}
        writes = [write for write in cluster.history.writes.values() if write.bucket == name]
        if len(found) != len(self.keys):
            self._violated("shows a key twice")
        for key in sorted(found - {write.key for write in writes}):
            self._violated(f"shows {key!r}, which nobody wrote")
        definition = cluster.definition.bucket(bucket)
        if cluster.ring_changes or definition.pr + definition.pw <= (definition.n or cluster.definition.n):
            return
        deleted = {write.key for write in writes if write.tombstone and write.outcome != REFUSED}
        for key in sorted({w.key for w in writes if w.outcome == ACKNOWLEDGED and w.ended < self.began} - deleted - found):
            if not cluster.observer.lost_of(cluster.row_key(bucket, cluster.key_bytes(key))):
                self._violated(f"misses {key!r}, acknowledged before it began")

    def _violated(self, what: str) -> None:
        text = f"of {self.place.bucket.decode()}, begun at {self.began:.3f}, {what}"
        self.scanner.cluster.observer.violations.append(Violation("scan", text, time=self.scanner.world.now))
