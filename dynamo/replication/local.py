"""The replica side: this node's own rows, written and read on behalf of a coordinator, here or elsewhere.

What arrives is merged into the key's one row. The answer to a write waits for the commit that holds it and names the digest then stored, so
that the sender can tell what it covers; the answer to a read waits if the row is not committed yet.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from dynamo._core import record as records
from dynamo.errors import CorruptRecord, DynamoError, Unavailable
from dynamo.model import messages as m
from dynamo.model.messages import Message
from dynamo.model.row import FALLBACK as STATUS_FALLBACK
from dynamo.model.row import OWNED as STATUS_OWNED
from dynamo.model.row import Row
from dynamo.replication.core import Core
from dynamo.replication.rows import NO_DIGEST

Repair = Callable[[Core, bytes, bytes, Callable[[], None]], None]


def receive_replicate(core: Core, source: bytes, message: Message, repair: Repair | None = None) -> None:
    """Merge a record sent by a coordinator, a repair or a handoff; acknowledge once it is committed. `repair(core, bucket, key, then)` has a damaged row
    replaced by what the other owners have, of which the sender may be the only one to have anything; without it such a row is refused."""
    _, request_id, bucket, key, record, purpose, target = message[:7]
    durability, operation = message[11], message[12]
    definition, row_key, route = core.place(bucket, key)
    role = route.standing
    try:
        records.verify(record)
        if not record or record[1] != definition.record_kind:
            raise CorruptRecord("the record is empty or of another kind than its bucket")
        row = merge_in(core, row_key, bucket, key, role, record)
        held = core.rows.held(row_key)
        if role == m.FALLBACK:
            owed = target in route.owners
            kept = owed and core.hints.add(core, target, row_key, len(record))
            # Without a hint (its coordinator sees another ring, or there is no room for one) the row is owed to all current owners.
            core.unowned_rows_staged = core.unowned_rows_staged or not kept
            if owed and not kept:
                raise Unavailable("this node keeps as many hints as it may")
            if kept:  # what is promised is row and hint
                held = core.rows.later(held, core.hints.held(core, target, row_key))
    except DynamoError as error:
        if repair is not None and isinstance(core.rows.load(row_key), CorruptRecord):
            repair(core, bucket, key, partial(receive_replicate, core, source, message))
            return
        core.count("replicates_refused")
        core.send(source, _stored(core, request_id, error.code, role, NO_DIGEST))
        return
    if purpose == m.PURPOSE_WRITE:
        _remember(core, operation, row_key, record)
    if purpose == m.PURPOSE_HANDOFF:
        core.count("handoff_received")
    if durability > m.DURABILITY_BUFFERED == core.durability:
        _acknowledge_flushed(core, source, core.rows.group_of(held), _stored(core, request_id, 0, role, row.digest, m.DURABILITY_SYNCED))
        return
    reply = _stored(core, request_id, 0, role, row.digest)
    if role == m.RECOVERING and not core.adopted.whole:
        core.adopted.hold(core, source, reply, held)
    elif held is None:
        core.send(source, reply)
    else:
        held.messages.append((source, reply))


def _acknowledge_flushed(core: Core, source: bytes, group: int, reply: Message) -> None:
    """Asked for more than a place in the write buffer: the answer waits until that has been flushed."""
    if group <= core.flushes.flushed:
        core.send(source, reply)
    else:
        core.flushes.add(group, source, reply)


def _remember(core: Core, operation: bytes, row_key: bytes, record: bytes) -> None:
    """Another attempt at this write may reach this node, long after its client was answered by that coordinator and went on."""
    known = core.rows.operations.get(operation)
    version = records.find_operation(record, operation)
    # Of two attempts the later stands: the write was made anew because the first was lost, and what is older than the second does not have it.
    if version is not None and (known is None or (known[0] == row_key and known[3] < version[2])):
        core.rows.operations.stage(operation, row_key, version)


def merge_in(core: Core, row_key: bytes, bucket: bytes, key: bytes, role: int, record: bytes) -> Row:
    """Merge a verified record into the row of the key and stage it if that changes it. Raises the row's own storage error."""
    row = core.rows.load(row_key)
    if isinstance(row, CorruptRecord):
        # The damaged row is replaced by what its peers hold; until then it is never taken for an absent one.
        core.count("rows_corrupt")
        core.repair_wanted.append((bucket, key))
        raise row
    if isinstance(row, DynamoError):
        raise row
    if core.contradicts_actor(records.context(record), row):
        core.renew_actor()
    status = STATUS_FALLBACK if role == m.FALLBACK else STATUS_OWNED
    if row is None:
        return core.rows.stage(row_key, bucket, key, record, status, 0, 0)
    merged = records.merge(row.record, record)
    if merged == row.record and row.status == status:
        return row
    if records.duplicate_dots(merged) > records.duplicate_dots(row.record):
        core.count("dots_bound_twice")
        core.renew_actor()
    return core.rows.stage(row_key, bucket, key, merged, status, row.since_actor, row.since)


def receive_offer(core: Core, source: bytes, message: Message) -> None:
    """Say which of these rows, named by digest, this node does not durably hold as an owner: it is sent those. What is not committed yet counts
    among them."""
    _, request_id, entries, durability = message[:4]
    lacking = []
    for index, (bucket, key, digest) in enumerate(entries):
        _, row_key, route = core.place(bucket, key)
        row, held = core.rows.load_held(row_key)
        if isinstance(row, CorruptRecord):
            core.count("rows_corrupt")
            core.repair_wanted.append((bucket, key))
        holds = isinstance(row, Row) and held is None and row.digest == digest and row.status == STATUS_OWNED
        if not holds or route.standing == m.FALLBACK:
            lacking.append(index)
    reply = (m.OFFER_REPLY, request_id, 0, core.durability, tuple(lacking), core.ring_number, core.ring_hash)
    if durability > m.DURABILITY_BUFFERED == core.durability:
        reply = (*reply[:3], m.DURABILITY_SYNCED, *reply[4:])
        _acknowledge_flushed(core, source, core.rows.group_of(None), reply)
    else:
        core.send(source, reply)


def receive_read(core: Core, source: bytes, message: Message) -> None:
    """Answer a coordinator's read: the record, or its digest alone where the asker holds the same."""
    _, request_id, bucket, key, digest = message[:5]
    _, row_key, route = core.place(bucket, key)
    row, held = core.rows.load_held(row_key)
    if row is None:
        stored, record = NO_DIGEST, b""
    elif isinstance(row, Row):
        _, _, _, stored, _, record = row
    else:
        if isinstance(row, CorruptRecord):
            core.count("rows_corrupt")
            core.repair_wanted.append((bucket, key))
        core.send(source, (m.READ_REPLY, request_id, row.code, route.standing, NO_DIGEST, None, core.ring_number, core.ring_hash))
        return
    shown = None if stored == digest else record
    reply: Message = (m.READ_REPLY, request_id, 0, route.standing, stored, shown, core.ring_number, core.ring_hash)
    if route.needs:
        reply = (*reply, route.needs)
    (core.outbox if held is None else held.messages).append((source, reply))


def as_failed(core: Core, message: Message, error: DynamoError) -> Message:
    """What to send instead of an answer that rested on a commit that failed."""
    if message[0] == m.REPLICATE_REPLY:
        return _stored(core, message[1], error.code, message[3], NO_DIGEST)
    if message[0] == m.RECOVER_REPLY:
        return (m.RECOVER_REPLY, message[1], error.code, (), 0)
    if message[0] == m.OFFER_REPLY:
        return (m.OFFER_REPLY, message[1], error.code, 0, (), core.ring_number, core.ring_hash)
    assert message[0] == m.READ_REPLY, f"message type {message[0]} may not wait for a commit"
    return (m.READ_REPLY, message[1], error.code, message[3], NO_DIGEST, None, core.ring_number, core.ring_hash)


def _stored(core: Core, request_id: int, code: int, role: int, digest: bytes, durability: int | None = None) -> Message:
    given = core.durability if durability is None else durability
    return (m.REPLICATE_REPLY, request_id, code, role, given, digest, core.ring_number, core.ring_hash)
