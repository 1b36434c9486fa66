"""The engine of durability `memory`, of tests and of the simulator: dicts, and sorted keys made when a scan asks.

It behaves as the LMDB engine does, refusals of keys included, except that reads see a commit also without `refresh()`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection

from dynamo._core import row as row_kernel
from dynamo.errors import DynamoError, StorageFailed
from dynamo.model.group import Group
from dynamo.storage.engine import KEY_BYTES_MAX, Table


class _Rows:
    """One table: its rows, and the keys in order up to what was added and removed since the last scan."""

    __slots__ = ("_added", "_removed", "_sorted", "rows")

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self._sorted: list[bytes] = []
        self._added: set[bytes] = set()
        self._removed: set[bytes] = set()

    def apply(self, changes: dict[bytes, bytes | None]) -> None:
        for key, value in changes.items():
            if value is None:
                if self.rows.pop(key, None) is not None:
                    self._added.discard(key)
                    self._removed.add(key)
            else:
                if key not in self.rows:
                    self._added.add(key)  # first, so that no Ctrl-C leaves a row which no scan shows
                self.rows[key] = value

    def sorted_keys(self) -> list[bytes]:
        # Removed keys leave first: one that came back is among the added ones. Sorting two sorted runs is one merge.
        if self._removed:
            self._sorted = [key for key in self._sorted if key not in self._removed]
            self._removed = set()
        if self._added:
            keys = self._sorted + sorted(key for key in self._added if key in self.rows)
            keys.sort()
            self._sorted, self._added = keys, set()
        return self._sorted


class MemoryEngine:
    """A StorageEngine that forgets everything when the process ends."""

    synced = False
    look_errors: tuple[type[Exception], ...] = ()

    def __init__(self) -> None:
        self._objects, self._hints, self._meta = _Rows(), _Rows(), _Rows()
        self.look = row_kernel.Look(self.read)

    def read(self, row_key: bytes) -> bytes | DynamoError | None:
        return self._objects.rows.get(row_key)

    def read_meta(self, name: bytes) -> bytes | None:
        return self._meta.rows.get(name)

    def scan(self, table: Table, start: bytes, stop: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        rows = self._table(table)
        keys = rows.sorted_keys()
        first = bisect_left(keys, start)
        last = len(keys) if stop is None else bisect_left(keys, stop)
        return [(key, rows.rows[key]) for key in keys[first : min(last, first + limit)]]

    def count(self, table: Table) -> int:
        return len(self._table(table).rows)

    def count_of(self, table: Table, keys: Collection[bytes]) -> int:
        rows = self._table(table).rows
        return sum(key in rows for key in keys)

    def _table(self, name: Table) -> _Rows:
        return self._objects if name == "objects" else self._hints if name == "hints" else self._meta

    def refresh(self) -> None:
        """Nothing to drop: every read sees the newest commit."""

    def commit(self, group: Group, entering: Callable[[], None] | None = None) -> None:
        tables = ((self._objects, group.objects), (self._hints, group.hints), (self._meta, group.meta))
        for _, changes in tables:
            for key in changes:
                if not 0 < len(key) <= KEY_BYTES_MAX:
                    raise StorageFailed(f"a key has 1..{KEY_BYTES_MAX} bytes, not {len(key)}")
        if entering is not None:
            entering()
        for rows, changes in tables:
            rows.apply(changes)

    def close(self) -> None:
        self._objects, self._hints, self._meta = _Rows(), _Rows(), _Rows()
