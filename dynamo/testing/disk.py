"""The simulated disk of one node: three tables, commits that may fail, and damage.

What a crash leaves is what was committed. Damage comes in the forms that disks and people have: a flipped bit, a missing row, an empty store, an old
copy. A read that fails returns its error as a value, as storage engines do.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection
from random import Random
from typing import NamedTuple

from dynamo._core import row as row_kernel
from dynamo.errors import DynamoError, StorageFailed, StorageFull
from dynamo.model.group import Group
from dynamo.replication import operations
from dynamo.storage.engine import Table as TableName

Table = dict[bytes, bytes]


class _Rows:
    """A table in key order."""

    __slots__ = ("keys", "values")

    def __init__(self, values: Table | None = None) -> None:
        self.values: Table = values or {}
        self.keys = sorted(self.values)

    def write(self, key: bytes, value: bytes | None) -> None:
        if value is None:
            if self.values.pop(key, None) is not None:
                del self.keys[bisect_left(self.keys, key)]
            return
        if key not in self.values:
            insort(self.keys, key)
        self.values[key] = value

    def scan(self, start: bytes, stop: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        keys, values = self.keys, self.values
        first = bisect_left(keys, start)
        end = len(keys) if stop is None else bisect_left(keys, stop)
        return [(key, values[key]) for key in keys[first : min(end, first + limit)]]


class Copy(NamedTuple):
    """What was on a disk at one time."""

    objects: Table
    hints: Table
    meta: Table
    damaged: set[bytes]


class Disk:
    """What one node has stored. `full` and `broken` make commits fail, `unreadable` a share of reads; `damaged` are rows that were rotten or lost."""

    __slots__ = ("_hints", "_objects", "_rng", "broken", "damaged", "full", "meta", "slow", "unreadable")

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._objects = _Rows()
        self._hints = _Rows()
        self.meta: Table = {}
        self.full = False
        self.broken = False
        self.slow = 1.0  # factor on the time of commits
        self.unreadable = 0.0
        self.damaged: set[bytes] = set()

    @property
    def objects(self) -> Table:
        """Encoded rows by row key."""
        return self._objects.values

    @property
    def hints(self) -> Table:
        """The hint table."""
        return self._hints.values

    # --- what a storage engine offers ----------------------------------------------------------------------------------------------

    def read(self, key: bytes) -> bytes | DynamoError | None:
        """One row, or the error the disk gave."""
        if self.unreadable and self._rng.random() < self.unreadable:
            return StorageFailed("a simulated read error")
        return self._objects.values.get(key)

    def scan(self, start: bytes, stop: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        """Rows in key order, from `start` up to `stop`."""
        return self._objects.scan(start, stop, limit)

    def scan_hints(self, start: bytes, stop: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        """Hints in key order."""
        return self._hints.scan(start, stop, limit)

    def stored_operations(self) -> list[tuple[bytes, bytes]]:
        """The recent operations in the meta table."""
        return [(key, value) for key, value in self.meta.items() if key.startswith(operations.PREFIX)]

    def refusal(self) -> DynamoError | None:
        """The error with which a commit would fail now."""
        if self.broken:
            return StorageFailed("a simulated I/O error")
        return StorageFull("the simulated disk is full") if self.full else None

    def apply(self, group: Group) -> None:
        """Make a group durable."""
        for key, value in group.objects.items():
            self._objects.write(key, value)
        for key, value in group.hints.items():
            self._hints.write(key, value)
        for key, value in group.meta.items():
            if value is None:
                self.meta.pop(key, None)
            else:
                self.meta[key] = value
        if self.damaged:
            self.damaged -= group.objects.keys()

    # --- damage ---------------------------------------------------------------------------------------------------------------------

    def repair(self) -> None:
        """Let commits and reads succeed again; what is lost stays lost."""
        self.full = self.broken = False
        self.slow = 1.0
        self.unreadable = 0.0

    def rot(self, rng: Random) -> bytes | None:
        """Flip a bit of some stored row; its key, or None when there is none."""
        if not self._objects.keys:
            return None
        key = rng.choice(self._objects.keys)
        data = bytearray(self._objects.values[key])
        bit = rng.randrange(len(data) * 8)
        data[bit // 8] ^= 1 << (bit % 8)
        self._objects.values[key] = bytes(data)
        self.damaged.add(key)
        return key

    def lose_row(self, rng: Random) -> bytes | None:
        """Forget some row; its key."""
        if not self._objects.keys:
            return None
        key = rng.choice(self._objects.keys)
        self._objects.write(key, None)
        return key

    def wipe(self) -> None:
        """Forget everything."""
        self._objects, self._hints, self.meta, self.damaged = _Rows(), _Rows(), {}, set()

    def copy(self) -> Copy:
        """A copy, to be restored later. What was damaged then is damaged in it."""
        return Copy(dict(self.objects), dict(self.hints), dict(self.meta), set(self.damaged))

    def restore(self, copy: Copy) -> None:
        """Go back to an old copy."""
        self._objects, self._hints = _Rows(dict(copy.objects)), _Rows(dict(copy.hints))
        self.meta, self.damaged = dict(copy.meta), set(copy.damaged)


class DiskEngine:
    """A Disk as the StorageEngine below a write buffer. `refusal()`: the error that a commit fails with now."""

    synced = True
    look_errors: tuple[type[Exception], ...] = ()

    def __init__(self, disk: Disk, refusal: Callable[[], DynamoError | None]) -> None:
        self._disk = disk
        self._refusal = refusal
        self.read = disk.read
        self.look = row_kernel.Look(disk.read)

    def read_meta(self, name: bytes) -> bytes | None:
        return self._disk.meta.get(name)

    def scan(self, table: TableName, start: bytes, stop: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        assert table != "meta", "no replica scans it"
        return (self._disk.scan if table == "objects" else self._disk.scan_hints)(start, stop, limit)

    def count(self, table: TableName) -> int:
        return len(self._disk.objects if table == "objects" else self._disk.hints)

    def count_of(self, table: TableName, keys: Collection[bytes]) -> int:
        rows = self._disk.objects if table == "objects" else self._disk.hints
        return sum(key in rows for key in keys)

    def refresh(self) -> None:
        """Every read sees the newest."""

    def commit(self, group: Group, entering: Callable[[], None] | None = None) -> None:
        error = self._refusal()
        if error is not None:
            raise error
        self._disk.apply(group)

    def close(self) -> None:
        """Nothing to let go of."""
