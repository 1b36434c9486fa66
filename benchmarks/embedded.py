"""The embedded store beside bare py-lmdb, with the same keys and values: what `peers.py` and `figures.py` measure of both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from time import perf_counter

import lmdb

import dynamo
from dynamo.bench.workloads import key_of

VALUE = Random(1).randbytes(100)
_FILL_KEYS = 1000  # at once


class Beside:
    """Both, filled. `table`: of the bare one."""

    def __init__(self, store: dynamo.Store, bare: lmdb.Environment, keys: int) -> None:
        self.store = store
        self.bare = bare
        self.table = bare.open_db(b"objects")
        self.keys = keys
        self._draws = {"store": Random(1), "bare": Random(1)}
        for at in range(0, keys, _FILL_KEYS):
            values = dict.fromkeys(map(key_of, range(at, min(at + _FILL_KEYS, keys))), VALUE)
            if not all(isinstance(outcome, dynamo.Context) for outcome in store.set_many(values).values()):
                raise RuntimeError("the store did not take all keys")
            with bare.begin(write=True, db=self.table) as writing:
                writing.cursor().putmulti(list(values.items()), append=True)

    def _asked(self, side: str, count: int) -> list[bytes]:
        """Keys that neither side was just asked for, which would favour its caches; turn by turn the same for both."""
        draw = self._draws[side].randrange
        return [key_of(draw(self.keys)) for _ in range(count)]

    def store_gets(self, count: int) -> float:
        """Microseconds of a get of the store, and of its value, over so many random keys."""
        asked, get = self._asked("store", count), self.store.get
        began = perf_counter()
        for key in asked:
            assert get(key).value is not None
        return (perf_counter() - began) / count * 1e6

    def bare_gets(self, count: int) -> float:
        """Microseconds of a transaction with one get."""
        asked, bare, table = self._asked("bare", count), self.bare, self.table
        began = perf_counter()
        for key in asked:
            with bare.begin(db=table) as reading:
                assert reading.get(key) is not None
        return (perf_counter() - began) / count * 1e6


@contextmanager
def beside_lmdb(scratch: Path, keys: int) -> Iterator[Beside]:
    """Both with so many keys, under `scratch`; neither waits for the disk."""
    with dynamo.open(scratch / "store", durability="relaxed") as store:
        bare = lmdb.open(str(scratch / "bare"), map_size=1 << 34, max_dbs=1, sync=False, lib_version=0)
        with bare:
            yield Beside(store, bare, keys)


def row_bytes(directory: Path) -> int:
    """What the store keeps of such a value, in bytes: a row has a header, a context and a checksum around it."""
    with dynamo.open(directory) as store:
        store.set(key_of(0), VALUE)
        store.set(key_of(0), VALUE)
    with lmdb.open(str(directory), readonly=True, max_dbs=3, lib_version=0) as environment, environment.begin(db=environment.open_db(b"objects")) as reading:
        ((_, row),) = reading.cursor()
        return len(row)
