"""Scanning a bucket, partition by partition, at R owners each, resumable (what Riak's list-keys and 2i, read at r=1, never were).

Row keys start with the partition, so a partition's keys of one bucket with one prefix are one range of storage, in order. The coordinator asks R
owners for a page of it, merges record by record, and stops where the first page that is not the last one ends: beyond that a replica has said
nothing yet. Consecutive partitions with the same owners share a page, so a small cluster scans in few round trips.

A cursor is the row key of an entry, which says the partition and the place in it, or a partition alone; b"" begins. Keys too long for a row key stand
in the order of their first 493 bytes, then of their hash. A page has at most `PAGE_ROWS` rows and about `PAGE_BYTES`; deleted keys cost a row but
give no entry. One request reads at most `PAGES_MAX` pages, so that a bucket of few keys among many partitions or tombstones is answered with a
cursor, and perhaps nothing else, rather than late.
"""

from __future__ import annotations

from typing import Any

from dynamo._core import record as records
from dynamo.errors import CorruptRecord, DynamoError, InvalidRequest, Timeout, Unavailable
from dynamo.model import messages as m
from dynamo.model.cluster import BucketDefinition
from dynamo.model.key import HEAD_BYTES, ROW_KEY_BYTES_MAX, check_bucket, check_key
from dynamo.model.messages import Message
from dynamo.model.row import decode_row
from dynamo.replication.causes import cause
from dynamo.replication.core import Core, ReplyTo
from dynamo.replication.fitting import SIBLING_BYTES
from dynamo.replication.get import shown_part
from dynamo.replication.quorum import needed

PAGE_ROWS = 256
PAGE_BYTES = 1 << 20
PARTITIONS_PER_PAGE = 64
PAGES_MAX = 64
DAMAGED = b""  # for a record that cannot be read; there is no empty one
Page = tuple[tuple[bytes, bytes, bytes], ...]  # (row key, key, record), in order of row keys


def read_page(core: Core, bucket: bytes, prefix: bytes, first: int, end: int, after: bytes, limit: int) -> tuple[Page, bool]:
    """(rows, whether that was all) of the partitions first..end-1 here, behind the row key `after`. Committed rows only.

    A damaged row, which is never skipped as if it were absent, has DAMAGED for its record, and its repair begun. Of a long key it may be all that is
    known how the key begins.
    """
    found: list[tuple[bytes, bytes, bytes]] = []
    size = 0
    for partition in range(first, end):
        start = partition.to_bytes(2, "big") + bucket + b"\0" + prefix
        start = start[:HEAD_BYTES]  # a long key's row goes on with a hash, about which a longer prefix says nothing
        stop = _behind(start)
        start = max(start, after + b"\0" if after else b"")
        while stop is None or start < stop:
            rows = core.scan(start, stop, limit - len(found))
            for row_key, data in rows:
                if not core.is_row_key(row_key):
                    continue
                full, record = row_key[2:HEAD_BYTES], DAMAGED
                try:
                    row = core.decode(row_key, data)
                    full, record = row.full_key or full, row.record
                except CorruptRecord:
                    full = _full_key(row_key, data) or full
                key = full.partition(b"\0")[2]
                if key.startswith(prefix):
                    found.append((row_key, key, record))
                    size += len(record)
                if size >= PAGE_BYTES or len(found) >= limit:
                    return tuple(found), False
            if not rows:
                break
            start = rows[-1][0] + b"\0"
    return tuple(found), True


def _full_key(row_key: bytes, data: bytes) -> bytes:
    """What a damaged row of a long key still says of it: all, where only the record is damaged."""
    try:
        return decode_row(row_key, data, verify=False).full_key
    except CorruptRecord:
        return b""


def _behind(start: bytes) -> bytes | None:
    """The first byte string that does not start like this."""
    stripped = start.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None


def receive_scan_read(core: Core, source: bytes, message: Message) -> None:
    """Answer a coordinator with a page of this node's rows."""
    _, request_id, bucket, prefix, first, end, after, limit = message[:8]
    page: Page = ()
    role, whole, code = m.OWNER, True, 0
    definition = core.cluster.bucket(bucket)
    try:
        if not first < end <= core.cluster.partitions or end - first > PARTITIONS_PER_PAGE:
            raise InvalidRequest("no such partitions")
        if not all(core.node_id in core.owners(partition, definition) for partition in range(first, end)):
            role = m.FALLBACK
        page, whole = read_page(core, bucket, prefix, first, end, after, min(limit, PAGE_ROWS))
    except DynamoError as error:
        code = error.code
    core.send(source, (m.SCAN_READ_REPLY, request_id, code, role, page, whole, core.ring_number, core.ring_hash))


class PendingScan:
    """One client request for a page: the partitions it has come to, and the replicas' pages of them."""

    __slots__ = ("after", "begun", "bucket", "bytes", "damaged", "deadline", "definition", "end", "entries", "first", "limit", "outstanding", "pages",
                 "pages_left", "plan", "prefix", "reply_to", "request_id", "required", "started")  # fmt: skip

    def __init__(self, core: Core, reply_to: ReplyTo, message: Message, definition: BucketDefinition) -> None:
        _, _, self.bucket, self.prefix, self.after, self.limit, time_ms = message[:7]
        self.limit = min(self.limit or PAGE_ROWS, PAGE_ROWS)
        self.reply_to = reply_to
        self.definition = definition
        self.first = self.end = int.from_bytes(self.after[:2], "big")
        self.entries: list[Any] = []  # (key, token, siblings, cursor[, versions left out])
        self.bytes = 0  # of those, about
        self.required = needed(0, definition.r, core.cluster.r, definition.n or core.cluster.n, core.ring.size)
        self.request_id = 0  # of the page under way
        self.started = core.now
        self.begun = self.place
        self.deadline = core.now + min(time_ms / 1000.0, core.settings.request_time_s_max)
        self.plan: list[bytes] = []
        self.outstanding: set[bytes] = set()
        self.pages: dict[bytes, tuple[Page, bool]] = {}
        self.pages_left = PAGES_MAX
        self.damaged_pages: dict[bytes, tuple[Page, bool]] = {}  # with damaged rows in them: taken when no other owner is left to ask
        self.failures: dict[bytes, int] = {}  # owners that gave none, and the error's code

    @property
    def place(self) -> bytes:
        """The cursor of where the scan has come to."""
        return self.after or self.first.to_bytes(2, "big")

    def begin(self, core: Core) -> None:
        """Ask for the first page."""
        self._advance(core)

    def _advance(self, core: Core) -> bool:
        """Ask R owners for the next page, as long as this node can answer alone in a loop. True when the request is finished."""
        while True:
            # Each page has a request id of its own: a late reply to the one before, of an owner asked again, must not pass for this one's.
            core.pending.pop(self.request_id, None)
            self.request_id = core.request_id()
            core.pending[self.request_id] = self
            core.deadlines.add(core.now, core.settings.hedge_after_s, self.request_id)
            self.started = core.now
            owners = core.owners(self.first, self.definition)
            self.end = self.first + 1
            last = min(core.cluster.partitions, self.first + PARTITIONS_PER_PAGE)
            while self.end < last and set(core.owners(self.end, self.definition)) == set(owners):
                self.end += 1
            self.pages, self.damaged_pages, self.failures, self.outstanding = {}, {}, {}, set()
            self.plan = sorted((node for node in owners if node == core.node_id or core.liveness.up(node)), key=lambda node: node != core.node_id)
            for _ in range(self.required):
                self._ask_next(core)
            if len(self.pages) < self.required:
                return self._settle(core)
            if self._take_pages(core):
                return True

    def _settle(self, core: Core) -> bool:
        """Go on if R owners have given their page, give up if they no longer can. True when the request is finished."""
        if len(self.pages) >= self.required:
            return self._take_pages(core) or self._advance(core)
        while len(self.pages) + len(self.outstanding) < self.required:
            if not self._ask_next(core):
                if len(self.pages) + len(self.damaged_pages) + len(self.outstanding) < self.required:
                    return self._fail(core, self._why(core))
                if self.outstanding:
                    return False
                self.pages |= self.damaged_pages
        return len(self.pages) >= self.required and self._settle(core)

    def _ask_next(self, core: Core) -> bool:
        """Ask the next owner in line; False if there is none left."""
        while self.plan:
            node = self.plan.pop(0)
            if node == core.node_id:
                try:
                    if self._add(node, *read_page(core, self.bucket, self.prefix, self.first, self.end, self.after, PAGE_ROWS)):
                        return True
                except DynamoError as error:
                    core.count(f"scan_failed_{type(error).__name__}")
                    core.storage_error, self.failures[node] = error, error.code
            elif core.liveness.up(node):
                self.outstanding.add(node)
                core.send(node, (m.SCAN_READ, self.request_id, self.bucket, self.prefix, self.first, self.end, self.after, PAGE_ROWS,
                                 core.ring_number, core.ring_hash))  # fmt: skip
                return True
        return False

    def _add(self, node: bytes, page: Page, whole: bool) -> bool:
        """Take an owner's page. False for one with damaged rows, beside which another owner is asked."""
        sound = all(record != DAMAGED for _, _, record in page)
        (self.pages if sound else self.damaged_pages)[node] = page, whole
        return sound

    def _why(self, core: Core) -> DynamoError:
        answered = len(self.pages)
        return cause(core, self.bucket, self.prefix, self.failures, answered, self.required, f"needed {self.required} nodes, had {answered}")

    def _take_pages(self, core: Core) -> bool:
        """Merge the replicas' pages up to where all of them have spoken. True when the client has its answer."""
        bounds = [page[-1][0] for page, whole in self.pages.values() if not whole]
        bound = min(bounds) if bounds else None
        merged: dict[bytes, tuple[bytes, bytes]] = {}
        damaged: dict[bytes, int] = {}  # rows, and at how many owners they cannot be read
        for page, _ in self.pages.values():
            for row_key, key, record in page:
                if bound is None or row_key <= bound:
                    known, before = merged.get(row_key, (key, b""))
                    if not record:
                        damaged[row_key] = damaged.get(row_key, 0) + 1
                        merged[row_key] = known, before
                    else:
                        merged[row_key] = key, records.merge(before, record)
        for row_key in sorted(merged):
            key, record = merged[row_key]
            self.after = row_key
            if damaged and len(self.pages) - damaged.get(row_key, 0) < self.required:
                core.count("scanned_damaged")
                self.entries.append((key, b"", (), row_key))  # as a get of it would say, that too few can be read; the scan goes on
            else:
                siblings, _, time = records.visible(record)
                if siblings:
                    self.entries.append((key, sealed_token(core, self.bucket, key, self.definition, record, time), siblings, row_key))
            if len(self.entries) >= self.limit:
                return self._answer(core, row_key)
            token, siblings, _, left_out = shown_part(core, self.bucket, key, self.definition, record)
            if siblings:
                entry = (key, token, siblings, row_key, left_out) if left_out else (key, token, siblings, row_key)
                size = _entry_bytes(entry)
                if self.entries and self.bytes + size > core.settings.answer_bytes_max:
                    return self._answer(core, self.entries[-1][3])  # it goes on with this key
                self.entries.append(entry)
                self.bytes += size
                if len(self.entries) >= self.limit:
                    return self._answer(core, row_key)
        if bound is not None:
            self.after, self.first = bound, int.from_bytes(bound[:2], "big")
        else:
            self.after, self.first = b"", self.end
        if self.first >= core.cluster.partitions:
            return self._answer(core, b"")
        self.pages_left -= 1
        if not self.pages_left or self.bytes >= PAGE_BYTES:
            return self._answer(core, self.place)
        return False

    def _answer(self, core: Core, cursor: bytes) -> bool:
        core.pending.pop(self.request_id, None)
        core.answer(self.reply_to, (m.SCAN_REPLY, self.reply_to.reply_id, core.ring_number, core.ring_hash, tuple(self.entries), cursor, self.required))
        return True

    def _fail(self, core: Core, error: DynamoError) -> bool:
        core.pending.pop(self.request_id, None)
        core.refuse(self.reply_to, error)
        return True

    def on_reply(self, core: Core, source: bytes, message: Message) -> bool:
        if message[0] != m.SCAN_READ_REPLY or source not in self.outstanding:
            return False
        _, _, code, _, page, whole = message[:6]
        try:
            for _, _, record in page:
                if record:
                    records.verify(record)
                    if record[1] != self.definition.record_kind:
                        raise CorruptRecord("a record of another kind than its bucket")
        except CorruptRecord as error:
            code = error.code
        if code or (not page and not whole):
            return self.on_failure(core, source, code)
        self.outstanding.discard(source)
        self._add(source, page, whole)
        return self._settle(core)

    def on_wake(self, core: Core, record: bytes | None) -> bool:
        return False

    def on_failure(self, core: Core, node: bytes, code: int) -> bool:
        if node not in self.outstanding:
            return False
        self.outstanding.discard(node)
        self.failures[node] = code
        self._ask_next(core)
        return self._settle(core)

    def on_timer(self, core: Core) -> bool:
        core.note_silence(self.started, sorted(self.outstanding))
        if core.now >= self.deadline:
            if self.place != self.begun:  # less than a page, and a place to go on from
                return self._answer(core, self.place)
            return self._fail(core, Timeout("not enough owners gave their part of the scan in time"))
        self._ask_next(core)
        if self._settle(core):
            return True
        core.deadlines.add(core.now, min(core.settings.suspect_after_s, max(self.deadline - core.now, 0.001)), self.request_id)
        return False


def take_scan(core: Core, reply_to: ReplyTo, message: Message) -> None:
    """A client's SCAN: any node coordinates it."""
    _, _, bucket, prefix, cursor = message[:5]
    try:
        check_bucket(bucket)
        if prefix:  # it goes to the other owners, once for each page
            check_key(prefix)
        if cursor and not _is_cursor(core, bucket, cursor):
            raise InvalidRequest("the cursor is none that a scan of this bucket returned")
        if len(core.pending) >= core.settings.pending_max:
            raise Unavailable("busy: too many requests in flight on this node; try another or again")
        PendingScan(core, reply_to, message, core.cluster.bucket(bucket)).begin(core)
    except DynamoError as error:
        core.refuse(reply_to, error)


def _entry_bytes(entry: tuple[Any, ...]) -> int:
    """At most so many bytes does an entry take in an answer."""
    return 32 + len(entry[0]) + len(entry[1]) + len(entry[3]) + sum(len(sibling[0]) + SIBLING_BYTES for sibling in entry[2])


def _is_cursor(core: Core, bucket: bytes, cursor: bytes) -> bool:
    """Whether it is a row key of this bucket, or the beginning of a partition."""
    fits = 2 <= len(cursor) <= ROW_KEY_BYTES_MAX and int.from_bytes(cursor[:2], "big") < core.cluster.partitions
    return fits and (len(cursor) == 2 or cursor[2:].startswith(bucket + b"\0"))
