"""What clients do and are shown, written down as a history for the checkers: a recorder, and a client of real clusters that has one.

    history = History()
    with RecordingClient(cluster.addresses, history, "c1") as client:
        client.update("cart", merge)               # any verb, from one thread a client; the history may be shared
    violations = judge(history, directories)       # of the stopped nodes: `dynamo.testing.stores`

A history needs to know from a value which write it came from. Clients cannot be told by dots, which a write whose acknowledgement was lost never
learns of; so every value begins with the id of its operation. `RecordingClient` puts it there and takes it off again, which the caller does not
see. The keys must therefore be written to by recording clients alone. Scans are neither recorded nor stripped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from time import monotonic

from dynamo.client.blocking import Client
from dynamo.client.core import Request, RetryPolicy
from dynamo.errors import DynamoError, from_wire
from dynamo.model import messages as m
from dynamo.model.messages import Message
from dynamo.testing.history import ACKNOWLEDGED, REFUSED, UNKNOWN, History, Read, Version, Write

OPERATION_BYTES = 16  # every value begins with the id of the operation that wrote it
_TOKENS_MAX = 4096

Required = Callable[[bytes, int], int]  # (bucket, W asked for; 0: the bucket's own) -> W


def key_name(key: bytes) -> str:
    """A key as histories have it."""
    return key.decode("utf-8", "surrogateescape")


def key_bytes(name: str) -> bytes:
    """The inverse of `key_name`."""
    return name.encode("utf-8", "surrogateescape")


class Recorder:
    """Writes down one client's requests and what came of them. Which writes were refused, acknowledged or left in doubt is what the product's own
    retry core says; what was shown is noted beside every token that is given."""

    def __init__(self, history: History, client: str, required: Required, now: Callable[[], float]) -> None:
        self._history = history
        self._client = client
        self._required = required
        self._now = now
        self._shown: dict[tuple[bytes, bytes, bytes], int] = {}  # (bucket, key, token) -> number of the context

    def begin(self, request: Request) -> list[Write]:
        """A request is about to be sent: its writes, to be handed back with what comes of it."""
        if request.kind == m.PUT:
            bucket, key, value, token, mode, w, _ = request.fields
            return [self._begin(bucket, key, value, token, mode, w, request.after[0])]
        if request.kind == m.PUT_MANY:
            bucket, entries, mode, w, _ = request.fields
            return [self._begin(bucket, key, value, token, mode, w, operation) for key, value, token, operation in entries]
        return []

    def failed(self, writes: list[Write], error: DynamoError, attempts: int) -> None:
        """The request ended in an error, after all its attempts."""
        for write in writes:
            self._end(write, UNKNOWN if error.maybe_applied else REFUSED, attempts)

    def answered(self, request: Request, writes: list[Write], reply: Message, attempts: int) -> int:
        """The request has its reply. Returns how many keys it read."""
        if request.kind == m.PUT:
            self._acknowledged(writes[0], request.fields[0], request.fields[1], reply, attempts)
        elif request.kind == m.PUT_MANY:
            for write, entry, answer in zip(writes, request.fields[1], reply[2], strict=True):
                if answer[0] == m.PUT_REPLY:
                    self._acknowledged(write, request.fields[0], entry[0], answer, attempts)
                else:  # over several attempts, and of these only the last one says so
                    refused = attempts == 1 and not from_wire(*answer[2:7]).maybe_applied
                    self._end(write, REFUSED if refused else UNKNOWN, attempts)
        elif request.kind == m.GET:
            return self._read(request.fields[0], request.fields[1], reply)
        elif request.kind == m.GET_MANY:
            return sum(self._read(request.fields[0], key, answer) for key, answer in zip(request.fields[1], reply[2], strict=True))
        return 0

    def _begin(self, bucket: bytes, key: bytes, value: bytes | None, token: bytes | None, mode: int, w: int, operation: bytes) -> Write:
        # Invariant: a value tells which write it came from.
        assert value is None or value.startswith(operation), "values begin with their operation id"
        earlier = self._history.writes.get(operation.hex())
        if earlier is not None:  # a key of many, asked for again by itself
            return earlier
        context = self._shown.get((bucket, key, token), 0) if token else 0
        return self._history.begin(
            Write(operation.hex(), self._client, bucket.decode(), key_name(key), context, value is None, mode == m.MODE_SET,
                  self._required(bucket, w), self._now(), attempts=0)
        )  # fmt: skip

    def _end(self, write: Write, outcome: str, attempts: int) -> None:
        if write.attempts and outcome == REFUSED and write.outcome != REFUSED:
            outcome = UNKNOWN  # asked for again and refused then, but in doubt since the first time
        write.outcome, write.ended, write.attempts = outcome, self._now(), write.attempts + attempts

    def _acknowledged(self, write: Write, bucket: bytes, key: bytes, reply: Message, attempts: int) -> None:
        self._end(write, ACKNOWLEDGED, attempts)
        write.dot = reply[5], reply[6]
        write.gives = self._give(bucket, key, reply[4])

    def _read(self, bucket: bytes, key: bytes, reply: Message) -> int:
        if reply[0] != m.GET_REPLY:  # one of many, which failed
            return 0
        versions = [Version((actor, counter), value[:OPERATION_BYTES].hex(), time) for value, actor, counter, time in reply[6]]
        versions += [Version((actor, counter), None, time, True) for actor, counter, time in reply[7]]
        self._history.add(Read(self._client, bucket.decode(), key_name(key), self._give(bucket, key, reply[5]), versions, self._now()))
        return 1

    def _give(self, bucket: bytes, key: bytes, token: bytes) -> int:
        number = self._history.new_context()
        if len(self._shown) >= _TOKENS_MAX:
            for old in list(self._shown)[: _TOKENS_MAX // 2]:
                del self._shown[old]
        self._shown[bucket, key, token] = number
        return number


class RecordingClient(Client):
    """A blocking client that records. One thread a client; all of them may share the history. `required`: the buckets' W, for writes without one."""

    def __init__(
        self, addresses: str | Iterable[str], history: History, name: str, *, required: int = 2, timeout: float = 5.0, retry: RetryPolicy | None = None
    ) -> None:
        super().__init__(addresses, timeout=timeout, retry=retry)
        self._recorder = Recorder(history, name, lambda bucket, w: w or required, monotonic)

    def _call(self, request: Request, deadline: float, asked: set[str]) -> Message:
        counted = _Counted(**{slot.name: getattr(request, slot.name) for slot in fields(request)})
        counted = _marked(counted)
        writes = self._recorder.begin(counted)
        try:
            reply = super()._call(counted, deadline, asked)
        except DynamoError as error:
            self._recorder.failed(writes, error, max(1, len(counted.attempts)))
            raise
        self._recorder.answered(counted, writes, reply, len(counted.attempts))
        return _unmarked(reply)


@dataclass(frozen=True, slots=True)
class _Counted(Request):
    """A request that counts the attempts at it of which a byte may have left."""

    attempts: list[int] = field(default_factory=list)  # their request ids

    def __post_init__(self) -> None:
        """Its original was checked."""

    def message(self, request_id: int, time_ms: int) -> Message:
        self.attempts.append(request_id)
        return Request.message(self, request_id, time_ms)


def _marked(request: _Counted) -> _Counted:
    """The request with operation ids in front of its values."""
    if request.kind == m.PUT:
        bucket, key, value, *others = request.fields
        return replace(request, fields=(bucket, key, value if value is None else request.after[0] + value, *others))
    if request.kind == m.PUT_MANY:
        bucket, entries, *others = request.fields
        marked = tuple((key, value if value is None else operation + value, token, operation) for key, value, token, operation in entries)
        return replace(request, fields=(bucket, marked, *others))
    return request


def _unmarked(reply: Message) -> Message:
    """The reply without them."""
    if reply[0] == m.GET_REPLY:
        siblings = tuple((value[OPERATION_BYTES:], *others) for value, *others in reply[6])
        return (*reply[:6], siblings, *reply[7:])
    if reply[0] == m.GET_MANY_REPLY:
        return (*reply[:2], tuple(_unmarked(answer) for answer in reply[2]), *reply[3:])
    return reply
