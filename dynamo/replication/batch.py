"""Requests for many keys: one get or put each, with an outcome of its own, answered in one message.

All answers have to fit into one frame, and a hundred values may not. What would go beyond `ANSWER_BYTES_MAX` is left out as soon as it is known, with
a typed error in its place, and asked for again by the client: a read with fewer others, a write by the same operation id. The first answer to come
is always kept, so each request gets on by one key at least.

Gets are begun as long as what they will bring fits into an answer: a thousand large values at once would fill this node's memory, and the connections to
the owners beyond what they may hold. How much that is a coordinator mostly knows, for it reads its own row first; a key of which it has none is taken to
bring as much as the answers so far. Nor are all begun at once, for others wait meanwhile. When the answer is full, the rest is not read at all.
"""

from __future__ import annotations

from collections.abc import Callable

from dynamo.errors import InvalidRequest, ValueTooLarge
from dynamo.model import messages as m
from dynamo.model.messages import Message, Source
from dynamo.replication.core import Core, ReplyTo
from dynamo.replication.forward import take_put
from dynamo.replication.get import coordinate_get

ANSWER_BYTES_MAX = 4 << 20  # half a frame: the one answer that is kept in any case may take the other half
GETS_FIRST = 16  # of unknown size, under way before the first answer, and one more with each; of 1 MiB, as many as a connection may hold
GETS_AT_ONCE = 64  # the same for all of them: some two milliseconds of work, as much as a node's step has
ERROR_TEXT_MAX = 200  # characters
_LEFT_OUT = "left out of an answer that grew too large; ask again"


class Batch:
    """Collects the replies to the keys of one request, in their order."""

    __slots__ = ("_bytes", "_full", "_kind", "_missing", "_replies", "_request_id")

    def __init__(self, kind: int, request_id: int, count: int) -> None:
        self._kind = kind
        self._request_id = request_id
        self._replies: list[Message | None] = [None] * count
        self._missing = count
        self._bytes = 0
        self._full = False  # something was left out

    def add(self, slot: int, reply: Message) -> Message | None:
        """Take the answer for one key; the whole reply once all are there."""
        return self._take(slot, reply, _size(reply))

    def _take(self, slot: int, reply: Message, size: int) -> Message | None:
        assert self._replies[slot] is None, "a key was answered twice"
        if self._bytes and self._bytes + size > ANSWER_BYTES_MAX:
            self._full = True
            reply = m.error_message(0, ValueTooLarge.code, _LEFT_OUT, reply[0] == m.PUT_REPLY)
        elif reply[0] != m.ERROR:
            self._bytes += size
        else:  # a thousand texts of the longest would be more than the half of a frame that the first answer may leave
            reply = (*reply[:3], reply[3][:ERROR_TEXT_MAX], *reply[4:])
        self._replies[slot] = reply
        self._missing -= 1
        if self._missing:
            return None
        return (self._kind, self._request_id, tuple(self._replies))


class Gets(Batch):
    """The same for gets, which it begins: `begin(slot)` leads to one `add`, at once or later, and returns the bytes that this node has of the key."""

    __slots__ = ("_answered", "_begin", "_beginning", "_begun", "_expected", "_expected_bytes", "_unknown", "_usual")

    def __init__(self, request_id: int, count: int, begin: Callable[[Gets, int], int]) -> None:
        super().__init__(m.GET_MANY_REPLY, request_id, count)
        self._begin = begin
        self._begun = 0
        self._answered = 0  # with no error
        self._expected: dict[int, int] = {}  # bytes by slot, of those that are under way
        self._expected_bytes = 0  # Invariant: their sum
        self._unknown: set[int] = set()  # of those under way, the slots of which this node has nothing
        self._usual = ANSWER_BYTES_MAX // GETS_FIRST  # bytes that are expected of them
        self._beginning = False

    def go_on(self) -> None:
        """Begin as many as there is room for. An answer that comes at once is seen by the loop, not by a call within a call."""
        if self._beginning:
            return
        self._beginning = True
        while self._begun < len(self._replies) and self._room():
            slot, self._begun = self._begun, self._begun + 1
            size = self._begin(self, slot)
            if self._replies[slot] is None:
                if not size:
                    size = self._usual
                    self._unknown.add(slot)
                self._expected[slot] = size
                self._expected_bytes += size
        self._beginning = False

    def _room(self) -> bool:
        under_way = len(self._expected)
        if not under_way:
            return True
        if under_way >= GETS_AT_ONCE + self._answered or len(self._unknown) >= GETS_FIRST + self._answered:
            return False
        return self._expected_bytes + self._usual <= ANSWER_BYTES_MAX

    def add(self, slot: int, reply: Message) -> Message | None:
        """Take the answer for one key, and begin others; the whole reply once all are there."""
        size = _size(reply)
        whole = self._take(slot, reply, size)
        self._expected_bytes -= self._expected.pop(slot, 0)
        self._unknown.discard(slot)
        if size:  # an error says nothing of the others
            self._usual = max(size, self._usual - (self._usual >> 3))
            self._answered += 1
        if self._full:
            rest, self._begun = range(self._begun, len(self._replies)), len(self._replies)
            for slot in rest:
                whole = self._take(slot, m.error_message(0, ValueTooLarge.code, _LEFT_OUT, False), 0)
        self.go_on()
        return whole


def _size(reply: Message) -> int:
    """About how many bytes the reply takes in a frame; errors, which are small, take none."""
    if reply[0] == m.GET_REPLY:
        size = 64 + len(reply[5]) + 28 * len(reply[7])
        for sibling in reply[6]:
            size += 32 + len(sibling[0])
        return size
    return 64 + len(reply[4]) if reply[0] == m.PUT_REPLY else 0


def take_get_many(core: Core, source: Source, message: Message) -> None:
    """Coordinate a get for each key; each has its own outcome."""
    _, request_id, bucket, keys, r, pr, time_ms = message[:7]
    if _countable(core, source, request_id, len(keys)):
        deadline = core.now + time_ms / 1000.0

        def begin(batch: Gets, slot: int) -> int:
            left_ms = max(0, int((deadline - core.now) * 1000.0))
            before = core.reading_bytes
            coordinate_get(core, ReplyTo(source, slot, batch=batch), bucket, keys[slot], r, pr, left_ms)
            return core.reading_bytes - before

        Gets(request_id, len(keys), begin).go_on()


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
