"""A simulated node of durability `buffered`: the product's own write buffer and flushing over the simulated disk, in virtual time.

Its groups end in the buffer; what takes time, fails, and is cut off by a crash is the flush. A crash takes the buffer along, and the observer is told
what was in it, so that the history knows whose copies are gone: a write may be lost when as many nodes as had to hold it lost theirs, and not else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamo.errors import DynamoError, StorageFull
from dynamo.model import messages as m
from dynamo.model.group import Group
from dynamo.replication.core import Scan
from dynamo.replication.rows import Read
from dynamo.storage.buffer import BYTES_MAX, WriteBuffer
from dynamo.storage.flushing import Flushing
from dynamo.testing.disk import DiskEngine, Table
from dynamo.testing.node import Node

if TYPE_CHECKING:
    from dynamo.testing.simulator import SimulatedCluster

_NEVER = float("inf")
_RETRY_S = 0.05
_LAST_FLUSHES_MAX = 20


class BufferedNode(Node):
    """One node with a write buffer, of a random size."""

    def __init__(self, cluster: SimulatedCluster, node_id: bytes, number: int) -> None:
        super().__init__(cluster, node_id, number)
        self._bytes_max = self.rng.choice((2_000, 20_000, BYTES_MAX))
        self._writing: Group | None = None
        self._written = False  # what was being written is on disk, but the process, which is stopped, does not know
        self._flush_at = _NEVER
        self._before: Table | None = None  # rows as they were before the group that the observer is just being told of

    def _open(self) -> tuple[Read, Scan, Scan, int]:
        self._buffer = buffer = WriteBuffer(DiskEngine(self.disk), self._bytes_max)
        self._flushing = Flushing(buffer, self._begin_write)
        self._writing, self._written, self._flush_at = None, False, _NEVER

        def scan(start: bytes, stop: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
            return buffer.scan("objects", start, stop, limit)

        def scan_hints(start: bytes, stop: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
            return buffer.scan("hints", start, stop, limit)

        return buffer.read, scan, scan_hints, m.DURABILITY_BUFFERED

    # --- what it holds --------------------------------------------------------------------------------------------------------------

    def held(self, row_key: bytes) -> bytes | None:
        if self._before is not None and row_key in self._before:
            return self._before[row_key] or None
        if self.replica is not None:
            changed = self._buffer.changed("objects", row_key, row_key + b"\0")
            if row_key in changed:
                return changed[row_key]
        return self.disk.objects.get(row_key)

    def view(self) -> tuple[Table, Table]:
        if self.replica is None:
            return super().view()
        objects: dict[bytes, bytes | None] = {**self.disk.objects, **self._buffer.changed("objects")}
        hints: dict[bytes, bytes | None] = {**self.disk.hints, **self._buffer.changed("hints")}
        return {key: row for key, row in objects.items() if row is not None}, {key: row for key, row in hints.items() if row is not None}

    # --- groups, and the disk behind them -------------------------------------------------------------------------------------------

    def _begin_commit(self, writes: bool) -> None:
        assert self._flying is not None
        group = self._flying[0]
        touched = group.objects.keys() | {hint[16:] for hint in group.hints}
        self._rows_before = {row_key: self.held(row_key) or b"" for row_key in touched}
        self._flushing.submit(group, self.now())
        self._reap()

    def _begin_write(self, group: Group) -> None:
        self._writing = group
        self.world.after(self._commit_s(bool(group.objects)), self._write_ends, self.boots)

    def _write_ends(self, boot: int) -> None:
        """The disk is done with a flush, for better or worse."""
        if boot != self.boots or self.replica is None or self._writing is None or self._written:
            return
        error = self._commit_error()
        if self.paused and error is None:
            self._written = True
        elif self.paused:
            self.world.after(_RETRY_S, self._write_ends, boot)
        else:
            self._end_write(error)

    def _commit_error(self) -> DynamoError | None:
        """A full disk takes what only removes."""
        error = super()._commit_error()
        return None if isinstance(error, StorageFull) and self._writing is not None and self._writing.only_removes else error

    def _end_write(self, error: DynamoError | None) -> None:
        group, self._writing, self._written = self._writing, None, False
        assert group is not None
        if error is None:
            self.disk.apply(group)
        else:
            self.world.note("flush failed", self.name, type(error).__name__)
        self._flushing.written(error, self.now())
        self._reap()

    def _reap(self) -> None:
        """Tell the replica of groups that are done, and of flushes."""
        replica = self.replica
        while replica is not None and replica is self.replica:
            completed, flushed = self._flushing.completed(), self._flushing.flushed()
            if not completed and not flushed:
                break
            for group, error in completed:
                assert self._flying is not None and self._flying[0] is group
                messages, self._flying = self._flying[1], None
                if error is None:
                    self._observe(group)
                    replica.committed(group, self.now())
                    for destination, message in messages:
                        self._send(destination, message)
                else:
                    self.world.note("commit failed", self.name, type(error).__name__)
                    replica.commit_failed(group, error, self.now())
            for number, error in flushed:
                replica.flushed(number, error, self.now())
            self._pump()
        self._arm()

    def _observe(self, group: Group) -> None:
        self._before = self._rows_before
        self.cluster.observer.applying(self, group)
        self._before = None

    def _arm(self) -> None:
        """Have the next flush begin in time."""
        due = self._flushing.next_deadline
        if self.replica is None or due == _NEVER:
            return
        at = max((due - self._origin) / self._rate + 1e-7, self.world.now + 1e-6)
        if at < self._flush_at - 1e-6 or self._flush_at < self.world.now:
            self._flush_at = at
            self.world.at(at, self._flush_due, self.boots, at)

    def _flush_due(self, boot: int, scheduled: float) -> None:
        if boot == self.boots and self.replica is not None and scheduled == self._flush_at and not self.paused:
            self._flush_at = _NEVER
            self._flushing.tick(self.now())
            self._reap()

    # --- stopping -------------------------------------------------------------------------------------------------------------------

    def resume(self, boot: int) -> None:
        super().resume(boot)
        if boot == self.boots and self.replica is not None and not self.paused:
            if self._written:
                self._end_write(None)
            self._flush_at = _NEVER
            self._arm()

    def crash(self, keep_group: bool) -> None:
        """Die. The flush under way may have reached the disk or not; what else was in the buffer has not."""
        group, self._writing = self._writing, None
        before = {row_key: self.held(row_key) for row_key in self._buffer.changed("objects")} if self.replica is not None else {}
        if group is not None and (self._written or (keep_group and self.disk.refusal() is None)):
            if self._flying is not None and self._flying[0].number == group.number:
                self._observe(self._flying[0])  # it went with the flush
            self.disk.apply(group)
        self._down()
        if before:
            self.cluster.observer.buffer_lost(self, before)

    def stop_cleanly(self) -> bool:
        for _ in range(_LAST_FLUSHES_MAX):
            if self.replica is None:
                return False
            self.paused = False
            if self._writing is not None:
                self._end_write(None if self._written else self._commit_error())
            elif self._buffer.dirty:
                self._flushing.flush_by(self.now())
                self._flushing.tick(self.now())
            else:
                break
        if self.replica is None:
            return False
        clean = self._writing is None and not self._buffer.dirty and self._flying is None and self.replica.core.actor.staged is None
        if clean:
            self._down()
        else:
            self.crash(keep_group=False)
        return clean
