"""What simulated clients do, and one whole run: `run(seed)` -> Report.

Each client works on a few keys: blind puts, puts under the token of a read, puts chained on the token of the last put, deletes, and retries of the
same operation through another node when no answer comes. It keeps beside every token the writes it was shown with it; only that, never the
token's bytes, counts as ancestry.
"""

from __future__ import annotations

from dataclasses import dataclass

from dynamo.model import messages as m
from dynamo.model.messages import Message
from dynamo.testing.events import Faults
from dynamo.testing.history import ACKNOWLEDGED, REFUSED
from dynamo.testing.simulator import Client, SimulatedCluster

BUCKET = b"default"
_TIME_MS = 1000


@dataclass(slots=True)
class Report:
    """The outcome of one seed."""

    seed: int
    violations: list[str]
    trace_hash: str
    writes: dict[str, int]
    reads: int
    virtual_s: float
    delivered: int
    log: list[str]


class Worker:
    """One client at work."""

    def __init__(self, cluster: SimulatedCluster, number: int, keys: list[bytes], operations: int) -> None:
        self.client = Client(cluster, number)
        self.cluster = cluster
        self.world = cluster.world
        self.history = cluster.history
        self.keys = keys
        self.left = operations
        self.reads = 0
        self.shown: dict[bytes, tuple[bytes | None, frozenset[bytes]]] = {}  # key -> (token, writes shown with it, closed)
        self.world.after(self.world.rng.random() * 0.2, self.next)

    def next(self) -> None:
        """Begin the next operation."""
        if self.left <= 0:
            return
        self.left -= 1
        rng = self.world.rng
        key, dice = rng.choice(self.keys), rng.random()
        if dice < 0.4:
            self._read(key)
        elif dice < 0.55:
            self._write(key, None, frozenset(), tombstone=False)
        else:
            token, shown = self.shown.get(key, (None, frozenset()))
            self._write(key, token, shown, tombstone=token is not None and rng.random() < 0.2)

    def _again(self) -> None:
        self.world.after(self.world.rng.expovariate(20), self.next)

    def _read(self, key: bytes) -> None:
        def done(reply: Message | None) -> None:
            if reply is not None and reply[0] == m.GET_REPLY:
                self.reads += 1
                values = [sibling[0] for sibling in reply[6]]
                self.history.check_shown(key, values)
                values += self.history.named(key, reply[7])
                if all(value in self.history.writes for value in values):
                    self.shown[key] = (reply[5], self.history.closure(values))
            self._again()

        node = self.world.rng.choice(list(self.cluster.nodes))
        self.client.ask(node, (m.GET, 0, BUCKET, key, 0, 0, _TIME_MS), _TIME_MS / 1000 + 0.2, done)

    def _write(self, key: bytes, token: bytes | None, shown: frozenset[bytes], tombstone: bool) -> None:
        operation = self.world.rng.randbytes(16)
        self.history.begin(operation, key, tombstone, shown)
        self._attempt(key, token, shown, tombstone, operation, attempts=self.world.rng.choice((1, 1, 2, 3)), maybe=False)

    def _attempt(
        self, key: bytes, token: bytes | None, shown: frozenset[bytes], tombstone: bool, operation: bytes, attempts: int, maybe: bool
    ) -> None:
        def done(reply: Message | None) -> None:
            write = self.history.writes[operation]
            if reply is not None and reply[0] == m.PUT_REPLY:
                write.outcome = ACKNOWLEDGED
                if self.world.rng.random() < 0.5:
                    self.shown[key] = (reply[4], self.history.closure([operation]) | shown)
                self._again()
                return
            applied = maybe or reply is None or bool(reply[4])
            if attempts > 1:
                self._attempt(key, token, shown, tombstone, operation, attempts - 1, applied)
                return
            if not applied:
                write.outcome = REFUSED
            self._again()

        # A node that owns no copy passes the put on, and may have to try two owners: that counts as two attempts.
        self.history.writes[operation].attempts += 1 if len(self.cluster.nodes) <= self.cluster.definition.n else 2
        node = self.world.rng.choice(list(self.cluster.nodes))
        value = None if tombstone else operation
        message = (m.PUT, 0, BUCKET, key, value, token, m.MODE_PUT, 0, 0, _TIME_MS, operation)
        self.client.ask(node, message, _TIME_MS / 1000 + 0.2, done)


def run(
    seed: int, *, nodes: int = 3, clients: int = 4, operations: int = 50, keys: int = 3, faults: Faults | None = None, log: bool = False
) -> Report:
    """Run one seed: work under faults, heal, converge, judge."""
    cluster = SimulatedCluster(seed, nodes=nodes, faults=faults, log=log)
    world = cluster.world
    names = [b"key-%d" % i for i in range(keys)]
    workers = [Worker(cluster, number, names, operations) for number in range(1, clients + 1)]
    while any(worker.left > 0 for worker in workers):
        world.run(world.now + 1.0)
    world.run(world.now + 5.0)  # attempts still under way
    cluster.heal()
    world.run(world.now + 5.0)
    _converge(cluster, names)
    _judge(cluster, names)
    return Report(
        seed,
        list(cluster.history.violations),
        f"{world.trace:08x}",
        cluster.history.counts(),
        sum(worker.reads for worker in workers),
        world.now,
        world.delivered,
        world.log or [],
    )


def _converge(cluster: SimulatedCluster, names: list[bytes]) -> None:
    """Read every key from all owners through every node, which repairs what differs. (Anti-entropy will do it without any reader.)"""
    reader = Client(cluster, 1000)
    for node in cluster.nodes:
        for key in names:
            reader.ask(node, (m.GET, 0, BUCKET, key, min(3, len(cluster.nodes)), 0, 2000), 3.0, lambda reply: None)
        cluster.world.run(cluster.world.now + 3.0)


def _judge(cluster: SimulatedCluster, names: list[bytes]) -> None:
    from dynamo._core import record as records

    history = cluster.history
    for key in names:
        found = cluster.final_records(BUCKET, key)
        if len(set(found)) > 1:
            history.violations.append(f"converge: the owners of {key!r} hold {len(set(found))} different records")
        merged = b""
        for record in found:
            merged = records.merge(merged, record)
        final = set()
        for actor, counter, _, operation, _, value_hash, _, _ in records.versions(merged) if merged else []:
            history.check_dot(key, actor, counter, operation, value_hash)
            final.add(operation)
        history.check_final(key, final)
