"""What is measured of the kernels: each case is built anew for every twin, and for a known package where there is one.

A case is one call, and what it returns is checked before anything is timed. `items` is how many operations it holds,
so that a time per operation can be given. Sizes are those of small requests: 16-byte keys, 100-byte values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from random import Random
from threading import Lock
from types import ModuleType
from typing import Any

TWINS = {"compiled": "c", "pure": "py"}
SEED = 20_071_014
KEYS = [b"user:%011d" % Random(SEED + i).randrange(10**11) for i in range(1000)]


def kernel(name: str, twin: str) -> ModuleType:
    """A kernel by its twin's name; asserts that it is what it says."""
    module = import_module(f"dynamo._core._{name}_{TWINS[twin]}")
    assert module.__file__ is not None
    assert module.__file__.endswith(".py") == (twin == "pure"), f"{twin} {name} is {module.__file__}"
    return module


@dataclass(frozen=True)
class Case:
    """`build(kernel)` makes the call to time, `known[package]()` the same by another package (ImportError: not here)."""

    name: str
    kernel: str
    items: int
    build: Callable[[ModuleType], Callable[[], Any]]
    known: dict[str, Callable[[], Callable[[], Any]]] = field(default_factory=dict)
    pure: bool = True  # False: too slow to wait for

    def call(self, which: str) -> Callable[[], Any]:
        """The call for "compiled", "pure" or a package; run once already."""
        call = self.build(kernel(self.kernel, which)) if which in TWINS else self.known[which]()
        call()
        return call


# --- records ----------------------------------------------------------------------------------------------------------


def records(module: ModuleType) -> tuple[bytes, bytes]:
    """Two records of one key that share a sibling and have one each that the other lacks."""
    random = Random(SEED)
    common = module.put(b"", b"", 11, 5, 1, 1, random.randbytes(16), random.randbytes(100), False)
    one = module.put(common, b"", 22, 3, 3, 2, random.randbytes(16), random.randbytes(100), False)
    other = module.put(common, b"", 33, 8, 8, 3, random.randbytes(16), random.randbytes(100), False)
    return one, other


def merge(module: ModuleType) -> Callable[[], Any]:
    one, other = records(module)
    assert module.version_count(module.merge(one, other)) == 3
    return partial(module.merge, one, other)


def compare(module: ModuleType) -> Callable[[], Any]:
    one, other = records(module)
    assert module.compare(one, other) == module.CONCURRENT
    return partial(module.compare, one, other)


def put(module: ModuleType) -> Callable[[], Any]:
    one, _ = records(module)
    seen, operation, value = module.context(one), bytes(16), bytes(100)
    assert module.version_count(module.put(one, seen, 11, 6, 1, 4, operation, value, False)) == 1
    return partial(module.put, one, seen, 11, 6, 1, 4, operation, value, False)


def verify(module: ModuleType) -> Callable[[], Any]:
    one, _ = records(module)
    return partial(module.verify, one)


# --- rows -------------------------------------------------------------------------------------------------------------


def stored_row(module: ModuleType) -> tuple[bytes, bytes]:
    """(row key, row) of a record with one value of 100 bytes."""
    pure = import_module("dynamo._core._record_py")
    record = pure.put(b"", b"", 11, 5, 5, 4, bytes(16), bytes(100), False)
    key = module.inline_key(b"default", KEYS[0], SEED, 256)
    return key, module.encode(key, (0, 11, 5, bytes(16), b"", record))


def row_decode(module: ModuleType) -> Callable[[], Any]:
    key, row = stored_row(module)
    assert module.decode(key, row, True)[0] == 0
    return partial(module.decode, key, row, True)


def row_read(module: ModuleType) -> Callable[[], Any]:
    """From key to record, with a read that costs nothing."""
    key, row = stored_row(module)
    look = module.Look({key: row}.get)
    look.open = True
    reader = module.Reader(look, Lock(), SEED, 256, b"default")
    assert reader.record(KEYS[0])
    return partial(reader.record, KEYS[0])


# --- the ring ---------------------------------------------------------------------------------------------------------


def members(count: int) -> list[tuple[bytes, int, bytes]]:
    random = Random(SEED)
    return [(random.randbytes(16), 1000, b"zone%d" % (i % 3)) for i in range(count)]


def lookup(module: ModuleType) -> Callable[[], Any]:
    """The partition of each key, asked one by one."""
    position, partition_of = module.position, module.partition_of

    def each() -> list[int]:
        return [partition_of(position(b"default", key, SEED), 256) for key in KEYS]

    return each


def batch_positions(module: ModuleType) -> Callable[[], Any]:
    return partial(module.positions, b"default", KEYS, SEED)


def batch(module: ModuleType) -> Callable[[], Any]:
    assert module.partitions_of(b"default", KEYS, SEED, 256) == lookup(module)()
    return partial(module.partitions_of, b"default", KEYS, SEED, 256)


def assign(module: ModuleType, count: int, partitions: int) -> Callable[[], Any]:
    nodes = members(count)
    owners = module.assign(nodes, partitions, 3, SEED)
    loads = [0] * count
    for row in owners:
        for owner in row:
            loads[owner] += 1
    assert len(owners) == partitions and max(loads) <= -(-105 * partitions * 3 // (100 * count))
    return partial(module.assign, nodes, partitions, 3, SEED)


def uhashring_lookup() -> Callable[[], Any]:
    get_node = import_module("uhashring").HashRing(nodes=[node.hex() for node, _, _ in members(20)]).get_node
    texts = [key.decode() for key in KEYS]
    return lambda: [get_node(key) for key in texts]


# --- frames -----------------------------------------------------------------------------------------------------------


def mixed_messages() -> list[tuple[Any, ...]]:
    """GET, PUT, REPLICATE and READ_REPLY in turn, 64 together: what one wakeup of a busy node receives."""
    random = Random(SEED)

    def u64() -> int:
        return random.getrandbits(64)

    def message(i: int) -> tuple[Any, ...]:
        key, record = KEYS[i], random.randbytes(205)
        return (
            (10, 1000 + i, b"default", key, 0, 0, 5000),
            (11, 1000 + i, b"default", key, random.randbytes(100), random.randbytes(33), 0, 0, 0, 5000, random.randbytes(16)),
            (42, 1000 + i, b"default", key, record, 0, b"", 4990, 12, u64(), 0, 3, random.randbytes(16)),
            (45, 1000 + i, 0, 0, random.randbytes(16), record, 12, u64()),
        )[i % 4]

    return [message(i) for i in range(64)]


def many_reply() -> tuple[Any, ...]:
    """A GET_MANY_REPLY of 200 keys: more arrays than bytes."""
    random = Random(SEED)
    sibling = ((bytes(100), random.getrandbits(64), 5, random.getrandbits(64)),)
    return (22, 7, tuple((20, 0, 1, random.getrandbits(64), 2, random.randbytes(40), sibling, ()) for _ in range(200)))


def decode(module: ModuleType, messages: list[tuple[Any, ...]], elements_max: int = 4096) -> Callable[[], Any]:
    data = module.encode_all(messages)
    assert module.decode(data, 8 << 20, elements_max, elements_max * 32) == (messages, len(data), 4)
    return partial(module.decode, data, 8 << 20, elements_max, elements_max * 32)


def encode(module: ModuleType) -> Callable[[], Any]:
    return partial(module.encode_all, mixed_messages())


def encode_each(module: ModuleType) -> Callable[[], Any]:
    messages, one = mixed_messages(), module.encode
    return lambda: [one(message) for message in messages]


def msgpack_decode(messages: list[tuple[Any, ...]], elements_max: int = 4096) -> Callable[[], Any]:
    """As the package did before it had this kernel: frames split in Python, each body to msgpack's C decoder with limits."""
    import msgpack

    unpack = partial(msgpack.unpackb, use_list=False, raw=False, max_str_len=65_536, max_array_len=elements_max, max_map_len=0, max_ext_len=0)
    data = b"".join([len(body).to_bytes(4, "big") + body for body in map(msgpack.packb, messages)])

    def each() -> list[Any]:
        found, start, size = [], 0, len(data)
        while start < size:
            end = start + 4 + int.from_bytes(data[start : start + 4], "big")
            found.append(unpack(data[start + 4 : end]))
            start = end
        return found

    assert each() == messages
    return each


def msgpack_encode(join: bool) -> Callable[[], Any]:
    """The same for the other way: one packer for all, which is a quarter faster than `packb`."""
    import msgpack

    messages, pack = mixed_messages(), msgpack.Packer(use_bin_type=True, autoreset=True).pack

    def one(message: tuple[Any, ...]) -> bytes:
        body: bytes = pack(message)
        return len(body).to_bytes(4, "big") + body

    return (lambda: b"".join([one(message) for message in messages])) if join else (lambda: [one(message) for message in messages])


# --- histograms and counters ------------------------------------------------------------------------------------------


def latencies() -> list[int]:
    random = Random(SEED)
    return [int(random.lognormvariate(7, 1.5)) + 1 for _ in range(1000)]


def record_each(module: ModuleType) -> Callable[[], Any]:
    values, record = latencies(), module.Histogram().record

    def each() -> None:
        for value in values:
            record(value)

    return each


def record_many(module: ModuleType) -> Callable[[], Any]:
    return partial(module.Histogram().record_many, latencies())


def quantile(module: ModuleType) -> Callable[[], Any]:
    histogram = module.Histogram()
    histogram.record_many(latencies())
    return partial(histogram.quantile, 0.999)


def count(module: ModuleType) -> Callable[[], Any]:
    add = module.Counters(["reads", "writes"]).add

    def each() -> None:
        for _ in range(1000):
            add(1)

    return each


def hdr_record() -> Callable[[], Any]:
    """Its least precision, two digits, is 1/100; ours is 1/64."""
    values, record = latencies(), import_module("hdrh.histogram").HdrHistogram(1, 1 << 40, 2).record_value

    def each() -> None:
        for value in values:
            record(value)

    return each


MIXED = mixed_messages()
MANY = [many_reply()]
CASES = [
    Case("record merge", "record", 1, merge),
    Case("record compare", "record", 1, compare),
    Case("record put", "record", 1, put),
    Case("record verify", "record", 1, verify),
    Case("row decode", "row", 1, row_decode),
    Case("row read, from the key on", "row", 1, row_read),
    Case("ring lookup, 1,000 calls", "ring", 1000, lookup, {"uhashring": uhashring_lookup}),
    Case("ring lookup, batch of 1,000", "ring", 1000, batch),
    Case("ring positions, batch of 1,000", "ring", 1000, batch_positions),
    Case("ring assign, 20 nodes, 1,024 partitions", "ring", 1024, partial(assign, count=20, partitions=1024)),
    Case("ring assign, 100 nodes, 4,096 partitions", "ring", 4096, partial(assign, count=100, partitions=4096)),
    Case("ring assign, 1,000 nodes, 65,536 partitions", "ring", 65_536, partial(assign, count=1000, partitions=65_536), pure=False),
    Case("frame decode, 64 mixed", "frame", 64, partial(decode, messages=MIXED), {"msgpack": partial(msgpack_decode, MIXED)}),
    Case("frame decode, one GET_MANY_REPLY of 200", "frame", 200, partial(decode, messages=MANY, elements_max=65_536),
         {"msgpack": partial(msgpack_decode, MANY, 65_536)}),
    Case("frame encode, 64 mixed into one buffer", "frame", 64, encode, {"msgpack": partial(msgpack_encode, True)}),
    Case("frame encode, 64 mixed one by one", "frame", 64, encode_each, {"msgpack": partial(msgpack_encode, False)}),
    Case("histogram record, 1,000 calls", "histogram", 1000, record_each, {"hdrhistogram": hdr_record}),
    Case("histogram record, batch of 1,000", "histogram", 1000, record_many),
    Case("histogram quantile", "histogram", 1, quantile),
    Case("counter add, 1,000 calls", "histogram", 1000, count),
]  # fmt: skip
