"""What simulated clients do. Each operation is one of the product's own verbs, run by one worker per client in a closed loop while a storm lasts.

Values begin with the id of the operation that wrote them, so that a value tells its write; what follows is the workload's own. The mix is drawn for
each seed: some seeds hammer two keys with blind writes, others count, others mostly delete.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from random import Random
from typing import TYPE_CHECKING, Any

from dynamo.api.context import Context
from dynamo.api.update import DELETE
from dynamo.client import verbs
from dynamo.client.core import Request
from dynamo.client.verbs import Place, Verb
from dynamo.errors import DynamoError
from dynamo.model import messages as m
from dynamo.model.messages import Message
from dynamo.testing.client import OPERATION_BYTES, SimulatedClient

if TYPE_CHECKING:
    from dynamo.testing.simulator import SimulatedCluster

TOKENS_KEPT = 4  # of each key; a client may write under an old one
Done = Callable[[Any, DynamoError | None], None]


class Mix:
    """Which operations a seed does, how often, on how many keys of which buckets, and how fast."""

    def __init__(self, rng: Random) -> None:
        self.weights = {name: rng.choice((0.0, 0.5, 1.0, 1.0, 3.0)) for name in OPERATIONS}
        self.weights["read"] = max(self.weights["read"], 0.5)
        self.weights["chain"] = max(self.weights["chain"], 0.5)
        if rng.random() < 0.5:  # blind writes only ever add siblings: without limits there would soon be nothing else
            self.weights["blind"] = min(self.weights["blind"], 0.5)
        self.keys = rng.choice((1, 1, 2, 4, 8))
        self.hot = rng.choice((0.0, 0.3, 0.8))  # share of operations that go to the first key
        self.think_s = rng.choice((0.005, 0.03, 0.1))
        self.timeout_s = rng.choice((0.5, 2.0, 5.0))
        self.buckets = [b"default", *(bucket for bucket in (b"few", b"small", b"strict") if rng.random() < 0.3)]
        self.last_write_wins = rng.choice((0.0, 0.15, 0.3))
        self.value_bytes = rng.choice((0, 20, 200))
        self.w = rng.choice((None, None, None, 1))
        if rng.random() < 0.35:
            self._focus(rng)
        self.prefix = b"k" * rng.choice((1, 1, 1, 600)) + b"-"  # beyond what a row key holds

    def _focus(self, rng: Random) -> None:
        """All clients write to one key, most of them without having read it: what one node forgets or claims too much of meets the others at once."""
        self.weights = {"blind": 3.0, "chain": 1.0, "read": 0.2, "delete": 0.2, "gather": rng.choice((0.1, 0.5))}
        self.keys, self.hot, self.last_write_wins = 1, 1.0, rng.choice((0.0, 0.0, 0.2))
        self.buckets = [rng.choice((b"default", b"default", b"small"))]
        self.think_s = rng.choice((0.02, 0.05))

    def key(self, rng: Random) -> bytes:
        """Some key, the first one more often."""
        number = 0 if rng.random() < self.hot else rng.randrange(self.keys)
        return self.prefix + b"%d" % number


class Worker:
    """One client at work, until its operations are done."""

    def __init__(self, client: SimulatedClient, mix: Mix) -> None:
        self.client = client
        self.world = client.world
        self.mix = mix
        self.rng = self.world.stream(f"worker/{client.number}")
        self.left = 0
        self.done = 0
        self.tokens: dict[tuple[bytes, bytes], list[Context]] = {}
        self._busy = False
        self._names = [name for name, weight in mix.weights.items() if weight]
        self._weights = [mix.weights[name] for name in self._names]

    def work(self, operations: int) -> None:
        """Do so many more."""
        self.left += operations
        if not self._busy:
            self._busy = True
            self.world.after(self.rng.random() * self.mix.think_s, self._next)

    def _next(self) -> None:
        if self.left <= 0:
            self._busy = False
            return
        self.left -= 1
        rng, mix = self.rng, self.mix
        name = rng.choices(self._names, self._weights)[0]
        bucket = b"sets" if name == "set" else b"lww" if rng.random() < mix.last_write_wins else rng.choice(mix.buckets)
        key = mix.key(rng)
        self.client.run(OPERATIONS[name](self, Place(bucket), key), mix.timeout_s, self._finished)

    def _finished(self, result: Any, error: DynamoError | None) -> None:
        self.done += 1
        self.world.after(self.rng.expovariate(1 / self.mix.think_s), self._next)

    # --- what operations need ---------------------------------------------------------------------------------------------------------

    def operation(self) -> bytes:
        """A fresh operation id."""
        return self.rng.randbytes(OPERATION_BYTES)

    def value(self, operation: bytes) -> bytes:
        """A value of that operation."""
        return operation + self.rng.randbytes(self.rng.randint(0, self.mix.value_bytes))

    def keep(self, place: Place, key: bytes, context: Context) -> None:
        """Remember a context to write under."""
        kept = self.tokens.setdefault((place.bucket, key), [])
        kept.append(context)
        del kept[:-TOKENS_KEPT]

    def context(self, place: Place, key: bytes) -> Context | None:
        """The newest context of the key, sometimes an older one."""
        kept = self.tokens.get((place.bucket, key))
        if not kept:
            return None
        return kept[-1] if self.rng.random() < 0.7 else self.rng.choice(kept)


# --- the operations -------------------------------------------------------------------------------------------------------------------


def read(worker: Worker, place: Place, key: bytes) -> Verb[None]:
    """A read, at R or at one node."""
    result = yield from verbs.get(place, key, worker.rng.choice((None, None, 1)), None, None)
    worker.keep(place, key, result.context)


def blind(worker: Worker, place: Place, key: bytes) -> Verb[None]:
    """A write without a context."""
    operation = worker.operation()
    context = yield from verbs.write(place, key, worker.value(operation), None, m.MODE_PUT, worker.mix.w, None, operation)
    if worker.rng.random() < 0.3:
        worker.keep(place, key, context)


def chain(worker: Worker, place: Place, key: bytes) -> Verb[None]:
    """A write under the context of an earlier read or write, and another one on top of it."""
    context = worker.context(place, key)
    for _ in range(worker.rng.randint(1, 3)):
        operation = worker.operation()
        context = yield from verbs.write(place, key, worker.value(operation), context, m.MODE_PUT, worker.mix.w, None, operation)
        worker.keep(place, key, context)


def count(worker: Worker, place: Place, key: bytes) -> Verb[None]:
    """Read a counter, add one to the highest, write it back."""
    operation = worker.operation()

    def change(values: list[bytes]) -> bytes:
        highest = max((int.from_bytes(value[OPERATION_BYTES : OPERATION_BYTES + 4], "big") for value in values), default=0)
        return operation + ((highest + 1) & 0xFFFFFFFF).to_bytes(4, "big")

    context = yield from verbs.update(place, key, change, verbs_missing(), operation)
    worker.keep(place, key, context)


def gather(worker: Worker, place: Place, key: bytes) -> Verb[None]:
    """Read a set, unite its siblings, add a member, write it back; sometimes empty it, which deletes the key."""
    operation = worker.operation()
    member = worker.rng.randrange(64)
    empty = worker.rng.random() < 0.1

    def change(values: list[bytes]) -> Any:
        members = {byte for value in values for byte in value[OPERATION_BYTES:][:64]} | {member}
        return DELETE if empty and values else operation + bytes(sorted(members)[:64])

    context = yield from verbs.update(place, key, change, verbs_missing(), operation)
    worker.keep(place, key, context)


def delete(worker: Worker, place: Place, key: bytes) -> Verb[None]:
    """Delete what a context covers, or what a read shows now; often create the key again, under the context of that or blindly."""
    context = worker.context(place, key)
    known = context is not None and worker.rng.random() < 0.5
    deleted = yield from verbs.delete(place, key, context if known else None, not known, None, worker.operation)
    worker.keep(place, key, deleted)
    dice = worker.rng.random()
    if dice < 0.5:
        operation = worker.operation()
        under = deleted if dice < 0.3 else None
        created = yield from verbs.write(place, key, worker.value(operation), under, m.MODE_PUT, None, None, operation)
        worker.keep(place, key, created)


def set_(worker: Worker, place: Place, key: bytes) -> Verb[None]:
    """Overwrite whatever the coordinator holds, and sometimes go on from there."""
    operation = worker.operation()
    context = yield from verbs.write(place, key, worker.value(operation), None, m.MODE_SET, None, None, operation)
    worker.keep(place, key, context)
    if worker.rng.random() < 0.3:
        yield from chain(worker, place, key)


def get_many(worker: Worker, place: Place, key: bytes) -> Verb[None]:
    """Read several keys at once."""
    keys = _some_keys(worker, key)
    reply = yield Request(m.GET_MANY, (place.bucket, keys, 0, 0), m.GET_MANY_REPLY)
    for name, answer in zip(keys, reply[2], strict=True):
        if answer[0] == m.GET_REPLY:
            worker.keep(place, name, Context(answer[5]))


def put_many(worker: Worker, place: Place, key: bytes) -> Generator[Request, Message, None]:
    """Write several keys at once."""
    entries = []
    for name in _some_keys(worker, key):
        operation = worker.operation()
        context = worker.context(place, name)
        entries.append((name, worker.value(operation), None if context is None else context.token, operation))
    reply = yield Request(m.PUT_MANY, (place.bucket, tuple(entries), m.MODE_PUT, 0, 0), m.PUT_MANY_REPLY, writes=True)
    for entry, answer in zip(entries, reply[2], strict=True):
        if answer[0] == m.PUT_REPLY:
            worker.keep(place, entry[0], Context(answer[4]))


def verbs_missing() -> Any:
    """No default for an update."""
    from dynamo.api.update import MISSING

    return MISSING


def _some_keys(worker: Worker, key: bytes) -> tuple[bytes, ...]:
    return tuple(dict.fromkeys([key, *(worker.mix.key(worker.rng) for _ in range(2))]))


OPERATIONS: dict[str, Callable[[Worker, Place, bytes], Verb[None]]] = {
    "read": read,
    "blind": blind,
    "chain": chain,
    "count": count,
    "gather": gather,
    "delete": delete,
    "set": set_,
    "get_many": get_many,
    "put_many": put_many,
}


def read_everywhere(cluster: SimulatedCluster, keys: Iterable[tuple[bytes, bytes]]) -> None:
    """Read keys at all their owners through every node: what finds and repairs rows that rotted where they lay."""
    reader = cluster.clients[1]
    for bucket, key in keys:
        n = cluster.definition.bucket(bucket).n or cluster.definition.n
        for node in cluster.live():
            if node.replica is not None:
                message = (m.GET, 1 << 40, bucket, key, min(n, node.replica.core.ring.size), 0, 2000)
                cluster.network.carry(reader.number, node.node_id, True, node.arrive, node.boots, reader.number, message)
