"""Rows of partitions this node does not own: handed to their owners, then dropped (paper 4.6; DESIGN sections 3 and 4).

Such a row is a hint, whether a sloppy write left it here or the ring moved its partition away. A pass goes through just those partitions in slices
and asks each owner that can be reached which of the rows it lacks, by digest; those it is sent. The row is dropped only when all current owners
have durably acknowledged it and it is still, by its digest, the row they acknowledged; never for age.

What an owner has acknowledged is remembered (`acknowledged`) and not asked again, so while an owner is down the others hear nothing; after a
restart of this node or of an owner, or under another ring, the digests are compared anew. An owner that refuses is left alone for a while that doubles.
"""

from __future__ import annotations

from collections.abc import Iterable

from dynamo.errors import CorruptRecord, DynamoError
from dynamo.membership.ring import Ring
from dynamo.model import messages as m
from dynamo.model.key import split_row_key
from dynamo.model.messages import Message
from dynamo.model.row import Row, decode_row
from dynamo.replication.acknowledged import Acknowledged
from dynamo.replication.back_off import next_wait
from dynamo.replication.core import Core
from dynamo.replication.rows import NO_DIGEST

_SLICES_MAX = 16  # of up to `handoff_window` rows each, in one step
_Offered = tuple[bytes, bytes]  # row key, digest


class PendingOffer:
    """Rows of which one owner is asked whether it has them."""

    answered = True  # nobody waits for it: a node that stops does not

    __slots__ = ("handoff", "owner", "rows", "started")

    def __init__(self, handoff: Handoff, owner: bytes, rows: list[_Offered], started: float) -> None:
        self.handoff = handoff
        self.owner = owner
        self.rows = rows
        self.started = started

    def on_reply(self, core: Core, source: bytes, message: Message) -> bool:
        if message[0] != m.OFFER_REPLY or source != self.owner:
            return False
        code, durability, lacking = message[2:5]
        if code or durability < core.durability_to_drop:
            return self._refused(core)
        wanted = {index for index in lacking if index < len(self.rows)}
        self.handoff.answered(core, self.owner, [(row, index in wanted) for index, row in enumerate(self.rows)])
        return True

    def on_wake(self, core: Core, record: bytes | None) -> bool:
        return False

    def on_failure(self, core: Core, node: bytes, code: int) -> bool:
        return node == self.owner and self._refused(core)

    def on_timer(self, core: Core) -> bool:
        core.note_silence(self.started, [self.owner])
        return self._refused(core)

    def _refused(self, core: Core) -> bool:
        self.handoff.refused(core, self.owner, len(self.rows))
        return True


class PendingHandoff:
    """One row on its way to an owner that lacks it."""

    answered = True  # nobody waits for it: a node that stops does not

    __slots__ = ("digest", "handoff", "owner", "row_key", "started")

    def __init__(self, handoff: Handoff, owner: bytes, row_key: bytes, digest: bytes, started: float) -> None:
        self.handoff = handoff
        self.owner = owner
        self.row_key = row_key
        self.digest = digest
        self.started = started

    def on_reply(self, core: Core, source: bytes, message: Message) -> bool:
        if message[0] != m.REPLICATE_REPLY or source != self.owner:
            return False
        code, role, durability = message[2], message[3], message[4]
        if code or role == m.FALLBACK or durability < core.durability_to_drop:
            self.handoff.refused(core, self.owner, 1)
        else:
            self.handoff.answered(core, self.owner, [((self.row_key, self.digest), False)])
        return True

    def on_wake(self, core: Core, record: bytes | None) -> bool:
        return False

    def on_failure(self, core: Core, node: bytes, code: int) -> bool:
        if node == self.owner:
            self.handoff.refused(core, self.owner, 1)
        return node == self.owner

    def on_timer(self, core: Core) -> bool:
        core.note_silence(self.started, [self.owner])
        self.handoff.refused(core, self.owner, 1)
        return True


class Handoff:
    """The passes over the partitions this node does not own."""

    __slots__ = ("_acknowledged", "_cursor", "_dropping", "_foreign", "_in_flight", "_in_step", "_incarnations", "_liveness", "_partitions",
                 "_pause_s", "_refused", "_ring", "_still_here", "_todo", "next_at")  # fmt: skip

    def __init__(self) -> None:
        self.next_at: float | None = 0.0  # when the next pass or slice is due; None = nothing to hand over
        self._ring: Ring | None = None
        self._foreign: frozenset[int] = frozenset()  # the partitions not owned, under that ring
        self._todo: set[int] = set()  # of these, the ones that may hold a row
        self._partitions: list[int] = []  # still to be looked at in this pass, the next one last
        self._in_step: set[bytes] | None = None  # owners for which the pass goes on through the partition; None: it was not begun
        self._cursor = b""
        self._in_flight = 0  # rows offered or sent, once for each owner
        self._acknowledged = Acknowledged()
        self._incarnations: dict[bytes, int] = {}
        self._refused: dict[bytes, tuple[float, float]] = {}  # owner -> until when it is left alone, and how long that is
        self._liveness = -1
        self._pause_s = 0.0  # after the last commit, which failed
        self._dropping: set[bytes] = set()  # rows that all owners have, whose removal is not committed yet
        self._still_here: set[bytes] = set()  # those of which it failed

    def wake(self, now: float) -> None:
        """There may be rows to hand over."""
        if not self._partitions and not self._in_flight and (self.next_at is None or self.next_at > now):
            self.next_at = now

    def changed(self, core: Core, changes: Iterable[tuple[bytes, bytes | None, bytes]]) -> None:
        """A commit changed these rows."""
        self._pause_s = 0.0
        if self._dropping:
            self._dropping.difference_update(row_key for row_key, _, after in changes if after == NO_DIGEST)
        if not self._foreign or self._ring is not core.ring:
            return
        for row_key, _, after in changes:
            partition = row_key[0] << 8 | row_key[1]
            if partition in self._foreign and after != NO_DIGEST:
                self._acknowledged.changed(partition, row_key)
                self._todo.add(partition)
                self.wake(core.now + core.settings.handoff_retry_s)

    def commit_failed(self, core: Core) -> None:
        """What was dropped is here still. It need not be sent again for that; its removal is tried after a while."""
        self._pause_s = next_wait(core.settings, core.settings.handoff_retry_s, self._pause_s)
        self._still_here |= self._dropping
        self._dropping = set()
        self.next_at = core.now + self._pause_s

    def step(self, core: Core) -> None:
        """Go on with the pass, or begin one, up to the window."""
        if self._liveness != core.liveness.version:
            self._liveness = core.liveness.version
            if self._todo:
                self.wake(core.now)  # an owner may be back
        if self.next_at is None or core.now < self.next_at:
            return
        if not self._partitions and not self._in_flight:
            self._begin(core)
        self._fill(core)

    def _begin(self, core: Core) -> None:
        if self._ring is not core.ring:
            self._ring = core.ring
            everywhere = range(core.cluster.partitions)  # no row of one that is owned under every bucket's N can be foreign
            self._foreign = frozenset(p for p in everywhere if not all(core.node_id in core.owners(p, d) for d in core.definitions))
            self._todo = set(self._foreign)
            self._acknowledged.clear()
        for node, member in core.membership.members.items():
            if self._incarnations.get(node) != member.incarnation:
                self._incarnations[node] = member.incarnation
                self._acknowledged.forget_owner(node)
        again, self._still_here = self._still_here, set()
        for row_key in sorted(again):
            row = core.rows.load(row_key)
            if isinstance(row, CorruptRecord):
                core.want_repair(row_key)
            if isinstance(row, DynamoError) or core.rows.held(row_key) is not None:
                self._still_here.add(row_key)  # not known, or changing just now: what it will be then may not be what they have
            elif row is not None and not _owned(core, row_key, row):
                self._drop_if_all_have(core, row_key, row)
        leaving = {row_key[0] << 8 | row_key[1] for row_key in self._dropping | self._still_here}
        for partition in [p for p in self._todo if p not in leaving and self._acknowledged.done(p, self._owners(core, p))]:
            self._todo.discard(partition)
            self._acknowledged.forget_partition(partition)
        self._partitions = sorted((p for p in self._todo if any(self._open(core, p, owner) for owner in self._owners(core, p))), reverse=True)
        self._in_step = None

    # --- what the owners say --------------------------------------------------------------------------------------------------------

    def answered(self, core: Core, owner: bytes, rows: list[tuple[_Offered, bool]]) -> None:
        """An owner has durably acknowledged rows, or (True) lacks them."""
        self._in_flight -= len(rows)
        if not any(lacking for _, lacking in rows):  # one that says what it lacks has not taken it yet
            self._refused.pop(owner, None)
        for (row_key, digest), lacking in rows:
            row = core.rows.load(row_key)
            if self._ring is not core.ring or not isinstance(row, Row) or row.digest != digest or _owned(core, row_key, row):
                continue  # it changed meanwhile: what it is now goes with the next pass
            if lacking:
                self._send(core, owner, row_key, row)
                continue
            self._acknowledged.has(row_key[0] << 8 | row_key[1], owner, row_key)
            self._drop_if_all_have(core, row_key, row)
        self._fill(core)

    def _drop_if_all_have(self, core: Core, row_key: bytes, row: Row) -> None:
        partition, bucket, _ = split_row_key(row_key, row.full_key)
        owners = core.owners(partition, core.cluster.bucket(bucket))
        if all(self._acknowledged.covers(partition, owner, row_key) for owner in owners):
            core.rows.drop(row_key)
            core.count("rows_handed_off")
            self._dropping.add(row_key)

    def refused(self, core: Core, owner: bytes, rows: int) -> None:
        """An owner did not take rows that it was offered or sent: it is left alone for a while that doubles with each time."""
        self._in_flight -= rows
        until, wait_s = self._refused.get(owner, (0.0, 0.0))
        if core.now >= until and core.liveness.up(owner):  # what is down is not asked, and once it is back it is asked at once
            wait_s = next_wait(core.settings, core.settings.handoff_retry_s, wait_s)
            self._refused[owner] = core.now + wait_s, wait_s
        self._fill(core)

    def _open(self, core: Core, partition: int, owner: bytes) -> bool:
        """Whether the owner may lack rows of the partition and can be asked now."""
        return self._reachable(core, owner) and not self._acknowledged.done(partition, [owner])

    def _reachable(self, core: Core, owner: bytes) -> bool:
        return core.liveness.up(owner) and core.now >= self._refused.get(owner, (0.0, 0.0))[0]

    # --- the pass -------------------------------------------------------------------------------------------------------------------

    def _fill(self, core: Core) -> None:
        """Keep the window full, looking at a bounded number of rows at a time."""
        if self._ring is not core.ring:
            self._partitions, self._in_step = [], None  # the next pass begins anew
        for _ in range(_SLICES_MAX):
            if not self._partitions or self._in_flight >= core.settings.handoff_window:
                break
            self._look(core)
        else:
            self.next_at = core.now + core.settings.tree_slice_s
            return
        if self._partitions or self._in_flight or self._todo or self._ring is not core.ring:
            self.next_at = max(self.next_at or 0.0, core.now + core.settings.handoff_retry_s)
        else:
            self.next_at = None

    def _owners(self, core: Core, partition: int) -> list[bytes]:
        """The owners of the partition under any bucket's N, without this node."""
        owners = {owner for definition in core.definitions for owner in core.owners(partition, definition)}
        return sorted(owners - {core.node_id})

    def _look(self, core: Core) -> None:
        """Read the next rows, and offer those that are foreign. Most foreign partitions are empty: it goes from row to row, not through them all."""
        partition = self._partitions[-1]
        if self._in_step is None:
            self._enter(core, partition)
        if not self._in_step:
            self._leave()
            return
        room = max(1, (core.settings.handoff_window - self._in_flight) // len(self._in_step))
        try:
            rows = core.scan(max(self._cursor, partition.to_bytes(2, "big")), None, room)
        except DynamoError:
            core.count("background_reads_failed")
            self._in_step = set()
            self._leave()
            return
        offers: dict[bytes, list[tuple[bytes, Row]]] = {}
        empty = not self._cursor and not (rows and rows[0][0][:2] == partition.to_bytes(2, "big"))
        for row_key, data in rows:
            if row_key[0] << 8 | row_key[1] != partition:
                break
            self._cursor = row_key + b"\0"
            self._take(core, partition, row_key, data, offers)
        else:
            row_key = b""
        for owner, offered in offers.items():
            self._offer(core, owner, offered)
        if not rows or row_key:
            for owner in self._in_step:
                self._acknowledged.advance(partition, owner, None)
            self._leave(empty)
            following = row_key[0] << 8 | row_key[1] if rows else core.cluster.partitions
            while self._partitions and self._partitions[-1] < following:  # there is no row in them
                self._todo.discard(self._partitions[-1])
                self._acknowledged.forget_partition(self._partitions.pop())

    def _enter(self, core: Core, partition: int) -> None:
        """Begin a partition: offer again what owners lacked, and find where to go on reading."""
        self._in_step = set()
        starts = []
        for owner in self._owners(core, partition):
            if self._reachable(core, owner):
                progress = self._acknowledged.of(partition, owner)
                if not progress.ended:
                    self._in_step.add(owner)
                    starts.append(progress.through + b"\0" if progress.through else b"")
                self._offer_again(core, partition, owner, sorted(progress.lacking))
        self._cursor = min(starts, default=b"")

    def _offer_again(self, core: Core, partition: int, owner: bytes, row_keys: list[bytes]) -> None:
        offered = []
        for row_key in row_keys:
            row = core.rows.load(row_key)
            if isinstance(row, CorruptRecord):
                core.want_repair(row_key)
            elif isinstance(row, DynamoError):
                core.count("background_reads_failed")
            elif row is None or not self._owes(core, row_key, row, owner):
                self._acknowledged.has(partition, owner, row_key)
            elif core.rows.held(row_key) is None:
                offered.append((row_key, row))
        if offered:
            self._offer(core, owner, offered)

    def _owes(self, core: Core, row_key: bytes, row: Row, owner: bytes) -> bool:
        partition, bucket, _ = split_row_key(row_key, row.full_key)
        owners = core.owners(partition, core.cluster.bucket(bucket))
        return core.node_id not in owners and owner in owners

    def _take(self, core: Core, partition: int, row_key: bytes, data: bytes, offers: dict[bytes, list[tuple[bytes, Row]]]) -> None:
        """A row was read: it is offered to the owners that the pass has not offered it to yet."""
        assert self._in_step is not None
        try:
            row: Row | None = decode_row(row_key, data)
        except DynamoError:
            core.want_repair(row_key)
            row = None
        for owner in sorted(self._in_step):
            if row_key <= self._acknowledged.of(partition, owner).through:
                continue
            if row is None or self._owes(core, row_key, row, owner):
                if not self._reachable(core, owner) or not self._acknowledged.missing(partition, owner, row_key):
                    self._in_step.discard(owner)  # the next pass goes on here
                    continue
                if row is not None:
                    offers.setdefault(owner, []).append((row_key, row))
            self._acknowledged.advance(partition, owner, row_key)

    def _leave(self, empty: bool = False) -> None:
        """The pass is done with the partition; whether all of it arrives shows when the next one begins."""
        partition = self._partitions.pop()
        self._in_step = None
        if empty:
            self._todo.discard(partition)
            self._acknowledged.forget_partition(partition)

    # --- sending --------------------------------------------------------------------------------------------------------------------

    def _offer(self, core: Core, owner: bytes, rows: list[tuple[bytes, Row]]) -> None:
        request_id = core.request_id()
        entries = tuple((*split_row_key(row_key, row.full_key)[1:], row.digest) for row_key, row in rows)
        core.send(owner, (m.OFFER, request_id, entries, core.durability_to_drop, core.ring_number, core.ring_hash))
        self._in_flight += len(rows)
        core.pending[request_id] = PendingOffer(self, owner, [(row_key, row.digest) for row_key, row in rows], core.now)
        core.deadlines.add(core.now, core.settings.suspect_after_s, request_id)

    def _send(self, core: Core, owner: bytes, row_key: bytes, row: Row) -> None:
        _, bucket, key = split_row_key(row_key, row.full_key)
        request_id = core.request_id()
        core.send(owner, (m.REPLICATE, request_id, bucket, key, row.record, m.PURPOSE_HANDOFF, b"", int(core.settings.suspect_after_s * 1000),
                          core.ring_number, core.ring_hash, core.cluster.bucket(bucket).version, core.durability_to_drop, bytes(16)))  # fmt: skip
        self._in_flight += 1
        core.pending[request_id] = PendingHandoff(self, owner, row_key, row.digest, core.now)
        core.deadlines.add(core.now, core.settings.suspect_after_s, request_id)


def _owned(core: Core, row_key: bytes, row: Row) -> bool:
    """Whether this node owns the row."""
    partition, bucket, _ = split_row_key(row_key, row.full_key)
    return core.node_id in core.owners(partition, core.cluster.bucket(bucket))
