"""Requests for many keys: one get or put each, with an outcome of its own, answered in one message."""

from __future__ import annotations

from dynamo.errors import InvalidRequest
from dynamo.model import messages as m
from dynamo.model.messages import Message, Source
from dynamo.replication.core import Core, ReplyTo
from dynamo.replication.forward import take_put
from dynamo.replication.get import coordinate_get


class Batch:
    """Collects the replies to the keys of one request, in their order."""

    __slots__ = ("_kind", "_missing", "_replies", "_request_id")

    def __init__(self, kind: int, request_id: int, count: int) -> None:
        self._kind = kind
        self._request_id = request_id
        self._replies: list[Message | None] = [None] * count
        self._missing = count

    def add(self, slot: int, reply: Message) -> Message | None:
        """Take the answer for one key; the whole reply once all are there."""
        assert self._replies[slot] is None, "a key was answered twice"
        self._replies[slot] = reply
        self._missing -= 1
        if self._missing:
            return None
        return (self._kind, self._request_id, tuple(self._replies))


def take_get_many(core: Core, source: Source, message: Message) -> None:
    """Coordinate a get for each key; each has its own outcome."""
    _, request_id, bucket, keys, r, pr, time_ms = message[:7]
    if _countable(core, source, request_id, len(keys)):
        batch = Batch(m.GET_MANY_REPLY, request_id, len(keys))
        for slot, key in enumerate(keys):
            coordinate_get(core, ReplyTo(source, slot, batch=batch), bucket, key, r, pr, time_ms)


def take_put_many(core: Core, source: Source, message: Message) -> None:
    """Coordinate, or pass on, a put for each entry; each has its own outcome, there is nothing across keys."""
    _, request_id, bucket, entries, mode, w, pw, time_ms = message[:8]
    if _countable(core, source, request_id, len(entries)):
        batch = Batch(m.PUT_MANY_REPLY, request_id, len(entries))
        for slot, (key, value, token, operation) in enumerate(entries):
            put = (m.PUT, slot, bucket, key, value, token, mode, w, pw, time_ms, operation)
            take_put(core, ReplyTo(source, slot, batch=batch), put)


def _countable(core: Core, source: Source, request_id: int, count: int) -> bool:
    limit = core.settings.keys_per_request_max
    if 1 <= count <= limit:
        return True
    core.send(source, m.error_message(request_id, InvalidRequest.code, f"between 1 and {limit} keys in one request, not {count}", False))
    return False
