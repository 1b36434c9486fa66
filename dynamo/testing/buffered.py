"""A simulated node of durability `buffered`: the product's own write buffer, flushing and stop over the simulated disk, in virtual time.

Its groups end in the buffer; what takes time, fails, and is cut off by a crash is the flush. A crash takes the buffer along, and the observer is told
what was in it, so that the history knows whose copies are gone: a write may be lost when as many nodes as had to hold it lost theirs, and not else.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from dynamo.errors import DynamoError, StorageFailed, StorageFull
from dynamo.model import messages as m
from dynamo.model.group import Group
from dynamo.net.commits import BufferedCommits
from dynamo.replication import Replica
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
_LAST_COMMITS_MAX = 20


class BufferedNode(Node):
    """One node with a write buffer, of a random size."""

    def __init__(self, cluster: SimulatedCluster, node_id: bytes, number: int) -> None:
        super().__init__(cluster, node_id, number)
        self._bytes_max = self.rng.choice((2_000, 20_000, BYTES_MAX))
        self._commits_failed = 0
        self._writing: Group | None = None
        self._written = False  # what was being written is on disk, but the process, which is stopped, does not know
        self._flush_at = _NEVER
        self._before: Table | None = None  # rows as they were before the group that the observer is just being told of

    def _open(self) -> tuple[Read, Scan, Scan, int]:
        engine = DiskEngine(self.disk, self._commit_error)
        self._buffer = buffer = WriteBuffer(engine, self._bytes_max)
        self._writer = _Writer(self)
        self._commits = BufferedCommits(partial(Flushing, buffer), self._writer, engine, self.now)
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
        self._commits.submit(group)
        self._reap()

    def begin_write(self, group: Group) -> None:
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
            self.end_write(error)
            self._reap()

    def _commit_error(self) -> DynamoError | None:
        """A full disk takes what only removes."""
        error = super()._commit_error()
        return None if isinstance(error, StorageFull) and self._writing is not None and self._writing.only_removes else error

    def end_write(self, error: DynamoError | None) -> None:
        """The write under way has this outcome; the writer is told, the replica is not yet."""
        group, self._writing, self._written = self._writing, None, False
        assert group is not None
        if error is None:
            self.disk.apply(group)
        else:
            self.world.note("flush failed", self.name, type(error).__name__)
        self._writer.finished.append((group, error))

    def _reap(self) -> None:
        """Tell the replica of what is done, and begin a flush that is due."""
        replica = self.replica
        while replica is not None and replica is self.replica and self._report_done(replica):
            self._pump()
        self._arm()

    def _report_done(self, replica: Replica) -> bool:
        """Tell the replica of groups that are done, and of flushes; whether there were any."""
        completed, flushed = self._commits.completed(), self._commits.flushed()
        for group, error in completed:
            assert self._flying is not None and self._flying[0] is group
            messages, self._flying = self._flying[1], None
            if error is None:
                self._observe(group)
                replica.committed(group, self.now())
                for destination, message in messages:
                    self._send(destination, message)
            else:
                self._commits_failed += 1
                self.world.note("commit failed", self.name, type(error).__name__)
                replica.commit_failed(group, error, self.now())
        for number, error in flushed:
            replica.flushed(number, error, self.now())
        return bool(completed or flushed)

    def _observe(self, group: Group) -> None:
        self._before = self._rows_before
        self.cluster.observer.applying(self, group)
        self._before = None

    def _arm(self) -> None:
        """Have the next flush begin in time."""
        due = self._commits.next_deadline
        if self.replica is None or due == _NEVER:
            return
        at = max((due - self._origin) / self._rate + 1e-7, self.world.now + 1e-6)
        if at < self._flush_at - 1e-6 or self._flush_at < self.world.now:
            self._flush_at = at
            self.world.at(at, self._flush_due, self.boots, at)

    def _flush_due(self, boot: int, scheduled: float) -> None:
        if boot == self.boots and self.replica is not None and scheduled == self._flush_at and not self.paused:
            self._flush_at = _NEVER
            self._reap()

    # --- stopping -------------------------------------------------------------------------------------------------------------------

    def resume(self, boot: int) -> None:
        super().resume(boot)
        if boot == self.boots and self.replica is not None and not self.paused:
            if self._written:
                self.end_write(None)
                self._reap()
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
        """As the product stops: what is in flight ends (`Reactor.drain`), then the commits (`Pump.close`), then the engine (`DataDirectory.close`)."""
        self.paused = False
        for _ in range(_LAST_COMMITS_MAX):
            if self.replica is None or self._flying is None or self._writing is None:
                break
            self.end_write(self.outcome())
            self._reap()
        if self.replica is None:
            return False
        self._commits.close()
        failed_before = self._commits_failed
        self._report_done(self.replica)
        clean = self._commits_failed == failed_before and self._flying is None
        clean = clean and self.replica.take_ready().group is None and self.replica.core.actor.staged is None
        try:
            self._buffer.close()
        except (StorageFull, StorageFailed):
            self.crash(keep_group=False)
            return False
        self._down()
        return clean

    @property
    def writing(self) -> bool:
        """Whether the disk has been given something and has not said how it went."""
        return self._writing is not None

    def outcome(self) -> DynamoError | None:
        """How the write under way ends when it ends now."""
        return None if self._written else self._commit_error()


class _Writer:
    """What the commit thread is to a node (`net.commits.Writer`), without a thread: the node says when a write has ended."""

    def __init__(self, node: BufferedNode) -> None:
        self._node = node
        self.finished: list[tuple[Group, DynamoError | None]] = []

    def submit(self, group: Group) -> None:
        self._node.begin_write(group)

    def completed(self) -> list[tuple[Group, DynamoError | None]]:
        finished, self.finished = self.finished, []
        return finished

    def give_way(self) -> bool:
        """Nobody waits for the interpreter."""
        return False

    def close(self) -> None:
        """Wait for the write under way, if there is one."""
        if self._node.writing:
            self._node.end_write(self._node.outcome())
