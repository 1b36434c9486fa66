"""The paper's write buffer (6.1): an engine whose commits are in memory first and reach the engine below in large groups.

A row that is written ten times between two flushes is written to disk once, and a thousand rows share one fsync. Reads see the buffer, so to
whoever reads there is no difference; a crash loses what was not flushed. A flush is one group of everything the buffer holds: the disk goes from the
state after one commit to that after a later one, and a group is never there by half.

Rows are in one of two layers: the young one takes what comes; the other is on its way to the disk. A flush that fails is no commit that failed: its
rows were acknowledged and are shown, so they stay, under what came since, until the disk takes them. Meanwhile `failure` says why not, and
nothing more is taken in. The one exception to the order of the disk's states is for a full disk (`written_beside`): rows and hints are removed there
before what is older is written. Whoever removes them has made sure that they are on other disks, so no write rests on the order. A node that crashes
before its next flush may know a ring by which it owns what it handed over: it holds nothing then until gossip or its peers tell it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection

from dynamo._core import row as row_kernel
from dynamo.errors import DynamoError, StorageFailed
from dynamo.model.group import Group
from dynamo.storage.engine import KEY_BYTES_MAX, StorageEngine, Table

BYTES_MAX = 16 << 20  # of the young layer; the other is no larger, but for the one group that reached the bound
ROW_BYTES = 200  # what a row costs beside its bytes

_MISSING = object()


class _Changes:
    """Changes to one table: rows by key, None deletes; and their keys in order, when a scan asks."""

    __slots__ = ("_added", "_sorted", "rows")

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes | None] = {}
        self._sorted: list[bytes] = []
        self._added: list[bytes] = []

    def update(self, changes: dict[bytes, bytes | None]) -> int:
        """Apply newer changes; by how much it grew."""
        rows, grown = self.rows, 0
        for key, value in changes.items():
            before = rows.get(key, _MISSING)
            if before is _MISSING:
                self._added.append(key)  # first, so that no Ctrl-C leaves a row which no scan shows
            rows[key] = value
            if before is _MISSING:
                grown += ROW_BYTES + len(key)
            elif before is not None:
                grown -= len(before)  # type: ignore[arg-type]
            if value is not None:
                grown += len(value)
        return grown

    def within(self, start: bytes, stop: bytes | None) -> list[bytes]:
        """The keys from start up to stop, in order."""
        if self._added:  # sorting two sorted runs is one merge
            keys = self._sorted + sorted(key for key in self._added if key in self.rows)
            keys.sort()
            self._sorted, self._added = keys, []  # at once: a Ctrl-C leaves all as it was
        keys = self._sorted
        first = bisect_left(keys, start)
        return keys[first:] if stop is None else keys[first : bisect_left(keys, stop, first)]


class _Layer:
    """What some groups changed, and the number of the last one."""

    __slots__ = ("hints", "meta", "number", "objects", "size")

    def __init__(self) -> None:
        self.objects, self.hints, self.meta = _Changes(), _Changes(), _Changes()
        self.size = 0
        self.number = 0

    def add(self, group: Group) -> None:
        grown = self.objects.update(group.objects)
        if group.hints:
            grown += self.hints.update(group.hints)
        if group.meta:
            grown += self.meta.update(group.meta)
        self.size += grown
        self.number = max(self.number, group.number)

    def as_group(self) -> Group:
        return Group(self.number, dict(self.objects.rows), dict(self.hints.rows), dict(self.meta.rows), synced=True)

    def table(self, name: Table) -> _Changes:
        return self.objects if name == "objects" else self.hints if name == "hints" else self.meta


class WriteBuffer:
    """A StorageEngine over another one. All of it belongs to the thread that reads; the group of a flush may be written by another one, and then
    `flush_done` or `flush_failed` tells of it. `commit` alone does both by itself: it flushes where the group asks to be synced or the buffer is
    full. That is all the embedded store needs; a node flushes beside its work (`flushing`)."""

    synced = False

    look_errors: tuple[type[Exception], ...] = ()

    def __init__(self, engine: StorageEngine, bytes_max: int = BYTES_MAX, check: Callable[[], None] = lambda: None) -> None:
        """`check` raises StorageFailed where the engine has lost its file: what is taken in now would have no place to go."""
        self.engine = engine
        self._check_place = check
        self.bytes_max = bytes_max
        self.look = row_kernel.Look(self.read)
        self.failure: DynamoError | None = None  # of the last flush
        self._young = _Layer()
        self._flushing: _Layer | None = None
        self._closed = False

    @property
    def size(self) -> int:
        """Bytes that the young layer takes."""
        return self._young.size

    @property
    def dirty(self) -> bool:
        """Whether there is anything that no flush has taken yet."""
        young = self._young
        return bool(young.objects.rows or young.hints.rows or young.meta.rows)

    # --- reading ------------------------------------------------------------------------------------------------------

    def read(self, row_key: bytes) -> bytes | DynamoError | None:
        found = self._young.objects.rows.get(row_key, _MISSING)
        if found is _MISSING and self._flushing is not None:
            found = self._flushing.objects.rows.get(row_key, _MISSING)
        return self.engine.read(row_key) if found is _MISSING else found  # type: ignore[return-value]

    def read_meta(self, name: bytes) -> bytes | None:
        for layer in (self._young, self._flushing):
            if layer is not None and name in layer.meta.rows:
                return layer.meta.rows[name]
        return self.engine.read_meta(name)

    def scan(self, table: Table, start: bytes, stop: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        while True:
            page = self.engine.scan(table, start, stop, limit)
            whole = len(page) < limit or limit < 1
            behind = stop if whole else page[-1][0] + b"\0"
            changed = self.changed(table, start, behind)
            if changed:
                merged = {**dict(page), **changed}
                page = sorted((key, value) for key, value in merged.items() if value is not None)
            found += page
            if whole or len(found) >= limit:
                return found[:limit]
            assert behind is not None
            start = behind

    def changed(self, table: Table, start: bytes = b"", stop: bytes | None = None) -> dict[bytes, bytes | None]:
        """What the buffer holds of the table between the two keys; None where it deletes."""
        found: dict[bytes, bytes | None] = {}
        for layer in (self._flushing, self._young):
            if layer is not None:
                changes = layer.table(table)
                if changes.rows:
                    found.update((key, changes.rows[key]) for key in changes.within(start, stop))
        return found

    def count(self, table: Table) -> int:
        changed = self.changed(table)
        return self.engine.count(table) - self.engine.count_of(table, changed) + sum(value is not None for value in changed.values())

    def count_of(self, table: Table, keys: Collection[bytes]) -> int:
        changed = self.changed(table)
        there = [changed[key] is not None for key in keys if key in changed]
        return sum(there) + self.engine.count_of(table, [key for key in keys if key not in changed])

    def refresh(self) -> None:
        self.engine.refresh()

    # --- writing ------------------------------------------------------------------------------------------------------

    def full(self) -> bool:
        """Whether it takes no more before a flush has ended."""
        return self._young.size >= self.bytes_max

    def put(self, group: Group) -> None:
        """Take a group in. Raises StorageFailed for a key that the engine would refuse: it would take every flush from now on with it."""
        _check(group)
        self._check_place()
        self._young.add(group)

    def begin_flush(self, last: Group | None = None) -> Group:
        """Everything there is as one group, to be written to the engine, and `last` with it: a group that is not in the buffer, and will not be if
        the write fails."""
        assert self._flushing is None, "a flush is under way already"
        group = self._young.as_group()
        if last is not None:
            group.number = max(group.number, last.number)
            group.objects.update(last.objects)
            group.hints.update(last.hints)
            group.meta.update(last.meta)
        self._flushing, self._young = self._young, _Layer()  # last: a Ctrl-C while the group was being made leaves all as it was
        return group

    def flush_done(self) -> None:
        """The engine has the group."""
        self._flushing = self.failure = None
        self.engine.refresh()

    def flush_failed(self, error: DynamoError) -> None:
        """The engine does not have it: what was in the buffer is so again, under what came since."""
        assert self._flushing is not None
        older, newer = self._flushing, self._young
        older.add(newer.as_group())
        self._young, self._flushing = older, None
        self.failure = error

    def written_beside(self, group: Group) -> None:
        """The engine has this group, and has not what came before it: what the buffer still has of its rows is out of date."""
        self._young.add(group)
        self.engine.refresh()

    def _take_back(self, error: DynamoError) -> None:
        if self._flushing is not None:
            self.flush_failed(error)

    def commit(self, group: Group, entering: Callable[[], None] | None = None) -> None:
        """Take the group in; with a flush of all there is, and this group, if it asks to be synced, the buffer is full or the last flush failed.
        Raises StorageFull or StorageFailed of that flush: then nothing of this group is visible, and all older ones are."""
        if not (group.synced or self.failure is not None or self.full()):
            _check(group)
            self._check_place()
            if entering is not None:
                entering()
            self._young.add(group)
            return
        try:
            self.engine.commit(self.begin_flush(group), entering)
        except BaseException as error:
            self._take_back(error if isinstance(error, DynamoError) else StorageFailed("the flush was interrupted"))
            raise
        self.flush_done()

    def flush(self) -> None:
        """Write all there is. Raises StorageFull, StorageFailed."""
        if self.dirty:
            self.commit(Group(0, synced=True))

    def close(self) -> None:
        """Flush and close. Raises StorageFull or StorageFailed once all is closed: then acknowledged writes are lost."""
        if not self._closed:
            try:
                # Whoever was to write a flush that is still under way did not tell how it ended: written once more it is the same.
                self._take_back(StorageFailed("a flush was not finished"))
                self.flush()
                self._closed = True
            except DynamoError:  # nothing else closes: what a Ctrl-C leaves here is for the next call
                self._closed = True
                self.engine.close()
                raise
        self.engine.close()


def _check(group: Group) -> None:
    for changes in (group.objects, group.hints, group.meta):
        for key in changes:
            if not 0 < len(key) <= KEY_BYTES_MAX:
                raise StorageFailed(f"a key has 1..{KEY_BYTES_MAX} bytes, not {len(key)}")
