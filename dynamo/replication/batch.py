"""A request for many keys: one get each, answered in one message."""

from __future__ import annotations

from dynamo.model import messages as m
from dynamo.model.messages import Message, Source
from dynamo.replication.core import Core, ReplyTo
from dynamo.replication.get import coordinate_get


class GetBatch:
    """Collects the replies to the keys of one GET_MANY, in their order."""

    __slots__ = ("_missing", "_replies", "_request_id")

    def __init__(self, request_id: int, count: int) -> None:
        self._request_id = request_id
        self._replies: list[Message | None] = [None] * count
        self._missing = count

    def add(self, slot: int, reply: Message) -> Message | None:
        """Take the answer for one key; the whole GET_MANY_REPLY once all are there."""
        assert self._replies[slot] is None, "a key was answered twice"
        self._replies[slot] = reply
        self._missing -= 1
        if self._missing:
            return None
        return (m.GET_MANY_REPLY, self._request_id, tuple(self._replies))


def take_get_many(core: Core, source: Source, message: Message) -> None:
    """Coordinate a get for each key; each has its own outcome."""
    _, request_id, bucket, keys, r, pr, time_ms = message[:7]
    if not keys or len(keys) > core.settings.keys_per_request_max:
        limit = core.settings.keys_per_request_max
        core.send(source, m.error_message(request_id, 11, f"between 1 and {limit} keys in one request, not {len(keys)}", False))
        return
    batch = GetBatch(request_id, len(keys))
    for slot, key in enumerate(keys):
        coordinate_get(core, ReplyTo(source, slot, batch=batch), bucket, key, r, pr, time_ms)
