"""Rows of partitions this node does not own: handed to their owners, then dropped (paper 4.6; DESIGN sections 3 and 4).

Such a row is a hint, whether a sloppy write left it here or the ring moved its partition away. A pass scans just those partitions in slices and
sends each row to every current owner. The row is dropped only when all of them have durably acknowledged it and it is still, by its digest,
the row they acknowledged; never for age. A pass that could not deliver everything is followed by another one.
"""

from __future__ import annotations

from dynamo.errors import DynamoError
from dynamo.membership.ring import Ring
from dynamo.model import messages as m
from dynamo.model.key import split_row_key
from dynamo.model.messages import Message
from dynamo.model.row import Row
from dynamo.replication.core import Core

_SLICES_MAX = 16  # of up to `handoff_window` rows each, in one step


class PendingHandoff:
    """One row on its way to its owners."""

    answered = True  # nobody waits for it: a node that stops does not

    __slots__ = ("all_asked", "digest", "handoff", "row_key", "started", "waiting")

    def __init__(self, handoff: Handoff, row_key: bytes, digest: bytes, asked: set[bytes], all_asked: bool, started: float) -> None:
        self.handoff = handoff
        self.row_key = row_key
        self.digest = digest
        self.waiting = asked
        self.all_asked = all_asked  # else some owner is down: it gets the row when it is back, and until all have it, it stays
        self.started = started

    def on_reply(self, core: Core, source: bytes, message: Message) -> bool:
        if message[0] != m.REPLICATE_REPLY or source not in self.waiting:
            return False
        code, role, durability = message[2], message[3], message[4]
        if code or role != m.OWNER or durability < core.durability_to_drop:
            return self._leave(core)
        self.waiting.discard(source)
        if self.waiting:
            return False
        if not self.all_asked:
            return self._leave(core)
        row = core.rows.load(self.row_key)
        if _owned(core, self.row_key, row):
            return self._leave(core)  # the ring changed meanwhile
        if isinstance(row, Row) and row.digest == self.digest:
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


def _owned(core: Core, row_key: bytes, row: Row | DynamoError | None) -> bool:
    """Whether this node owns the row."""
    if not isinstance(row, Row):
        return False
    partition, bucket, _ = split_row_key(row_key, row.full_key)
    return core.node_id in core.owners(partition, core.cluster.bucket(bucket))


class Handoff:
    """The passes over the partitions this node does not own."""

    __slots__ = ("_again", "_cursor", "_foreign_partitions", "_in_flight", "_partitions", "_ring", "next_at")

    def __init__(self) -> None:
        self.next_at: float | None = 0.0  # when the next pass or slice is due; None = nothing to hand over
        self._partitions: list[int] = []  # still to be looked at, the next one last
        self._foreign_partitions: list[int] = []
        self._ring: Ring | None = None  # under which those are foreign
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
            self._partitions = self._foreign(core)
            self._cursor = b""
            self._again = False
        self._fill(core)

    def _foreign(self, core: Core) -> list[int]:
        """The partitions, highest first, that this node does not own under every bucket's N; no row of the others can be foreign."""
        if self._ring is not core.ring:
            self._ring = core.ring
            highest_first = range(core.cluster.partitions - 1, -1, -1)
            self._foreign_partitions = [p for p in highest_first if not all(core.node_id in core.owners(p, d) for d in core.definitions)]
        return self._foreign_partitions.copy()

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
        """Keep the window full, looking at a bounded number of rows at a time: where owners are down a pass sends little and still reads all."""
        for _ in range(_SLICES_MAX):
            if not self._partitions or self._in_flight >= core.settings.handoff_window:
                break
            self._look(core)
        else:
            self.next_at = core.now + core.settings.tree_slice_s
            return
        if self._partitions or self._in_flight or self._again:
            self.next_at = core.now + core.settings.handoff_retry_s
        else:
            self.next_at = None

    def _look(self, core: Core) -> None:
        """Read the next rows, and send those that are foreign. Most foreign partitions are empty: it goes from row to row, not through them all."""
        start = max(self._cursor, self._partitions[-1].to_bytes(2, "big"))
        try:
            rows = core.scan(start, None, core.settings.handoff_window - self._in_flight)
        except DynamoError:
            core.count("background_reads_failed")
            rows, self._again = [], True
        if not rows:
            self._partitions = []
        for row_key, data in rows:
            self._cursor = row_key + b"\0"
            partition = int.from_bytes(row_key[:2], "big")
            while self._partitions and self._partitions[-1] < partition:  # there is no row in them, or none any more
                self._partitions.pop()
            if not self._partitions or self._partitions[-1] > partition:
                return  # this one is owned; on to the next that is not
            self._send(core, row_key, data)

    def _send(self, core: Core, row_key: bytes, data: bytes) -> None:
        if not core.is_row_key(row_key):
            return
        try:
            row = core.decode(row_key, data)
        except DynamoError:
            self._again = True
            return
        partition, bucket, key = split_row_key(row_key, row.full_key)
        definition = core.cluster.bucket(bucket)
        owners = core.owners(partition, definition)
        if core.node_id in owners:
            return
        up = [node for node in owners if core.liveness.up(node)]
        if not up:
            self._again = True
            return
        request_id = core.request_id()
        message = (m.REPLICATE, request_id, bucket, key, row.record, m.PURPOSE_HANDOFF, b"",
                   int(core.settings.suspect_after_s * 1000), core.ring_number, core.ring_hash, definition.version, core.durability_to_drop,
                   bytes(16))  # fmt: skip
        for node in up:
            core.send(node, message)
        self._in_flight += 1
        core.pending[request_id] = PendingHandoff(self, row_key, row.digest, set(up), len(up) == len(owners), core.now)
        core.deadlines.add(core.now, core.settings.suspect_after_s, request_id)
