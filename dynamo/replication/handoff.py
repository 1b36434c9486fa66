"""Rows of partitions this node does not own: handed to their owners, then dropped (paper 4.6; DESIGN sections 3 and 4).

Such a row is a hint, whether a sloppy write left it here or the ring moved its partition away. A pass scans just those partitions in slices and
sends each row to every current owner. The row is dropped only when all of them have durably acknowledged it and it is still, by its digest,
the row they acknowledged; never for age. A pass that could not deliver everything is followed by another one.
"""

from __future__ import annotations

from dynamo.errors import DynamoError
from dynamo.model import messages as m
from dynamo.model.key import split_row_key
from dynamo.model.messages import Message
from dynamo.model.row import decode_row
from dynamo.replication.core import Core


class PendingHandoff:
    """One row on its way to its owners."""

    __slots__ = ("digest", "handoff", "row_key", "started", "waiting")

    def __init__(self, handoff: Handoff, row_key: bytes, digest: bytes, owners: set[bytes], started: float) -> None:
        self.handoff = handoff
        self.row_key = row_key
        self.digest = digest
        self.waiting = owners
        self.started = started

    def on_reply(self, core: Core, source: bytes, message: Message) -> bool:
        if message[0] != m.REPLICATE_REPLY or source not in self.waiting:
            return False
        code, role, durability = message[2], message[3], message[4]
        if code or role != m.OWNER or durability < core.durability:
            return self._leave(core)
        self.waiting.discard(source)
        if self.waiting:
            return False
        row = core.rows.load(self.row_key)
        if row is not None and not isinstance(row, DynamoError) and row.digest == self.digest:
            core.rows.drop(self.row_key)
            core.count("rows_handed_off")
            self.handoff.landed(core)
            return True
        return self._leave(core)  # it changed meanwhile: what it is now goes with the next pass

    def on_wake(self, core: Core, record: bytes | None) -> bool:
        return False

    def on_failure(self, core: Core, node: bytes, code: int) -> bool:
        return node in self.waiting and self._leave(core)

    def on_timer(self, core: Core) -> bool:
        core.note_silence(self.started, sorted(self.waiting))
        return self._leave(core)

    def _leave(self, core: Core) -> bool:
        self.handoff.stays(core)
        return True


class Handoff:
    """The passes over the partitions this node does not own."""

    __slots__ = ("_again", "_cursor", "_in_flight", "_partitions", "next_at")

    def __init__(self) -> None:
        self.next_at: float | None = 0.0  # when the next pass or slice is due; None = nothing to hand over
        self._partitions: list[int] = []
        self._cursor = b""
        self._in_flight = 0
        self._again = False

    def wake(self, now: float) -> None:
        """There may be rows to hand over: the ring changed, or a sloppy write was kept."""
        if self._partitions or self._in_flight:
            self._again = True
        elif self.next_at is None or self.next_at > now:
            self.next_at = now

    def step(self, core: Core) -> None:
        """Go on with the pass, or begin one, up to the window."""
        if self.next_at is None or core.now < self.next_at:
            return
        if not self._partitions and not self._in_flight:
            self._partitions = [p for p in range(core.cluster.partitions) if not _owns_all(core, p)]
            self._cursor = b""
            self._again = False
        self._fill(core)

    def landed(self, core: Core) -> None:
        """A row arrived at all its owners."""
        self._in_flight -= 1
        self._fill(core)

    def stays(self, core: Core) -> None:
        """A row could not be delivered in this pass."""
        self._in_flight -= 1
        self._again = True
        self._fill(core)

    def _fill(self, core: Core) -> None:
        while self._partitions and self._in_flight < core.settings.handoff_window:
            prefix = self._partitions[-1].to_bytes(2, "big")
            stop = (self._partitions[-1] + 1).to_bytes(3, "big")[1:] if self._partitions[-1] < 0xFFFF else None
            rows = core.scan_background(max(self._cursor, prefix), stop, core.settings.handoff_window - self._in_flight)
            for row_key, data in rows:
                self._send(core, row_key, data)
            if rows:
                self._cursor = rows[-1][0] + b"\0"
            else:
                self._partitions.pop()
                self._cursor = b""
        if self._partitions or self._in_flight:
            self.next_at = core.now + core.settings.handoff_retry_s
        else:
            self.next_at = core.now + core.settings.handoff_retry_s if self._again else None

    def _send(self, core: Core, row_key: bytes, data: bytes) -> None:
        try:
            row = decode_row(row_key, data)
        except DynamoError:
            core.want_repair(row_key)
            self._again = True
            return
        partition, bucket, key = split_row_key(row_key, row.full_key)
        definition = core.cluster.bucket(bucket)
        owners = core.owners(partition, definition)
        if core.node_id in owners:
            return
        request_id = core.request_id()
        up = [node for node in owners if core.liveness.up(node)]
        message = (m.REPLICATE, request_id, bucket, key, row.record, m.PURPOSE_HANDOFF, b"",
                   int(core.settings.suspect_after_s * 1000), core.ring_number, core.ring_hash, definition.version, core.durability,
                   bytes(16))  # fmt: skip
        for node in up:
            core.send(node, message)
        if len(up) < len(owners):
            self._again = True  # the others get it when they are back; until all have it, it stays
            return
        self._in_flight += 1
        core.pending[request_id] = PendingHandoff(self, row_key, row.digest, set(owners), core.now)
        core.deadlines.add(core.now, core.settings.suspect_after_s, request_id)


def _owns_all(core: Core, partition: int) -> bool:
    """Whether this node owns the partition under every bucket's N, so that no row of it can be foreign."""
    return all(core.node_id in core.owners(partition, d) for d in core.definitions)
