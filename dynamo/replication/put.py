"""Coordinating a put (paper 4.5; DESIGN sections 2 and 4).

The coordinator reads its row, mints a dot, stages the new record here and sends it to the other owners at once; it acknowledges when W distinct
nodes, `pw` of them owners, hold it at the durability asked. A node that fails, or is slow past `fallback_after_s`, makes the walk go on down
the preference list (sloppy quorum); the row such a fallback keeps finds its owners by handoff.

Everything that can be refused is refused before the dot is minted: only such an error may say `maybe_applied=False` (P10).
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from dynamo._core import record as records
from dynamo.errors import CorruptRecord, DynamoError, Timeout, TooManySiblings, Unavailable, ValueTooLarge
from dynamo.model import messages as m
from dynamo.model.cluster import BucketDefinition
from dynamo.model.key import check_bucket, check_key, full_key
from dynamo.model.messages import Message
from dynamo.model.row import FALLBACK as STATUS_FALLBACK
from dynamo.model.row import OWNED as STATUS_OWNED
from dynamo.model.row import Row
from dynamo.replication import tokens
from dynamo.replication.causes import cause, damaged
from dynamo.replication.core import Core, Place, ReplyTo
from dynamo.replication.get import PendingGet, begin_repair, read_then
from dynamo.replication.local import merge_in
from dynamo.replication.operations import Version
from dynamo.replication.quorum import FAILED, MET, PENDING, needed
from dynamo.replication.routes import Route

MINT_WAIT_MAX = 10_000
RANGES_WARNED = 64


class PutFold:
    """One write on its way to W nodes: add confirmations and failures, ask for the state. No I/O, no clock."""

    __slots__ = ("confirmed", "durability", "failures", "outstanding", "owners", "owners_confirmed", "owners_required", "required")

    def __init__(self, required: int, owners_required: int, owners: tuple[bytes, ...], durability: int) -> None:
        self.required = required
        self.owners_required = owners_required
        self.owners = owners
        self.durability = durability
        self.outstanding: set[bytes] = set()
        self.confirmed: set[bytes] = set()
        self.owners_confirmed = 0
        self.failures: dict[bytes, int] = {}

    def confirm(self, node: bytes, standing_: int, durability: int) -> int:
        """The node holds the write. Weaker durability than asked does not count toward W (P8)."""
        self.outstanding.discard(node)
        if durability >= self.durability and node not in self.confirmed:
            self.confirmed.add(node)
            if standing_ != m.FALLBACK and node in self.owners:  # by its own ring and by the one this put was sent under
                self.owners_confirmed += 1
        return self.state()

    def fail(self, node: bytes, code: int) -> int:
        """The node does not hold the write, or nobody knows."""
        self.outstanding.discard(node)
        self.failures[node] = code
        return self.state()

    def state(self) -> int:
        """MET, or FAILED once nobody is left to answer, else PENDING."""
        if len(self.confirmed) >= self.required and self.owners_confirmed >= self.owners_required:
            return MET
        return PENDING if self.outstanding else FAILED


class PendingPut(PutFold):
    """A put in the table of pending requests: a fold, the walk down the preference list, and the answer."""

    __slots__ = ("answered", "deadline", "frame", "held_here", "plan", "reply", "reply_to", "request_id", "row_key", "stand_ins", "started")

    def __init__(
        self,
        core: Core,
        reply_to: ReplyTo,
        required: int,
        owners_required: int,
        route: Route,
        frame: Message,
        reply: Message,
        deadline: float,
        row_key: bytes,
    ) -> None:
        super().__init__(required, owners_required, route.owners, core.durability)
        self.reply_to = reply_to
        self.plan = iter(route.fallbacks)  # nodes to go on to, in order
        self.frame = frame  # the REPLICATE message, complete but for its target
        self.reply = reply
        self.request_id = frame[1]
        self.started = core.now
        self.deadline = deadline
        self.row_key = row_key
        self.stand_ins: dict[bytes, bytes] = {}  # fallback -> the owner it stands in for
        self.answered = False
        self.held_here = False  # this node's own copy is as durable as it was to be

    def begin(self, core: Core) -> None:
        """Send to the other owners; for each that cannot be reached, to the next node in line, or keep the hint here."""
        unreachable = []
        durable = self._durable(core) if self.durability == m.DURABILITY_BUFFERED else None
        for node in self.owners:
            if node == core.node_id:
                self.outstanding.add(node)
            elif node == durable:
                self.outstanding.add(node)
                core.send(node, (*self.frame[:11], m.DURABILITY_SYNCED, *self.frame[12:]))
            elif core.liveness.up(node):
                self._ask(core, node, b"")
            else:
                self.failures[node] = Unavailable.code
                unreachable.append(node)
        if core.node_id not in self.owners:
            self.outstanding.add(core.node_id)
        for owner in unreachable:
            if not self._walk(core):
                self._keep_hint(core, owner)  # in the same group as the row
        while len(self.outstanding) < self.required and self._walk(core):
            pass
        core.pending[self.request_id] = self
        core.deadlines.add(core.now, core.settings.fallback_after_s, self.request_id)

    def _durable(self, core: Core) -> bytes | None:
        """The owner that is asked for a synced write (paper 6.1): one that W need not wait for, so none where all that are up are needed."""
        others = [node for node in self.owners if node != core.node_id and core.liveness.up(node)]
        owners_left = len(others) - 1 + (core.node_id in self.owners)
        return others[-1] if len(others) >= self.required and owners_left >= self.owners_required else None

    def _ask(self, core: Core, node: bytes, target: bytes) -> None:
        self.outstanding.add(node)
        # Without a target it is one message for all, which the driver encodes once.
        core.send(node, (*self.frame[:6], target, *self.frame[7:]) if target else self.frame)

    def _walk(self, core: Core) -> bool:
        """Ask the next fallback in line to stand in for an owner that did not confirm; False if there is none."""
        for node in self.plan:
            if core.liveness.up(node):
                missing = self._missing(core, self.stand_ins.keys() - self.failures.keys())
                target = missing[0] if missing else b""
                if target:
                    self.stand_ins[node] = target
                core.count("fallback_writes")
                self._ask(core, node, target)
                return True
        return False

    def _missing(self, core: Core, stand_ins: AbstractSet[bytes]) -> list[bytes]:
        """The owners without the write, as far as is known, for which none of these stands in."""
        held = self.confirmed | {self.stand_ins[node] for node in stand_ins}
        waiting = [owner for owner in self.owners if owner not in held and owner != core.node_id]
        return sorted(waiting, key=lambda owner: owner not in self.failures)  # those that failed before those that are slow

    def _keep_hint(self, core: Core, owner: bytes) -> None:
        if not core.hints.add(core, owner, self.row_key, len(self.frame[4])) and core.node_id not in self.owners:
            core.unowned_rows_staged = True  # no room for the hint, but the row is here: it is owed to all owners

    def _finish(self, core: Core) -> bool:
        """All have answered, or had their time: owe the write to the owners that lack it."""
        missing = [] if self.confirmed.issuperset(self.owners) else self._missing(core, self.stand_ins.keys() & self.confirmed)
        for owner in missing:
            self._keep_hint(core, owner)
        if core.node_id not in self.owners and not missing:
            core.unowned_rows_staged = True  # nobody needs the copy here for long
        return True

    def on_reply(self, core: Core, source: bytes, message: Message) -> bool:
        if message[0] != m.REPLICATE_REPLY:
            return False
        code, role, durability = message[2], message[3], message[4]
        if code:
            return self._failed(core, source, code)
        if message[7] != self.frame[9] and not self.answered and core.is_news(source, message[6]):
            return False  # it confirms under a ring in which others may own the key: asked again under that one (`on_ring`)
        if durability < self.durability:
            return self._failed(core, source, Unavailable.code)  # it has the write, but weaker than was asked (P8): another one must do
        return self._settle(core, self.confirm(source, role, durability))

    def on_wake(self, core: Core, record: bytes | None) -> bool:
        """The local commit happened."""
        if self.frame[9] != core.ring_hash and not self.answered:
            self.on_ring(core)
        role = m.OWNER if core.node_id in self.owners else m.FALLBACK
        if role == m.OWNER and not core.adopted.whole and core.place(self.frame[2], self.frame[3])[2].standing == m.RECOVERING:
            core.adopted.wake_later(self.request_id)
            return False
        self.held_here = True
        return self._settle(core, self.confirm(core.node_id, role, core.durability))

    def on_ring(self, core: Core) -> bool:
        """The ring is another one: W has to be met among those that it names, so they are all asked, and what was confirmed before counts no more."""
        frame = self.frame
        if self.answered or frame[9] == core.ring_hash:
            return False
        _, _, route = core.place(frame[2], frame[3])
        self.owners, self.plan = route.owners, iter(route.fallbacks)
        self.frame = (*frame[:8], core.ring_number, core.ring_hash, *frame[10:])
        self.confirmed, self.owners_confirmed, self.failures, self.outstanding, self.stand_ins = set(), 0, {}, set(), {}
        for node in self.owners:
            if node == core.node_id:
                continue
            if core.liveness.up(node):
                self._ask(core, node, b"")
            else:
                self.failures[node] = Unavailable.code
        while len(self.outstanding) + 1 < self.required and self._walk(core):
            pass
        if not self.held_here:
            self.outstanding.add(core.node_id)
            return False
        self.held_here = False
        return self.on_wake(core, None)

    def on_failure(self, core: Core, node: bytes, code: int) -> bool:
        if node not in self.outstanding:
            return False
        return self._failed(core, node, code)

    def _failed(self, core: Core, node: bytes, code: int) -> bool:
        if self.fail(node, code) != MET and not self.answered:
            self._walk(core)
        return self._settle(core, self.state())

    def on_timer(self, core: Core) -> bool:
        core.note_silence(self.started, sorted(self.outstanding))
        if core.now >= self.deadline:
            if not self.answered:
                self._give_up(core, Timeout("the write was not confirmed by enough nodes in time; read the key before writing again"))
            return self._finish(core)
        if not self.answered:
            self._walk(core)
        delay = max(core.settings.suspect_after_s, 0.001)
        core.deadlines.add(core.now, min(delay, max(self.deadline - core.now, 0.001)), self.request_id)
        return False

    def _settle(self, core: Core, state: int) -> bool:
        if not self.answered:
            if state == MET:
                self.answered = True
                core.answer(self.reply_to, (*self.reply, len(self.confirmed), core.durability))
            elif state == FAILED:
                self._give_up(core, self._why(core))
        return self.answered and not self.outstanding and self._finish(core)

    def _why(self, core: Core) -> DynamoError:
        held, (bucket, key) = len(self.confirmed), self.frame[2:4]
        text = ""
        if self.required > 1 or core.node_id not in self.failures:
            text = f"{held} of the {self.required} nodes needed hold the write; the others failed or cannot be reached"
        return cause(core, bucket, key, self.failures, held, self.required, text)

    def _give_up(self, core: Core, error: DynamoError) -> None:
        self.answered = True
        error.maybe_applied = True  # the dot is minted and the record has left
        core.refuse(self.reply_to, error)


def _overwrite(core: Core, reply_to: ReplyTo, message: Message, route: Route) -> None:
    """A set, or a delete, of a key whose row here is damaged: first see what the other owners have of it, and go on with that. Where all owners have
    said that they have nothing that can be read, nothing is left to be lost, and the key must not be stuck."""
    bucket, key = message[2:4]
    until = core.now + message[9] / 1000.0

    def done(core: Core, read: PendingGet, _: int, __: list[bytes]) -> None:
        again = (*message[:9], max(1, int((until - core.now) * 1000)), *message[10:])
        damaged_at = [code for code in read.failures.values() if code == CorruptRecord.code]
        # All owners have spoken, and none has anything; one that is recovering may yet get it.
        spoken = sum(standing == m.OWNER for standing, _ in read.replies.values()) + len(damaged_at)
        lost = spoken == read.required and not read.merged()
        if lost or not isinstance(core.rows.load(read.row_key), CorruptRecord):
            coordinate_put(core, reply_to, again, overwrite=True)
        else:
            core.refuse(reply_to, damaged(bucket, key))

    nodes = [core.node_id, *(node for node in route.owners if node != core.node_id)]
    begin_repair(core, bucket, key, nodes, done, _time_to_read_ms(core, message))


def _learn_first(core: Core, reply_to: ReplyTo, message: Message, place: Place) -> None:
    """A write that builds on what this node holds, which does not hold all yet: first read the key as for a client.

    The write goes on when the read was answered, or had its time, for a write is accepted in any case.
    """
    bucket, key = message[2:4]
    until = core.now + message[9] / 1000.0

    def then(read: PendingGet) -> None:
        record = read.merged()
        try:
            if record:
                merge_in(core, read.row_key, bucket, key, read.standing, record)
        except DynamoError as error:
            core.count(f"read_repair_failed_{type(error).__name__}")
        coordinate_put(core, reply_to, (*message[:9], max(1, int((until - core.now) * 1000)), *message[10:]), learned=True)

    read_then(core, bucket, key, place, _time_to_read_ms(core, message), then)


def _time_to_read_ms(core: Core, message: Message) -> int:
    """How long a write may read before it writes: until a silent node is suspected, and at most half of its own time.

    The other half is for the write itself, which must not be late because of nodes that it does not need.
    """
    time_ms: int = message[9]
    return max(1, min(int(core.settings.suspect_after_s * 1000), time_ms // 2))


def coordinate_put(core: Core, reply_to: ReplyTo, message: Message, place: Place | None = None, overwrite: bool = False, learned: bool = False) -> None:
    """Take a PUT that this node coordinates. Refuses with a typed error, `maybe_applied` False, before anything is minted. `place`: where the key,
    which then is a good one, lies. `overwrite`: even where the row here is damaged, for no owner has it whole. `learned`: it was read from those that
    this node, which is recovering, needs."""
    _, _, bucket, key, value, token, mode, w, pw, time_ms, operation = message[:11]
    try:
        if place is None:
            check_bucket(bucket)
            check_key(key)
            place = core.place(bucket, key)
        definition, row_key, route = place
        if value is not None and len(value) > definition.value_bytes_max:
            raise ValueTooLarge(f"the value has {len(value)} bytes; the bucket allows {definition.value_bytes_max}")
        time, context = tokens.unseal(core.cluster.secret, full_key(bucket, key), definition.record_kind, token)
        if core.stalls.may_have_expired(core, time_ms):
            raise Unavailable("this node was stopped for a while, and the request may be older than its client's patience; try another node")
        required, owners_required = _admit(core, route, definition, w, pw)
        if route.needs and not learned and (mode == m.MODE_SET or definition.record_kind == records.LAST_WRITE_WINS):
            _learn_first(core, reply_to, message, place)
            return
        row = core.rows.load(row_key)
        if isinstance(row, DynamoError):
            if not isinstance(row, CorruptRecord):
                raise row
            if not overwrite:
                core.repair_wanted.append((bucket, key))
                if mode != m.MODE_SET and value is not None:  # it would have to build upon what cannot be read
                    raise damaged(bucket, key)
                _overwrite(core, reply_to, message, route)
                return
            core.count("rows_overwritten")
            row = None
        if core.contradicts_actor(context, row):
            core.renew_actor()
        if not core.actor.usable:
            if len(core.waiting_for_actor) >= MINT_WAIT_MAX:
                raise Unavailable("busy: a new actor is being made durable; try again")
            core.waiting_for_actor.append((reply_to, message))
            return
        record, context, dot = _new_record(core, definition, row_key, row, context, time, mode, operation, value)
    except DynamoError as error:
        error.maybe_applied = False
        core.refuse(reply_to, error)
        return
    _stage(core, row_key, bucket, key, row, record, dot, route.standing)
    shown, unseen = records.token_context(record, context, *dot)
    if core.alone:  # what the client has seen of actors that are over is replaced, and nobody has it any more
        shown = records.context_keep(shown, core.actor.of_this_life)
    if len(shown) > tokens.RANGES_BYTES_MAX:
        shown = tokens.fitted(shown, record)
    sealed = tokens.seal(core.cluster.secret, full_key(bucket, key), definition.record_kind, _time_of(record, definition), shown)
    request_id = core.request_id()
    seconds = min(time_ms / 1000.0, core.settings.request_time_s_max)
    frame = (m.REPLICATE, request_id, bucket, key, record, m.PURPOSE_WRITE, b"", time_ms, core.ring_number, core.ring_hash,
             definition.version, core.durability, operation)  # fmt: skip
    reply = (m.PUT_REPLY, reply_to.reply_id, core.ring_number, core.ring_hash, sealed, dot[0], dot[1], unseen)
    pending = PendingPut(core, reply_to, required, owners_required, route, frame, reply, core.now + seconds, row_key)
    pending.begin(core)
    held = core.rows.held(row_key)
    if held is None:  # a retry of an operation that is committed here already
        core.finish_if(request_id, pending.on_wake(core, None))
    else:
        held.wakes.append((request_id, None))


def _admit(core: Core, route: Route, definition: BucketDefinition, w: int, pw: int) -> tuple[int, int]:
    """(W, PW), or Unavailable while too few nodes can be reached at all."""
    if len(core.pending) >= core.settings.pending_max:
        raise Unavailable("busy: too many requests in flight on this node; try another or again")
    required = needed(w, definition.w, core.cluster.w, definition.n or core.cluster.n, core.ring.size)
    owners_required = pw or definition.pw or core.cluster.pw
    if route.reachable < required:
        raise Unavailable(required=required, received=route.reachable)
    if route.owners_reachable < owners_required:
        raise Unavailable(f"pw={owners_required} owners needed", required=owners_required, received=route.owners_reachable)
    return required, owners_required


def _new_record(
    core: Core,
    definition: BucketDefinition,
    row_key: bytes,
    row: Row | None,
    context: bytes,
    time: int,
    mode: int,
    operation: bytes,
    value: bytes | None,
) -> tuple[bytes, bytes, tuple[int, int]]:
    """(record, context, dot) of the write. Mints the dot unless this operation has one already. Raises before minting."""
    old = row.record if row is not None else b""
    earlier = _earlier(core, row_key, old, operation)
    if earlier is not None and old and _covers(old, earlier):
        core.count("operations_repeated")
        return old, context, earlier[:2]
    if old and mode == m.MODE_SET:
        context = records.context_union(context, records.context(old))
    actor, counter = core.actor.actor, core.actor.next_counter()
    tombstone, body = value is None, value or b""
    if definition.record_kind == records.LAST_WRITE_WINS:
        # Later than an earlier attempt too, which may be there at another node: the client's next write exceeds the time of this one.
        newest = max(time, _time_of(old, definition) if old else 0, earlier[2] if earlier is not None else 0)
        written = core.hlc(newest)
        record = records.put_last_write_wins(old, actor, counter, written, operation, body, tombstone)
    else:
        since = row.since if row is not None and row.since and row.since_actor == actor else counter
        written = core.hlc()
        record = records.put(old, context, actor, counter, since, written, operation, body, tombstone)
        if core.alone:
            record = records.forget(record, core.actor.of_this_life)
        count, before = records.version_count(record), records.version_count(old) if old else 0
        # A write that makes nothing worse is never refused: it may be the one that merges them, or deletes the key.
        if count > definition.siblings_max and count > before:
            raise TooManySiblings(f"the key holds {before} concurrent versions; read it, merge them, put with the context of that read")
        if _burden(record) > core.settings.record_bytes_max and _burden(record) > _burden(old):
            raise ValueTooLarge(f"the record would have {len(record)} bytes with its siblings; merge them first")
        if _ranges(record) > RANGES_WARNED:
            core.count("long_contexts")  # each crash of a coordinator adds one, and nothing but time can be done about it
    core.actor.issue(counter)
    core.rows.operations.stage(operation, row_key, (actor, counter, written))
    if core.actor.wants_extension:
        core.actor.extend()
        core.stage_actor()
    return record, context, (actor, counter)


def _ranges(record: bytes) -> int:
    """How many ranges the context of a record has."""
    return int.from_bytes(record[4:8], "big")


def _burden(record: bytes) -> int:
    """The bytes of a record that its writers can answer for: without the ranges of its context, which grow with the years and cannot shrink."""
    return len(record) - _ranges(record) * tokens.RANGE_BYTES


def _earlier(core: Core, row_key: bytes, old: bytes, operation: bytes) -> Version | None:
    """The version that an earlier attempt at the operation made of this key, as far as this node knows: it is there, or was."""
    live = records.find_operation(old, operation) if old else None
    if live is not None:
        return live
    known = core.rows.operations.get(operation)
    return known[1:] if known is not None and known[0] == row_key else None


def _covers(record: bytes, version: Version) -> bool:
    """Whether the record has the version, or what replaced it. It does not where the row was lost since: then the operation is written anew."""
    if record[1] != records.LAST_WRITE_WINS:
        return records.context_contains(records.context(record), *version[:2])
    ((actor, counter, time, *_),) = records.versions(record)
    return (time, actor, counter) >= (version[2], *version[:2])


def _stage(core: Core, row_key: bytes, bucket: bytes, key: bytes, row: Row | None, record: bytes, dot: tuple[int, int], role: int) -> None:
    """Stage the new record; its header remembers the first counter minted on this row under the current actor."""
    if row is not None and record == row.record:
        return
    actor, counter = dot
    since = row.since if row is not None and row.since and row.since_actor == actor else counter
    core.rows.stage(row_key, bucket, key, record, STATUS_FALLBACK if role == m.FALLBACK else STATUS_OWNED, actor, since)


def _time_of(record: bytes, definition: BucketDefinition) -> int:
    """What a last-write-wins token carries: the time the next write must exceed."""
    return records.versions(record)[0][2] if definition.record_kind == records.LAST_WRITE_WINS else 0
