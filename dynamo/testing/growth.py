"""Worlds in which nothing goes wrong but that the cluster grows: from one node or a few to more, at once or one by one, while clients read, write and scan.

What is promised under faults says little here, for a sloppy quorum may miss what it may miss. Where no node fails and no message is lost, a read at a
quorum must not: each get, update and page of a scan is held against all writes that were acknowledged before it began (checker `stale`). A node
that answers for what it has not received yet is found by that, and by little else.
"""

from __future__ import annotations

from random import Random
from typing import Any

from dynamo._core import record as records
from dynamo.api.context import Context
from dynamo.api.result import Result
from dynamo.client import verbs
from dynamo.client.core import RetryPolicy
from dynamo.client.scan import Scan
from dynamo.client.verbs import Place, Verb
from dynamo.errors import DynamoError
from dynamo.model import messages as m
from dynamo.model.cluster import Cluster
from dynamo.model.key import full_key
from dynamo.replication import Settings, tokens
from dynamo.testing.checkers import Violation
from dynamo.testing.client import OPERATION_BYTES, SimulatedClient
from dynamo.testing.events import World
from dynamo.testing.faults import Faults
from dynamo.testing.simulator import SimulatedCluster

PLACE = Place(b"default")
_REPORTED_MAX = 5
_SETTLE_S = 40.0
_SETTLED_S = 1.0  # after which all owners that can be reached have a write
Dot = tuple[int, int]


class Growth:
    """One such world."""

    def __init__(self, seed: int, log: bool = False) -> None:
        world = World(seed, log=log)
        rng = self.rng = world.stream("growth")
        start = rng.choice((1, 1, 1, 2, 3, 4))
        self.joins = rng.randint(1, 4)
        n = rng.choice((2, 3, 3, 3, start))
        cluster = Cluster(cluster_id=rng.randbytes(16), secret=rng.randbytes(32), seed=rng.getrandbits(64), partitions=rng.choice((8, 16, 32)), n=n)
        faults = Faults.none().but(
            delay_mean_s=rng.choice((0.0005, 0.002, 0.01)), commit_s=rng.choice((0.0005, 0.003)), reorder=rng.random() < 0.5,
            poll_s=rng.choice((0.0, 0.0, 0.002)), late_joiners=self.joins,
        )  # fmt: skip
        # `late_joiners` tells the observer that the ring changes. No nemesis strikes here.
        # Long enough that nobody takes a slow answer for a dead node: a fallback would be right to answer then.
        settings = Settings(
            fallback_after_s=2.0, hedge_after_s=rng.choice((0.5, 1.0)), gossip_interval_s=rng.choice((1.0, 4.0)),
            exchange_interval_s=rng.choice((2.0, 10.0)), handoff_retry_s=rng.choice((0.5, 2.0)), handoff_window=rng.choice((1, 64)),
            repair_window=rng.choice((1, 16)), tree_slice_rows=rng.choice((3, 512)),
        )  # fmt: skip
        world.note("growth", seed, f"from {start} by {self.joins}", f"n={n} q={cluster.partitions}", faults, settings)
        self.cluster = SimulatedCluster(
            world, faults, nodes=start, definition=cluster, settings=settings, retry=RetryPolicy(attempts_max=8, attempt_timeout_s=5.0), clients=4,
        )  # fmt: skip
        self.world = world
        self.keys = [b"k-%d" % number for number in range(rng.choice((20, 60)))]
        self.acknowledged: dict[bytes, list[tuple[float, Dot]]] = {}  # key -> when each write was, and its dot
        self.was_set: dict[bytes, float] = {}  # key that one worker alone sets, by no write but sets -> when the last one was acknowledged
        self.violations: list[Violation] = []
        self.reads = self.failures = 0
        self._until = 0.0

    def run(self) -> list[Violation]:
        """Fill, grow while clients work, come to rest, and look once more at everything."""
        world, rng = self.world, self.rng
        workers = [_Worker(self, client) for client in self.cluster.clients.values()]
        for number, key in enumerate(self.keys):
            workers[number % len(workers)].do(workers[number % len(workers)].write(key))
        world.run(world.now + 20.0)
        self._until = world.now + 15.0
        for worker in workers:
            world.after(worker.rng.random() * 0.1, worker.next)
        at, together = world.now + rng.uniform(0.5, 2.0), rng.random() < 0.4
        for _ in range(self.joins):
            world.at(at, self._join)
            at += rng.uniform(0.0, 0.01) if together else rng.uniform(0.05, 4.0)
        world.run(self._until + _SETTLE_S)
        for key in self.keys:
            workers[0].do(workers[0].get(key))
        world.run(world.now + 20.0)
        needing = [str(node) for node in self.cluster.live() if node.replica is not None and node.replica.core.standings.needs]
        if needing:
            self.violations.append(Violation("recovering", f"{', '.join(needing)} did not become whole", time=world.now))
        if self.reads < 100:
            self.violations.append(Violation("void", f"only {self.reads} reads, {self.failures} failures", time=world.now))
        self.violations.extend(self.cluster.observer.violations)
        return self.violations[:_REPORTED_MAX]

    def _join(self) -> None:
        self.cluster.add_node()

    def check(self, key: bytes, began: float, token: bytes, what: str) -> None:
        """Whoever has this token was shown the key by a read that began then."""
        self.reads += 1
        secret = self.cluster.definition.secret
        context = tokens.unseal(secret, full_key(PLACE.bucket, key), records.SIBLINGS, token)[1]
        for time, dot in self.acknowledged.get(key, ()):
            if time < began and not records.context_contains(context, *dot):
                self.violations.append(Violation("stale", f"a {what} of {key.decode()} begun at {began:.3f} misses a write acknowledged at {time:.3f} "
                                                 f"({dot[0]:016x}:{dot[1]})", time=self.world.now))  # fmt: skip
                return


class _Worker:
    """One client in a closed loop."""

    def __init__(self, growth: Growth, client: SimulatedClient) -> None:
        self.growth = growth
        self.client = client
        self.world = client.world
        self.rng: Random = self.world.stream(f"growth/{client.number}")

    def next(self) -> None:
        """Begin the next operation."""
        if self.world.now < self.growth._until:
            rng, key = self.rng, self.rng.choice(self.growth.keys)
            verb = rng.choices((self.get, self.write, self.update, self.set, self.set_own, self.scan), (6, 1, 2, 1, 1, 0.5))[0]
            self.do(verb(key) if verb != self.scan else self.scan(b""), then=True)

    def do(self, verb: Verb[Any], then: bool = False) -> None:
        """Run one; `then` the next."""

        def done(_: Any, error: DynamoError | None) -> None:
            self.growth.failures += error is not None
            if then:
                self.world.after(self.rng.expovariate(1 / 0.05), self.next)

        self.client.run(verb, 10.0, done)

    def _wrote(self, key: bytes, context: Context) -> None:
        assert context.dot is not None
        self.growth.acknowledged.setdefault(key, []).append((self.world.now, (context.dot.actor, context.dot.counter)))

    def get(self, key: bytes) -> Verb[None]:
        began = self.world.now
        result: Result = yield from verbs.get(PLACE, key)
        self.growth.check(key, began, bytes(result.context), "get")

    def write(self, key: bytes) -> Verb[None]:
        operation = self.rng.randbytes(OPERATION_BYTES)
        self._wrote(key, (yield from verbs.write(PLACE, key, operation + b"w", None, m.MODE_PUT, None, None, operation)))

    def set(self, key: bytes) -> Verb[None]:
        operation = self.rng.randbytes(OPERATION_BYTES)
        self._wrote(key, (yield from verbs.write(PLACE, key, operation + b"s", None, m.MODE_SET, None, None, operation)))

    def set_own(self, _: bytes) -> Verb[None]:
        """Set a key that nobody else writes, long enough after the last time for all owners to have that, and see one value."""
        key, known = b"own-%d" % self.client.number, self.growth.was_set
        if self.world.now < known.get(key, 0.0) + _SETTLED_S:
            return
        operation = self.rng.randbytes(OPERATION_BYTES)
        known[key] = float("inf")
        self._wrote(key, (yield from verbs.write(PLACE, key, operation + b"o", None, m.MODE_SET, None, None, operation)))
        result: Result = yield from verbs.get(PLACE, key)
        known[key] = self.world.now
        if len(result.siblings) != 1:
            text = f"{key.decode()}, which one client sets, has {len(result.siblings)} values"
            self.growth.violations.append(Violation("siblings", text, time=self.world.now))

    def update(self, key: bytes) -> Verb[None]:
        began, operation = self.world.now, self.rng.randbytes(OPERATION_BYTES)
        result: Result = yield from verbs.get(PLACE, key)
        self.growth.check(key, began, bytes(result.context), "update")
        self._wrote(key, (yield from verbs.write(PLACE, key, operation + b"u", bytes(result.context), m.MODE_PUT, None, None, operation)))

    def scan(self, prefix: bytes) -> Verb[None]:
        began, seen = self.world.now, set()
        scan = Scan(PLACE, prefix, None, None)
        while not scan.done:
            for result in (yield from scan.page()):
                if result.key in seen:
                    self.growth.violations.append(Violation("scan", f"{result.key.decode()} comes twice", time=self.world.now))
                seen.add(result.key)
                self.growth.check(result.key, began, bytes(result.context), "scan")
        for key, writes in self.growth.acknowledged.items():
            if key not in seen and any(time < began for time, _ in writes):
                self.growth.violations.append(Violation("stale", f"a scan begun at {began:.3f} misses {key.decode()}", time=self.world.now))
                return


def grow(seed: int, log: bool = False) -> Growth:
    """Run the world of a seed; its `violations` say what was wrong."""
    growth = Growth(seed, log)
    growth.run()
    return growth
