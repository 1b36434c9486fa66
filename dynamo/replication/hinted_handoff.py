"""Hinted handoff: what a node owes to owners that missed a write (paper 4.6; DESIGN section 4).

The write itself is in the key's one ordinary row; a hint is only (target, key) in a table of its own, staged with the row. A fallback hints for the
owner it stands in for; where there is no further node, the coordinator does, and its copy still counts once toward W. A hint is dropped when its
target has durably acknowledged the row as it is now, by digest; never for age. A row that no hint needs any more and that this node does not own
is owed to all current owners (`handoff`): this copy counted toward W, maybe beside the target's own, so it stays until all of them have it.

Replay is paced by the receiver: at most `hint_window` records are unacknowledged, and it acknowledges after its commits. Each hint is dropped on
its own, so a replay that is cut short goes on where it was. At `hint_bytes_max` new hints are refused, and such a copy does not count toward W.

    hint key = 16 bytes target | row key                (or, for row keys of 511 bytes, the row key's partition and last 16 bytes)
    value    = u32 size of the record | the row key where the hint key does not hold it
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dynamo.errors import CorruptRecord, DynamoError
from dynamo.model import messages as m
from dynamo.model.key import is_hashed, split_row_key
from dynamo.model.member import NORMAL
from dynamo.model.messages import Message
from dynamo.model.row import Row
from dynamo.replication.back_off import next_wait
from dynamo.replication.rows import Held

if TYPE_CHECKING:
    from dynamo.replication.core import Core, Scan

_PAGE = 4096
_TARGET_BYTES = 16
_RECORD_BYTES_MAX = 1 << 30  # more is no size of a record


class Hints:
    """The hint table: what is owed to whom, and its replay."""

    __slots__ = ("_acknowledged", "_cursor", "_flying", "_pause_s", "_refused", "_scan", "_uncounted", "bytes", "next_at", "owed")

    def __init__(self, scan: Scan) -> None:
        self._scan = scan
        self.owed: dict[bytes, int] = {}  # target -> hints
        self.bytes = 0
        self.next_at: float | None = None
        self._cursor: dict[bytes, bytes] = {}  # target -> where its replay goes on
        self._refused: dict[bytes, tuple[float, float]] = {}  # target -> until when it is left alone, and how long that is
        self._acknowledged: dict[bytes, bytes] = {}  # hint key -> digest of the row its target has acknowledged, until the hint's removal is committed
        self._pause_s = 0.0  # after the last commit, which failed
        self._uncounted = False  # what is owed is not known, for the disk did not say
        self._flying: dict[bytes, set[bytes]] = {}  # target -> row keys of records sent and not yet acknowledged

    def count(self, core: Core) -> None:
        """Learn at the start what is owed."""
        start = b""
        while page := self._scan(start, None, _PAGE):
            for key, value in page:
                if _is_hint(core, key, value):
                    self._note(key, value, 1)
                else:  # the row that it was for is owed all the same, and is found by the passes of `handoff`
                    core.count("hints_corrupt")
            start = page[-1][0] + b"\0"
        self._schedule(core.now)

    def add(self, core: Core, target: bytes, row_key: bytes, record_bytes: int) -> bool:
        """Stage a hint; False, and nothing staged, at the byte limit."""
        key = _hint_key(target, row_key)
        if self._find(core, key) is not None:
            return True
        if self.bytes + record_bytes > core.settings.hint_bytes_max:
            core.count("hints_refused")
            return False
        value = record_bytes.to_bytes(4, "big") + (row_key if is_hashed(row_key) else b"")
        core.rows.stage_hint(key, value)
        self._note(key, value, 1)
        core.count("hints_kept")
        if self.next_at is None:
            self.next_at = core.now + core.settings.hint_retry_s
        return True

    def held(self, core: Core, target: bytes, row_key: bytes) -> Held | None:
        """Where to attach what rests on a hint that was just added; None if it is committed."""
        return core.rows.hint_held(_hint_key(target, row_key))

    def drop(self, core: Core, target: bytes, row_key: bytes) -> None:
        """Stage the removal of a hint that is no longer owed."""
        key = _hint_key(target, row_key)
        value = self._find(core, key)
        if value is not None:
            core.rows.stage_hint(key, None)
            self._note(key, value, -1)

    def owed_for(self, core: Core, targets: tuple[bytes, ...], row_key: bytes) -> bool:
        """Whether any of these targets still waits for the row."""
        return any(self._find(core, _hint_key(target, row_key)) is not None for target in targets)

    def recount(self, core: Core) -> None:
        """A commit failed: what was staged is forgotten, so count what there is; later, where the disk does not even say that."""
        self.owed, self.bytes, self._cursor, self._uncounted = {}, 0, {}, False
        try:
            self.count(core)
        except DynamoError:
            core.count("background_reads_failed")
            self._uncounted = True
        # Not at once: what cannot be stored now cannot be dropped either, and would be sent each time for nothing.
        self._pause_s = next_wait(core.settings, core.settings.hint_retry_s, self._pause_s)
        self.next_at = core.now + self._pause_s if self.owed or self._uncounted else None

    def committed(self, hints: Iterable[bytes]) -> None:
        """A commit succeeded, with these hints kept or removed."""
        self._pause_s = 0.0
        for key in hints:
            self._acknowledged.pop(key, None)

    def acknowledged(self, core: Core, target: bytes, row_key: bytes, row: Row) -> None:
        """The target has the row as it is now: the hint goes. If that cannot be committed, the row is not sent again for it."""
        if len(self._acknowledged) >= _PAGE:
            self._acknowledged.clear()
        self._acknowledged[_hint_key(target, row_key)] = row.digest
        self.drop(core, target, row_key)
        _let_go(core, row_key, row)

    # --- replay -------------------------------------------------------------------------------------------------------------------

    def step(self, core: Core) -> None:
        """Replay to every target that can be reached, up to the window."""
        if self.next_at is None or core.now < self.next_at:
            return
        if self._uncounted:
            self.recount(core)
            return
        for target in sorted(self.owed):
            member = core.membership.members.get(target)
            if core.now < self._refused.get(target, (0.0, 0.0))[0]:
                continue
            if core.liveness.up(target) or member is None or member.status != NORMAL:  # of the latter the hints are only to be cleared away
                self.replay(core, target)
        self._schedule(core.now + core.settings.hint_retry_s)

    def replay(self, core: Core, target: bytes) -> None:
        """Send the target more of what it is owed, as far as the window allows; begin again at the start after the last one."""
        room = core.settings.hint_window - len(self._flying.get(target, ()))
        if room <= 0 or (core.rows.in_flight is not None and not self.owed.get(target)):
            return
        start = self._cursor.get(target, target)
        try:
            page = self._scan(start, _behind(target), room)
        except DynamoError:
            core.count("background_reads_failed")
            return
        for key, value in page:
            if core.rows.hint(key) != b"" and _is_hint(core, key, value):
                self._send(core, target, value[4:] or key[_TARGET_BYTES:])
        if len(page) == room:
            self._cursor[target] = page[-1][0] + b"\0"
        else:
            self._cursor.pop(target, None)

    def _send(self, core: Core, target: bytes, row_key: bytes) -> None:
        row = core.rows.load(row_key)
        if isinstance(row, DynamoError):
            if isinstance(row, CorruptRecord):
                core.want_repair(row_key)
            return
        if row is None:
            self.drop(core, target, row_key)  # handed over to all owners meanwhile
            return
        partition, bucket, key = split_row_key(row_key, row.full_key)
        definition = core.cluster.bucket(bucket)
        owners = core.owners(partition, definition)
        if target not in owners:  # the ring changed
            self.drop(core, target, row_key)
            core.unowned_rows_staged = core.unowned_rows_staged or core.node_id not in owners  # then it is owed to all current owners
            return
        if row_key in self._flying.get(target, ()):
            return  # once at a time, or each acknowledgement would set off as many again
        if self._acknowledged.get(_hint_key(target, row_key)) == row.digest:
            self.acknowledged(core, target, row_key, row)
            return
        if core.rows.held(row_key) is not None:
            return  # it is changing right now; next time
        request_id = core.request_id()
        self._flying.setdefault(target, set()).add(row_key)
        core.pending[request_id] = PendingHint(target, row_key, row.digest, core.now)
        core.deadlines.add(core.now, core.settings.suspect_after_s, request_id)
        core.send(target, (m.REPLICATE, request_id, bucket, key, row.record, m.PURPOSE_HANDOFF, b"",
                           int(core.settings.suspect_after_s * 1000), core.ring_number, core.ring_hash, definition.version,
                           core.durability_to_drop, bytes(16)))  # fmt: skip

    def landed(self, core: Core, target: bytes, row_key: bytes, more: bool) -> None:
        """A record was acknowledged, or will not be."""
        self._flying[target].discard(row_key)
        if more:
            self._refused.pop(target, None)
        elif core.liveness.up(target):  # what is down is not asked, and once it is back it is asked at once
            until, wait_s = self._refused.get(target, (0.0, 0.0))
            if core.now >= until:
                wait_s = next_wait(core.settings, core.settings.hint_retry_s, wait_s)
                self._refused[target] = core.now + wait_s, wait_s
        if more and not self._pause_s and len(self._flying[target]) <= core.settings.hint_window // 2:
            self.replay(core, target)

    # --- within -------------------------------------------------------------------------------------------------------------------

    def _find(self, core: Core, key: bytes) -> bytes | None:
        staged = core.rows.hint(key)
        if staged is not None:
            return staged or None
        try:
            found = self._scan(key, key + b"\0", 1)
        except DynamoError:
            core.count("background_reads_failed")
            return None  # a hint that is written again does no harm
        return found[0][1] if found else None

    def _note(self, key: bytes, value: bytes, by: int) -> None:
        target = key[:_TARGET_BYTES]
        self.bytes += by * int.from_bytes(value[:4], "big")
        left = self.owed.get(target, 0) + by
        if left > 0:
            self.owed[target] = left
        else:
            self.owed.pop(target, None)

    def _schedule(self, at: float) -> None:
        self.next_at = at if self.owed else None


class PendingHint:
    """One record on its way to the node it is owed to."""

    __slots__ = ("digest", "row_key", "started", "target")

    answered = True  # nobody waits for it: a node that stops does not

    def __init__(self, target: bytes, row_key: bytes, digest: bytes, started: float) -> None:
        self.target = target
        self.row_key = row_key
        self.digest = digest
        self.started = started

    def on_reply(self, core: Core, source: bytes, message: Message) -> bool:
        if message[0] != m.REPLICATE_REPLY or source != self.target:
            return False
        code, role, durability = message[2], message[3], message[4]
        stored = not code and role != m.FALLBACK and durability >= core.durability_to_drop
        if stored:
            row = core.rows.load(self.row_key)
            if isinstance(row, Row) and row.digest == self.digest:
                core.count("hints_delivered")
                core.hints.acknowledged(core, self.target, self.row_key, row)
        core.hints.landed(core, self.target, self.row_key, more=stored)
        return True

    def on_wake(self, core: Core, record: bytes | None) -> bool:
        return False

    def on_failure(self, core: Core, node: bytes, code: int) -> bool:
        if node != self.target:
            return False
        core.hints.landed(core, self.target, self.row_key, more=False)
        return True

    def on_timer(self, core: Core) -> bool:
        core.note_silence(self.started, [self.target])
        core.hints.landed(core, self.target, self.row_key, more=False)
        return True


def _let_go(core: Core, row_key: bytes, row: Row) -> None:
    """A row that was kept only for others, and for which no hint is left, is owed to all owners."""
    partition, bucket, _ = split_row_key(row_key, row.full_key)
    owners = core.owners(partition, core.cluster.bucket(bucket))
    if core.node_id not in owners and not core.hints.owed_for(core, owners, row_key):
        core.unowned_rows_staged = True


def _hint_key(target: bytes, row_key: bytes) -> bytes:
    return target + (row_key[:2] + row_key[-16:] if is_hashed(row_key) else row_key)


def _is_hint(core: Core, key: bytes, value: bytes) -> bool:
    """Whether a row of the hint table is what was written there once: it was read from a disk, and has no checksum."""
    row_key = value[4:] or key[_TARGET_BYTES:]
    if len(value) < 4 or int.from_bytes(value[:4], "big") > _RECORD_BYTES_MAX or not core.is_row_key(row_key):
        return False
    return key == _hint_key(key[:_TARGET_BYTES], row_key)


def _behind(target: bytes) -> bytes | None:
    number = int.from_bytes(target, "big") + 1
    return number.to_bytes(_TARGET_BYTES, "big") if number < 1 << 128 else None
