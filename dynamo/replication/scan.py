"""Scanning a bucket, partition by partition, at R nodes each, resumable (what Riak's list-keys and 2i, read at r=1, never were).

Row keys start with the partition, so a partition's keys of one bucket with one prefix are one range of storage, in order. The coordinator asks R
nodes for a page of it, as a get does: the owners, and down the preference list where these are down or late; `pr` of those that answer must be
owners, by their own ring and by the coordinator's. It merges record by record, and stops where the first page that is not the last one ends: beyond
that a replica has said nothing yet. A damaged row is a failed answer for its key, not for its page; where too many are, the key is named as damaged and
the scan goes on. An owner that is recovering counts when those that it needs have answered, too, as in a get. Consecutive partitions with the same
owners share a page, so a small cluster scans in few round trips.

A cursor is the row key of an entry, which says the partition and the place in it, or a partition alone; b"" begins. Keys too long for a row key stand
in the order of their first 493 bytes, then of their hash. A page has at most `PAGE_ROWS` rows and about `PAGE_BYTES`; deleted keys cost a row but
give no entry. One request reads at most `PAGES_MAX` pages, so that a bucket of few keys among many partitions or tombstones is answered with a
cursor, and perhaps nothing else, rather than late.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from dynamo._core import record as records
from dynamo.errors import CorruptRecord, DynamoError, InvalidRequest, ProtocolError, Timeout, Unavailable
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
from dynamo.replication.standings import Needs, asked_too_early, checked, helpers, satisfied, to_ask, united

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
    needs: Needs = ()
    standing, whole, code = m.FALLBACK, True, 0
    definition = core.cluster.bucket(bucket)
    try:
        if not first < end <= core.cluster.partitions or end - first > PARTITIONS_PER_PAGE:
            raise InvalidRequest("no such partitions")
        standing, needs = standing_of_all(core, first, end, definition)
        page, whole = read_page(core, bucket, prefix, first, end, after, min(limit, PAGE_ROWS))
    except DynamoError as error:
        code = error.code
    reply: Message = (m.SCAN_READ_REPLY, request_id, code, standing, page, whole, core.ring_number, core.ring_hash)
    core.send(source, (*reply, needs) if needs else reply)


def standing_of_all(core: Core, first: int, end: int, definition: BucketDefinition) -> tuple[int, Needs]:
    """(what this node is to all of the partitions first..end-1 at once, what it needs of them)."""
    routes = [core.route(partition, definition) for partition in range(first, end)]
    standings = {route.standing for route in routes}
    standing = next(kind for kind in (m.FALLBACK, m.RECOVERING, m.OWNER) if kind in standings)
    return standing, united(route.needs for route in routes)


class Part(NamedTuple):
    """What one node said of the page under way."""

    rows: Page
    whole: bool
    damaged: frozenset[bytes]  # row keys among them: of these it said nothing
    owner: bool  # by its own ring and by this node's
    counts: bool  # toward R: what was asked as an owner and says that it is none has told what it has, and counts for nobody

    @property
    def bound(self) -> bytes | None:
        """The last row key of which it spoke; None: of all."""
        return None if self.whole else self.rows[-1][0]


class PendingScan:
    """One client request for a page: the partitions it has come to, and the replicas' pages of them."""

    __slots__ = ("after", "begun", "bucket", "bytes", "deadline", "definition", "end", "entries", "failures", "first", "limit", "outstanding", "owners",
                 "owners_answered", "owners_required", "pages", "pages_left", "plan", "prefix", "recovering", "reply_to", "request_id", "required",
                 "started")  # fmt: skip

    def __init__(self, core: Core, reply_to: ReplyTo, message: Message, definition: BucketDefinition) -> None:
        _, _, self.bucket, self.prefix, self.after, self.limit, time_ms = message[:7]
        r, pr = asked_counts(message)
        self.limit = min(self.limit or PAGE_ROWS, PAGE_ROWS)
        self.reply_to = reply_to
        self.definition = definition
        self.first = self.end = int.from_bytes(self.after[:2], "big")
        self.entries: list[tuple[Any, ...]] = []
        self.bytes = 0  # of the entries
        self.owners_required = pr or definition.pr or core.cluster.pr
        self.required = max(self.owners_required, needed(r, definition.r, core.cluster.r, definition.n or core.cluster.n, core.ring.size))
        self.owners: tuple[bytes, ...] = ()  # of the page under way
        self.owners_answered: int | None = None  # the fewest of any page so far
        self.request_id = 0  # of the page under way
        self.started = core.now
        self.begun = self.place
        self.deadline = core.now + min(time_ms / 1000.0, core.settings.request_time_s_max)
        self.plan: list[bytes] = []
        self.outstanding: set[bytes] = set()
        self.pages: dict[bytes, Part] = {}  # Invariant: in the order in which they came
        self.recovering: dict[bytes, Needs] = {}  # what those that answered need
        self.failures: dict[bytes, int] = {}
        self.pages_left = PAGES_MAX

    @property
    def place(self) -> bytes:
        """The cursor of where the scan has come to."""
        return self.after or self.first.to_bytes(2, "big")

    def begin(self, core: Core) -> None:
        """Ask for the first page."""
        self._advance(core)

    def _advance(self, core: Core) -> bool:
        """Ask R nodes for the next page, as long as this node can answer alone in a loop. True when the request is finished."""
        while True:
            # Each page has a request id of its own: a late reply to the one before, of a node asked again, must not pass for this one's.
            core.pending.pop(self.request_id, None)
            self.request_id = core.request_id()
            core.pending[self.request_id] = self
            core.deadlines.add(core.now, core.settings.hedge_after_s, self.request_id)
            self.started = core.now
            route = core.route(self.first, self.definition)
            if route.owners_reachable < self.owners_required:
                return self._fail(core, self._too_few_owners(route.owners_reachable))
            self.owners = route.owners
            self.end = self.first + 1
            last = min(core.cluster.partitions, self.first + PARTITIONS_PER_PAGE)
            while self.end < last and set(core.owners(self.end, self.definition)) == set(self.owners):
                self.end += 1
            self.pages, self.recovering, self.failures, self.outstanding = {}, {}, {}, set()
            self.plan = [*route.orders[0], *route.fallbacks]
            for _ in range(self.required):
                self._ask_next(core)
            if not self._met():
                return self._settle(core)
            if self._take_pages(core):
                return True

    def _spoken(self, row_key: bytes | None = None) -> tuple[int, int]:
        """(nodes, owners among them) that have answered, each for itself and for those that it needs; with a row key those that could read that row."""
        replied = [node for node, part in self.pages.items() if row_key not in part.damaged]
        met = satisfied(replied, self.recovering)
        owners = sum(self.pages[node].owner for node in met)
        return sum(self.pages[node].counts for node in met - helpers(self.recovering, self.owners)), owners

    def _suffices(self, row_key: bytes | None = None) -> bool:
        nodes, owners = self._spoken(row_key)
        return nodes >= self.required and owners >= self.owners_required

    def _met(self) -> bool:
        """Whether R nodes have spoken, of each row too, and none of them too early."""
        if not self._suffices() or (self.recovering and self._too_early() is not None):
            return False
        return all(self._suffices(row_key) for row_key in {row_key for part in self.pages.values() for row_key in part.damaged})

    def _too_early(self) -> bytes | None:
        return asked_too_early(list(self.pages), self.recovering, satisfied(self.pages, self.recovering), self.owners)

    def _settle(self, core: Core) -> bool:
        """Go on if R nodes have given their page, give up if they no longer can. True when the request is finished."""
        while not self._met():
            nodes, owners = self._spoken()
            enough = nodes + len(self.outstanding) >= self.required and owners + len(self.outstanding.intersection(self.owners)) >= self.owners_required
            if self.outstanding and enough and not self.recovering:
                return False
            if not self._ask_more(core):
                if self.outstanding:
                    return False
                if not self._suffices():
                    return self._fail(core, self._shortage(core, nodes, owners))
                break  # of some rows too few could be read, and there is nobody left to ask
            if self.outstanding:
                return False
        return self._take_pages(core) or self._advance(core)

    def _ask_more(self, core: Core) -> bool:
        """Ask those that a recovering node needs; where there are none, the next node in line. False if nobody is left."""
        if self.recovering:
            late = self._too_early()
            if late is not None:
                del self.pages[late]
                return self._ask(core, late)
            met = satisfied(self.pages, self.recovering)
            for node in to_ask(self.recovering, met, self.outstanding, self.pages, self.owners):
                if node not in self.failures and self._ask(core, node):
                    return True
        return self._ask_next(core)

    def _shortage(self, core: Core, nodes: int, owners: int) -> DynamoError:
        """Why the page cannot be had."""
        if nodes < self.required:
            return cause(core, self.bucket, self.prefix, self.failures, nodes, self.required, f"needed {self.required} nodes, had {nodes}")
        return self._too_few_owners(owners)

    def _too_few_owners(self, owners: int) -> DynamoError:
        return Unavailable(f"pr={self.owners_required} owners needed", required=self.owners_required, received=owners)

    def _ask_next(self, core: Core) -> bool:
        """Ask the next node in line; False if there is none left."""
        while self.plan:
            node = self.plan.pop(0)
            if node in self.pages or node in self.outstanding or node in self.failures:
                continue
            if node not in self.owners:
                self._narrow(core)
            if self._ask(core, node):
                return True
        return False

    def _ask(self, core: Core, node: bytes) -> bool:
        """Ask this node; False if that cannot be done."""
        if node == core.node_id:
            try:
                page, whole = read_page(core, self.bucket, self.prefix, self.first, self.end, self.after, PAGE_ROWS)
            except DynamoError as error:
                core.count(f"scan_failed_{type(error).__name__}")
                core.storage_error, self.failures[node] = error, error.code
                return False
            self._take(node, *standing_of_all(core, self.first, self.end, self.definition), page, whole)
            return True
        if not core.liveness.up(node):
            return False
        self.outstanding.add(node)
        core.send(node, (m.SCAN_READ, self.request_id, self.bucket, self.prefix, self.first, self.end, self.after, PAGE_ROWS,
                         core.ring_number, core.ring_hash))  # fmt: skip
        return True

    def _narrow(self, core: Core) -> None:
        """A node that stands in is asked: for no partition beyond those for which the same nodes stand in, in the same order. What the owners said
        of the others is asked again with the next page."""
        others = [node for node in core.ring.preference(self.first) if node not in self.owners]
        for partition in range(self.first + 1, self.end):
            if [node for node in core.ring.preference(partition) if node not in self.owners] != others:
                self.end = partition
                return

    def _take(self, node: bytes, standing: int, needs: Needs, page: Page, whole: bool) -> None:
        """Note what a node said."""
        if needs:
            self.recovering[node] = needs
        else:
            self.recovering.pop(node, None)
        damaged = frozenset(row_key for row_key, _, record in page if record == DAMAGED)
        owner = standing != m.FALLBACK
        self.pages[node] = Part(page, whole, damaged, owner and node in self.owners, owner or node not in self.owners)

    def _take_pages(self, core: Core) -> bool:
        """Merge the replicas' pages up to where all of them have spoken. True when the client has its answer."""
        bounds = [at for part in self.pages.values() if (at := part.bound) is not None and int.from_bytes(at[:2], "big") < self.end]
        bound = min(bounds) if bounds else None
        owners = self._spoken()[1]
        self.owners_answered = owners if self.owners_answered is None else min(owners, self.owners_answered)
        merged: dict[bytes, tuple[bytes, bytes]] = {}
        for part in self.pages.values():
            for row_key, key, record in part.rows:
                if int.from_bytes(row_key[:2], "big") < self.end and (bound is None or row_key <= bound):
                    known, before = merged.get(row_key, (key, b""))
                    merged[row_key] = (key, records.merge(before, record)) if record else (known, before)
        damaged = {row_key for part in self.pages.values() for row_key in part.damaged}
        for row_key in sorted(merged):
            key, record = merged[row_key]
            if row_key in damaged and not self._suffices(row_key):
                core.count("scanned_damaged")
                entry: tuple[Any, ...] = (key, b"", (), row_key)  # as a get of it would say, that too few can be read; the scan goes on
            else:
                token, siblings, _, left_out = shown_part(core, self.bucket, key, self.definition, record)
                if not siblings:
                    self.after = row_key
                    continue
                entry = (key, token, siblings, row_key, left_out) if left_out else (key, token, siblings, row_key)
            size = _entry_bytes(entry)
            if self.entries and self.bytes + size > core.settings.answer_bytes_max:
                return self._answer(core, self.entries[-1][3])  # it goes on with this key
            self.after = row_key
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
        core.answer(self.reply_to, (m.SCAN_REPLY, self.reply_to.reply_id, core.ring_number, core.ring_hash, tuple(self.entries), cursor,
                                   self.owners_answered or 0))  # fmt: skip
        return True

    def _fail(self, core: Core, error: DynamoError) -> bool:
        core.pending.pop(self.request_id, None)
        core.refuse(self.reply_to, error)
        return True

    def on_reply(self, core: Core, source: bytes, message: Message) -> bool:
        if message[0] != m.SCAN_READ_REPLY or source not in self.outstanding:
            return False
        _, _, code, standing, page, whole, ring_number, ring_hash = message[:8]
        needs: Needs = ()
        try:
            for _, _, record in page:
                if record:
                    records.verify(record)
            if len(message) > 8:
                needs = checked(message[8])
        except (CorruptRecord, ProtocolError) as error:
            code = error.code
        if code or (not page and not whole):
            return self.on_failure(core, source, code)
        if ring_hash != core.ring_hash:
            if core.is_news(source, ring_number):
                return False  # it comes in again under the ring that this node is about to learn (`on_ring`)
            if source in self.owners and standing == m.FALLBACK:
                return self.on_failure(core, source, Unavailable.code)  # it has not heard yet what it is
        self.outstanding.discard(source)
        self._take(source, standing, needs, page, whole)
        return self._settle(core)

    def on_ring(self, core: Core) -> bool:
        """The ring is another one: begin the page anew under it."""
        return self._advance(core)

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
            return self._fail(core, Timeout("not enough nodes gave their part of the scan in time"))
        late_s, request_id = core.now - self.started, self.request_id
        # An owner that is only slow knows more than whoever stands in for it, and a page is longer work than a get.
        patient = late_s < core.settings.fallback_after_s
        if not patient or (self.plan and self.plan[0] in self.owners):
            self._ask_next(core)
        if self._settle(core):
            return True
        if self.request_id == request_id:
            wait_s = core.settings.fallback_after_s - late_s if patient else core.settings.suspect_after_s
            core.deadlines.add(core.now, min(max(wait_s, 0.001), max(self.deadline - core.now, 0.001)), request_id)
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
        if any(type(count) is not int or not 0 <= count <= 255 for count in asked_counts(message)):
            raise InvalidRequest("r and pr of a scan are numbers of nodes, 0 to 255")
        PendingScan(core, reply_to, message, core.cluster.bucket(bucket)).begin(core)
    except DynamoError as error:
        core.refuse(reply_to, error)


def asked_counts(message: Message) -> tuple[int, int]:
    """r and pr of a SCAN. They were appended to its fields: a client that does not know them asks with the bucket's own."""
    return (message[7], message[8]) if len(message) >= 9 else (0, 0)


def _entry_bytes(entry: tuple[Any, ...]) -> int:
    """At most so many bytes does an entry take in an answer."""
    return 32 + len(entry[0]) + len(entry[1]) + len(entry[3]) + sum(len(sibling[0]) + SIBLING_BYTES for sibling in entry[2])


def _is_cursor(core: Core, bucket: bytes, cursor: bytes) -> bool:
    """Whether it is a row key of this bucket, or the beginning of a partition."""
    fits = 2 <= len(cursor) <= ROW_KEY_BYTES_MAX and int.from_bytes(cursor[:2], "big") < core.cluster.partitions
    return fits and (len(cursor) == 2 or cursor[2:].startswith(bucket + b"\0"))
