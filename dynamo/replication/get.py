"""Coordinating a get (paper 4.5 and section 5; DESIGN section 4).

Ask R replicas, this node's own row first; a late answer makes the coordinator ask one more (hedge, Dean & Barroso 2013). A replica whose row has
the digest the coordinator sent answers with that alone. R answers are merged and given to the client; once the others are in, or late,
`final_action` says which replicas were found behind, and they are sent the merged record (read repair).

While the ring changes, an owner may answer that it is *recovering*, and whom else a read has to hear for it (`standings`). It counts toward R
when those have answered, too. One of them that owns the key no longer hands its row to the owners and drops it: where its answer came after the
recovering owner's, that owner is asked once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

from dynamo._core import record as records
from dynamo.errors import CorruptRecord, DynamoError, ProtocolError, Timeout, Unavailable
from dynamo.model import messages as m
from dynamo.model.cluster import BucketDefinition
from dynamo.model.key import check_bucket, check_key, full_key
from dynamo.model.messages import Message
from dynamo.replication import fitting, tokens
from dynamo.replication.causes import cause
from dynamo.replication.core import Core, Place, ReplyTo
from dynamo.replication.local import merge_in
from dynamo.replication.quorum import FAILED, MET, PENDING, needed
from dynamo.replication.rows import NO_DIGEST
from dynamo.replication.standings import Needs, asked_too_early, checked, satisfied, to_ask


class GetFold:
    """One read: add replies, ask for the state, take the merged record, later take the repairs. No I/O, no clock.

    `record`: of the first reply. As long as it stands for all of them (`alike`), as it does where replicas agree, it is their join, and nobody is behind.
    """

    __slots__ = ("alike", "failures", "met", "outstanding", "owners_answered", "owners_required", "record", "recovering", "replies", "required", "unmet")

    def __init__(self, required: int, owners_required: int) -> None:
        self.required = required
        self.owners_required = owners_required
        self.outstanding: set[bytes] = set()
        self.replies: dict[bytes, tuple[int, bytes]] = {}  # node -> (standing, record)
        self.record = b""
        self.alike = True
        self.owners_answered = 0
        self.failures: dict[bytes, int] = {}
        self.recovering: dict[bytes, Needs] = {}  # what those that answered need
        self.met: set[bytes] = set()  # nodes that stand for themselves; kept only while some are recovering
        self.unmet = 0  # answers that do not

    def add(self, node: bytes, standing_: int, record: bytes, needs: Needs = ()) -> int:
        """The node answered with this record (b"" = absent), and needs others to be heard as well. Returns the state."""
        replies = self.replies
        self.outstanding.discard(node)
        if not replies:
            self.record = record
        elif record is not self.record and record != self.record:  # a digest stands for the very record that was sent out
            self.alike = False
        if standing_ == m.OWNER and node not in replies:
            self.owners_answered += 1
        replies[node] = standing_, record
        if needs or self.recovering:
            self._weigh(node, needs)
        return self.state()

    def _weigh(self, node: bytes, needs: Needs) -> None:
        """Take in what a node that answered needs."""
        if needs:
            self.recovering[node] = needs
        else:
            self.recovering.pop(node, None)
        self._count()

    def _count(self) -> None:
        """Count anew who stands for itself. A node that no longer owns the key, and is heard for a recovering owner, counts with that one alone."""
        self.met = satisfied(self.replies, self.recovering)
        heard = {node for needs in self.recovering.values() for _, nodes in needs for node in nodes}
        helpers = sum(node in heard and self.replies[node][0] == m.FALLBACK for node in self.met)
        self.unmet = len(self.replies) - len(self.met) + helpers
        self.owners_answered = sum(self.replies[node][0] != m.FALLBACK for node in self.met)

    def forget(self, node: bytes) -> None:
        """The node will be asked once more."""
        del self.replies[node]
        self._count()

    def fail(self, node: bytes, code: int) -> int:
        """The node will not answer. Returns the state."""
        self.outstanding.discard(node)
        self.failures[node] = code
        return self.state()

    def state(self) -> int:
        """MET, or FAILED once nobody is left to answer, else PENDING."""
        if len(self.replies) - self.unmet >= self.required and self.owners_answered >= self.owners_required:
            return MET
        return PENDING if self.outstanding else FAILED

    def merged(self) -> bytes:
        """The join of all replies so far."""
        if self.alike:
            return self.record
        record = b""
        for _, other in self.replies.values():
            if other is not record:
                record = records.merge(record, other) if record else other
        return record

    def final_action(self) -> tuple[bytes, list[bytes]]:
        """(merged record, owners found behind it), as data for the coordinator to hand out."""
        if self.alike:
            return self.record, []
        record = self.merged()
        return record, [node for node, (role, other) in self.replies.items() if role != m.FALLBACK and other != record]


Done = Callable[[Core, "PendingGet", int, list[bytes]], None]  # the get, the request id of its repairs, the nodes they went to


class PendingGet(GetFold):
    """A get in the table of pending requests: a fold, whom to ask next, and the answer."""

    __slots__ = (
        "answered", "bucket", "deadline", "definition", "done", "held_bytes", "key", "pin", "pin_digest", "plan", "reply_to", "request_id",
        "route", "row_key", "standing", "started", "time_ms",
    )  # fmt: skip

    def __init__(
        self,
        core: Core,
        reply_to: ReplyTo,
        bucket: bytes,
        key: bytes,
        place: Place,
        required: int,
        owners_required: int,
        plan: Iterator[bytes],
        time_ms: int,
    ) -> None:
        super().__init__(required, owners_required)
        self.reply_to = reply_to
        self.bucket = bucket
        self.key = key
        self.definition, self.row_key, route = place
        self.route = route
        self.standing = route.standing
        self.plan = plan  # whom to ask, in order, from the next one on
        self.time_ms = time_ms
        self.request_id = core.request_id()
        self.started = core.now
        self.deadline = core.now + min(time_ms / 1000.0, core.settings.request_time_s_max)
        self.pin = b""  # the record whose digest goes out with the reads; a reply by digest alone stands for it
        self.pin_digest = NO_DIGEST
        self.held_bytes = 0  # of records, as counted in `core.reading_bytes`
        self.answered = False
        self.done: Done | None = None

    def begin(self, core: Core) -> bool:
        """Ask as many as R needs, this node first if it is in line. Returns whether it is finished at once."""
        core.pending[self.request_id] = self
        core.deadlines.add(core.now, core.settings.hedge_after_s, self.request_id)
        for _ in range(self.required):
            if not self._ask_next(core):
                break
        return self._settle(core, self.state())

    def _ask_next(self, core: Core) -> bool:
        """Ask the next node in line; False if there is none left."""
        return any((not self.recovering or self._is_new(node)) and self._ask(core, node) for node in self.plan)

    def _ask(self, core: Core, node: bytes) -> bool:
        """Ask this node; False if that cannot be done."""
        if node == core.node_id:
            return self._read_here(core)
        if not core.liveness.up(node):
            return False
        self.outstanding.add(node)
        read = (m.READ, self.request_id, self.bucket, self.key, self.pin_digest, self.time_ms, core.ring_number, core.ring_hash,
                self.definition.version)  # fmt: skip
        core.outbox.append((node, read))
        return True

    def _is_new(self, node: bytes) -> bool:
        """Whether the node was not asked yet."""
        return node not in self.replies and node not in self.outstanding and node not in self.failures

    def _ask_needed(self, core: Core) -> bool:
        """Some who answered are recovering: ask those that they need; where nobody of them is left, the next node in line. False if there is none."""
        late = self._asked_too_early()
        if late is not None:
            self.forget(late)
            return self._ask(core, late)
        if self.outstanding and len(self.replies) - self.unmet + len(self.outstanding) >= self.required:
            return True
        for node in to_ask(self.recovering, self.met, self.outstanding, self.replies, self.route.owners):
            if node not in self.failures and self._ask(core, node):
                return True
        return self._ask_next(core)

    def _asked_too_early(self) -> bytes | None:
        return asked_too_early(list(self.replies), self.recovering, self.met, self.route.owners)

    def _read_here(self, core: Core) -> bool:
        row, held = core.rows.load_held(self.row_key)
        if isinstance(row, DynamoError):
            core.storage_error = row
            self.fail(core.node_id, row.code)
            return False
        record = b"" if row is None else row.record
        if held is not None:  # staged state may not be shown or vouched for: neither as an answer nor as a digest
            self.outstanding.add(core.node_id)
            held.wakes.append((self.request_id, record))
            return True
        self._hold(core, record)
        self.add(core.node_id, self.standing, record, self._own_needs())
        if row is not None and not self.outstanding and len(self.replies) == 1:  # else somebody was asked with another digest
            self.pin, self.pin_digest = record, row.digest
        return True

    def _own_needs(self) -> Needs:
        """What this node needs; nothing where nobody is answered: a repair takes from each what it has."""
        return self.route.needs if self.reply_to.source is not None else ()

    def _hold(self, core: Core, record: bytes) -> None:
        """Count the record of a reply, which is kept until the end."""
        self.held_bytes += len(record)
        core.reading_bytes += len(record)

    def on_reply(self, core: Core, source: bytes, message: Message) -> bool:
        if message[0] != m.READ_REPLY:
            return False
        code, record = message[2], message[5]
        if not code and record:
            try:
                records.verify(record)
                if record[1] != self.definition.record_kind:
                    raise CorruptRecord("a record of another kind than its bucket")
            except CorruptRecord as error:
                code = error.code
        needs: Needs = ()
        if len(message) > 8 and self.reply_to.source is not None:
            try:
                needs = checked(message[8])
            except ProtocolError as error:
                code = error.code
        if code:
            return self.on_failure(core, source, code)
        standing = message[3]
        if standing != m.FALLBACK and source not in self.route.owners:
            standing = m.FALLBACK  # an owner by its own ring alone is none of those whose answers R and pr count on
        if message[7] != core.ring_hash and self.reply_to.source is not None and not self.answered:
            if core.is_news(source, message[6]):
                return False  # it comes in again under the ring that this node is about to learn (`on_ring`)
            if source in self.route.owners and standing == m.FALLBACK:
                return self.on_failure(core, source, Unavailable.code)  # it has not heard yet what it is
        if record is None:
            record = self.pin
        elif record is not self.pin:
            self._hold(core, record)
        return self._settle(core, self.add(source, standing, record, needs))

    def on_ring(self, core: Core) -> bool:
        """The ring is another one: begin anew under it, for answers under two rings do not add up to R."""
        if self.answered or self.reply_to.source is None:
            return False
        core.pending.pop(self.request_id, None)
        self.request_id = core.request_id()
        core.pending[self.request_id] = self
        core.deadlines.add(core.now, core.settings.hedge_after_s, self.request_id)
        self.definition, self.row_key, self.route = core.place(self.bucket, self.key)
        self.standing = self.route.standing
        self.plan = chain(self.route.orders[0], self.route.fallbacks)
        for record in (self.replies, self.recovering, self.failures, self.outstanding):
            record.clear()
        self.met, self.unmet, self.owners_answered, self.alike, self.pin, self.pin_digest = set(), 0, 0, True, b"", NO_DIGEST
        for _ in range(self.required):
            if not self._ask_next(core):
                break
        return self._settle(core, self.state())

    def on_wake(self, core: Core, record: bytes | None) -> bool:
        record = record or b""
        if record is not self.pin:
            self._hold(core, record)
        return self._settle(core, self.add(core.node_id, self.standing, record, self._own_needs()))

    def on_failure(self, core: Core, node: bytes, code: int) -> bool:
        if node not in self.outstanding:
            return False
        self.fail(node, code)
        if not self.answered:
            self._ask_next(core)
        return self._settle(core, self.state())

    def on_timer(self, core: Core) -> bool:
        core.note_silence(self.started, sorted(self.outstanding))
        if core.now >= self.deadline:
            if not self.answered:
                core.refuse(self.reply_to, Timeout("not enough replicas answered in time"))
            self._repair(core)
            return True
        wait_s = core.settings.suspect_after_s
        if not self.answered:
            if self._only_queued(core):
                wait_s = core.now - self.started
            else:
                self._ask_next(core)
        wait_s = min(max(wait_s, 0.001), max(self.deadline - core.now, 0.001))
        core.deadlines.add(core.now, wait_s, self.request_id)
        return False

    def _only_queued(self, core: Core) -> bool:
        """Whether the answers are late for the number of requests that are under way, and not for a peer that is gone: those asked have spoken since.
        One more replica asked would be the later for all. With none under way that could answer, it is asked."""
        if len(core.pending) <= core.settings.hedge_pending_max or core.now - self.started >= core.settings.suspect_after_s:
            return False
        if len(self.replies) + len(self.outstanding) < self.required:
            return False
        return not any(node != core.node_id and core.liveness.silent_since(node, self.started) for node in self.outstanding)

    def _hides_damage(self) -> bool:
        """Whether it would say "not found" with stand-ins in place of owners whose rows are damaged: those have something."""
        return self.owners_answered < self.required and CorruptRecord.code in self.failures.values() and not self.merged()

    def _settle(self, core: Core, state: int) -> bool:
        if self.recovering and not self.answered:
            # Also where R has been met: by one who was asked too early, perhaps.
            while (state != MET or self._asked_too_early() is not None) and self._ask_needed(core) and not self.outstanding:
                state = self.state()
            state = self.state()
        if not self.answered:
            if state == MET and self.failures and self._hides_damage():
                state = PENDING if self.outstanding else FAILED
            if state == MET:
                self.answered = True
                self._answer(core)
            elif state == FAILED:
                self.answered = True
                core.refuse(self.reply_to, self._why(core))
        if self.answered and not self.outstanding:
            self._repair(core)
            return True
        return False

    def _why(self, core: Core) -> DynamoError:
        answered = len(self.replies) - self.unmet
        text = "" if self.required == 1 and core.node_id in self.failures else f"needed {self.required} nodes, had {answered}"
        if self.unmet:
            text = f"{text or 'needed this node'}; owners that are recovering need others that cannot be reached"
        return cause(core, self.bucket, self.key, self.failures, answered, self.required, text)

    def _answer(self, core: Core) -> None:
        reply_to = self.reply_to
        if reply_to.source is None:
            return  # a repair of our own: only the final action counts
        record = self.merged()
        if len(record) > core.settings.answer_bytes_max >> 1:
            self._answer_in_part(core, record)
            return
        siblings, tombstones, time = records.visible(record)
        token = sealed_token(core, self.bucket, self.key, self.definition, record, time)
        core.answer(reply_to, (m.GET_REPLY, reply_to.reply_id, core.ring_number, core.ring_hash, self.owners_answered, token, siblings, tombstones))

    def _answer_in_part(self, core: Core, record: bytes) -> None:
        """The answer of a record that may be larger than one: as much of it as fits."""
        reply_to = self.reply_to
        token, siblings, tombstones, left_out = shown_part(core, self.bucket, self.key, self.definition, record)
        reply = (m.GET_REPLY, reply_to.reply_id, core.ring_number, core.ring_hash, self.owners_answered, token, siblings, tombstones)
        core.answer(reply_to, (*reply, left_out) if left_out else reply)

    def _repair(self, core: Core) -> None:
        """The end, in any case: hand out the repairs, and say so."""
        core.reading_bytes -= self.held_bytes
        self.held_bytes = 0
        record, behind = self.final_action()
        request_id = core.request_id()
        if record and (behind or self.failures):
            self._send_repairs(core, record, behind, request_id)
        if self.done is not None:
            self.done(core, self, request_id, behind)

    def _send_repairs(self, core: Core, record: bytes, behind: list[bytes], request_id: int) -> None:
        """Send the merged record to the owners found behind; this node's own row included, a damaged one above all."""
        damaged = self.failures.get(core.node_id) == CorruptRecord.code
        for node in behind:
            core.count("read_repairs")
            if node == core.node_id:
                self._repair_here(core, record)
            else:
                core.send(node, (m.REPLICATE, request_id, self.bucket, self.key, record, m.PURPOSE_READ_REPAIR, b"", self.time_ms,
                                 core.ring_number, core.ring_hash, self.definition.version, core.durability, bytes(16)))  # fmt: skip
        if damaged and isinstance(core.rows.load(self.row_key), CorruptRecord):
            core.count("rows_restored")
            status = 1 if self.standing == m.FALLBACK else 0
            core.rows.stage(self.row_key, self.bucket, self.key, record, status, 0, 0)

    def _repair_here(self, core: Core, record: bytes) -> None:
        try:
            merge_in(core, self.row_key, self.bucket, self.key, m.OWNER if core.node_id in self.route.owners else m.FALLBACK, record)
        except DynamoError as error:
            core.count(f"read_repair_failed_{type(error).__name__}")


def sealed_token(core: Core, bucket: bytes, key: bytes, definition: BucketDefinition, record: bytes, time: int) -> bytes:
    """The token that covers all versions of the record (and, for last-write-wins, its time)."""
    record = remembered(core, record)
    return _sealed(core, bucket, key, definition, record, time, records.context(record) if record else b"")


def shown_part(core: Core, bucket: bytes, key: bytes, definition: BucketDefinition, record: bytes) -> tuple[bytes, fitting.Siblings, fitting.Tombstones, int]:
    """(token, siblings, tombstones, how many were left out) of a record, as much of it as fits into an answer."""
    record = remembered(core, record)
    siblings, tombstones, time, context, left_out = fitting.shown(record, core.settings.answer_bytes_max)
    if left_out:
        core.count("records_shown_in_part")
    return _sealed(core, bucket, key, definition, record, time, context), siblings, tombstones, left_out


def remembered(core: Core, record: bytes) -> bytes:
    """The record without the past that a store which never had a peer may forget."""
    return records.forget(record, core.actor.of_this_life) if core.alone and record else record


def _sealed(core: Core, bucket: bytes, key: bytes, definition: BucketDefinition, record: bytes, time: int, context: bytes) -> bytes:
    kind = definition.record_kind
    if len(context) > tokens.RANGES_BYTES_MAX:
        context = tokens.fitted(context, record)
    return tokens.seal(core.cluster.secret, full_key(bucket, key), kind, time if kind == records.LAST_WRITE_WINS else 0, context)


def coordinate_get(core: Core, reply_to: ReplyTo, bucket: bytes, key: bytes, r: int, pr: int, time_ms: int) -> None:
    """Take a read that this node coordinates; any node can."""
    try:
        check_bucket(bucket)
        check_key(key)
        if len(core.pending) >= core.settings.pending_max or core.reading_bytes >= core.settings.reading_bytes_max:
            raise Unavailable("busy: too many requests in flight on this node, or too large ones; try another or again")
        place = definition, _, route = core.place(bucket, key)
        required = needed(r, definition.r, core.cluster.r, definition.n or core.cluster.n, core.ring.size)
        owners_required = pr or definition.pr or core.cluster.pr
        if route.reachable < required:
            raise Unavailable(required=required, received=route.reachable)
        if route.owners_reachable < owners_required:
            raise Unavailable(f"pr={owners_required} owners needed", required=owners_required, received=route.owners_reachable)
    except DynamoError as error:
        core.refuse(reply_to, error)
        return
    orders = route.orders
    plan = chain(orders[int(core.random.random() * len(orders))], route.fallbacks)
    pending = PendingGet(core, reply_to, bucket, key, place, max(required, owners_required), owners_required, plan, time_ms)
    core.finish_if(pending.request_id, pending.begin(core))


class _Then:
    """Takes the answer of a read that this node makes for itself."""

    __slots__ = ("read", "then")

    def __init__(self, then: Callable[[PendingGet], None]) -> None:
        self.then = then
        self.read: PendingGet | None = None

    def add(self, slot: int, reply: Message) -> None:
        """The read was answered, perhaps by an error."""
        assert self.read is not None, "a read was answered before it began"
        self.then(self.read)


def read_then(core: Core, bucket: bytes, key: bytes, place: Place, time_ms: int, then: Callable[[PendingGet], None]) -> None:
    """Read the key as for a client that asks with the bucket's own R.

    `then` is given the read when it is answered, or failed, or has had its time, and what was found until then.
    """
    definition, _, route = place
    required = needed(0, definition.r, core.cluster.r, definition.n or core.cluster.n, core.ring.size)
    taker = _Then(then)
    reply_to = ReplyTo(core.node_id, 0, batch=taker)
    plan = chain(route.orders[0], route.fallbacks)
    read = PendingGet(core, reply_to, bucket, key, place, required, 0, plan, time_ms)
    taker.read = read
    core.finish_if(read.request_id, read.begin(core))


def repair_from_peers(core: Core, bucket: bytes, key: bytes) -> None:
    """Read a key whose row here is damaged from the other owners, and put what they hold in its place."""
    _, _, route = core.place(bucket, key)
    begin_repair(core, bucket, key, [core.node_id, *route.peers], None)


def repair_then(core: Core, bucket: bytes, key: bytes, then: Callable[[], None]) -> None:
    """The same, and go on with what waits for it, whether it helped or not."""

    def done(core: Core, read: PendingGet, request_id: int, behind: list[bytes]) -> None:
        then()

    _, _, route = core.place(bucket, key)
    begin_repair(core, bucket, key, [core.node_id, *route.peers], done)


def begin_repair(core: Core, bucket: bytes, key: bytes, nodes: list[bytes], done: Done | None, time_ms: int = 0) -> None:
    """Read a key from these nodes and repair those that are behind; nobody is answered, but `done` is told when the repairs were handed out.
    `time_ms`: how long the read may take; 0: until a silent node is suspected."""
    time_ms = time_ms or int(core.settings.suspect_after_s * 1000)
    pending = PendingGet(core, ReplyTo(None, 0), bucket, key, core.place(bucket, key), len(nodes), 0, iter(nodes), time_ms)
    pending.done = done
    core.finish_if(pending.request_id, pending.begin(core))
