"""The verbs as generators: each yields requests, is sent their replies, and returns what the caller gets. Sans-IO.

Written once for every colour of client: a shell has each request answered within the caller's time and passes the reply, or the error it
ended in, back (`run`, `run_async`). A verb that needs two requests, a blind delete or an update, thus shares one deadline
without knowing of time. Arguments are checked before the first request, so that a wrong call raises and sends nothing. Verbs for many keys
are in `many` and `scan`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from dynamo.api.codec import Codec, bucket_bytes, encode_value, key_bytes
from dynamo.api.context import Context, Dot, token_bytes
from dynamo.api.result import Resolver, Result, Sibling, make_siblings
from dynamo.api.update import DELETE, Change, changed
from dynamo.client.core import Request
from dynamo.errors import CorruptRecord, DynamoError
from dynamo.model import messages as m
from dynamo.model.messages import Message
from dynamo.wire.documents import decode_document

T = TypeVar("T")
Verb = Generator[Request, Message, T]
Key = str | bytes
Token = Context | str | bytes | None
NewOperation = Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Place:
    """A bucket as the verbs see it: its name, how values are encoded, how siblings resolve."""

    bucket: bytes
    codec: Codec | None = None
    resolver: Resolver | None = None

    @classmethod
    def named(cls, name: str | bytes, codec: Codec | None = None, resolver: Resolver | None = None) -> Place:
        """Raises InvalidKey for what is no bucket name, and TypeError for what is no name, codec or resolver at all."""
        if codec is not None and not (callable(getattr(codec, "encode", None)) and callable(getattr(codec, "decode", None))):
            raise TypeError(f"a codec is an object with encode and decode, not {codec!r}")
        check_resolver(resolver)
        return cls(bucket_bytes(name), codec, resolver)


def check_resolver(resolver: Resolver | None) -> None:
    """Raises TypeError for what cannot be called; that would otherwise come out when there are siblings, perhaps years later."""
    if resolver is not None and not callable(resolver):
        raise TypeError(f"a resolver is a function of a sequence of siblings, not {resolver!r}")


def run(verb: Verb[T], call: Callable[[Request], Message]) -> T:
    """Run a verb to its end over a `call` that returns the reply to a request or raises its error."""
    try:
        request = next(verb)
        while True:
            try:
                reply = call(request)
            except DynamoError as error:
                request = verb.throw(error)
            else:
                request = verb.send(reply)
    except StopIteration as done:
        result: T = done.value
        return result


async def run_async(verb: Verb[T], call: Callable[[Request], Awaitable[Message]]) -> T:
    """The same over a `call` to be awaited. A cancelled one ends the verb."""
    try:
        request = next(verb)
        while True:
            try:
                reply = await call(request)
            except DynamoError as error:
                request = verb.throw(error)
            else:
                request = verb.send(reply)
    except StopIteration as done:
        result: T = done.value
        return result
    finally:
        verb.close()


def get(place: Place, key: Key, r: int | None = None, pr: int | None = None, resolver: Resolver | None = None) -> Verb[Result]:
    """Read the key."""
    name = key_bytes(key)
    check_resolver(resolver)
    reply = yield _read(place, name, r, pr)
    return result_of(place, name, reply, resolver)


def write(place: Place, key: Key, value: Any, token: Token, mode: int, w: int | None, pw: int | None, operation: bytes) -> Verb[Context]:
    """Put, set or (value DELETE) delete under a context. `operation` is the write's 16-byte id, the same for every attempt."""
    data = None if value is DELETE else encode_value(value, place.codec)
    reply = yield Request(
        m.PUT,
        (place.bucket, key_bytes(key), data, token_bytes(token), mode, count_asked("w", w), count_asked("pw", pw)),
        m.PUT_REPLY,
        after=(operation,),
        writes=True,
    )
    return context_of(reply)


def delete(place: Place, key: Key, context: Token, blind: bool, w: int | None, new_operation: NewOperation) -> Verb[Context]:
    """Write a tombstone under the context, or, blind, under that of a read made now; of a key that has never been, nothing is written."""
    if (context is None) != blind:
        raise TypeError(
            "delete takes context=, from the read that showed what to delete, or blind=True, to delete whatever a read shows now; "
            f"got {'neither' if context is None else 'both'}"
        )
    count_asked("w", w)
    if not blind:
        return (yield from write(place, key, DELETE, context, m.MODE_PUT, w, None, new_operation()))
    while True:  # again where there was more than an answer holds
        try:
            reply = yield _read(place, key_bytes(key))
        except CorruptRecord:  # there is something, and nobody can say what: it is overwritten
            return (yield from write(place, key, DELETE, None, m.MODE_SET, w, None, new_operation()))
        token, siblings, tombstones = reply[5:8]
        if not siblings and not tombstones:
            return Context(token)
        written = yield from write(place, key, DELETE, Context(token), m.MODE_PUT, w, None, new_operation())
        if not m.left_out(reply):
            return written


def discard(place: Place, key: Key, new_operation: NewOperation) -> Verb[None]:
    """Delete what a read shows now. Raises KeyError, and writes nothing, when that is nothing."""
    found = False
    while True:
        try:
            reply = yield _read(place, key_bytes(key))
        except CorruptRecord:
            yield from write(place, key, DELETE, None, m.MODE_SET, None, None, new_operation())
            return
        token, siblings = reply[5:7]
        if not siblings and not found:
            raise KeyError(key)
        yield from write(place, key, DELETE, Context(token), m.MODE_PUT, None, None, new_operation())
        if not m.left_out(reply):
            return
        found = True


def update(place: Place, key: Key, change: Change, default: Any, operation: bytes) -> Verb[Context]:
    """Read, change, write under the context of the read."""
    result = yield from get(place, key)
    value = changed(result, change, default)
    return (yield from write(place, key, value, result.context, m.MODE_PUT, None, None, operation))


def cluster_status() -> Verb[dict[str, Any]]:
    """The cluster as the answering node sees it."""
    reply = yield Request(m.CLUSTER_STATUS, (), m.CLUSTER_STATUS_REPLY, timed=False)
    return dict(decode_document(reply[2]))


def preference_list(place: Place, key: Key) -> Verb[dict[str, Any]]:
    """Where the key lies: position, partition, owners and fallbacks."""
    reply = yield Request(m.PREFERENCE_LIST, (place.bucket, key_bytes(key)), m.PREFERENCE_LIST_REPLY, timed=False)
    return dict(decode_document(reply[2]))


def stats() -> Verb[dict[str, Any]]:
    """Counts of the answering node since its start, by name."""
    reply = yield Request(m.STATS, (), m.STATS_REPLY, timed=False)
    return dict(decode_document(reply[2]))


class _Replied:
    """Makes the parts of a result out of token and siblings of a GET_REPLY."""

    @staticmethod
    def single_value(raw: tuple[bytes, tuple[Any, ...]], /) -> bytes | None:
        siblings = raw[1]
        value: bytes | None = siblings[0][0] if len(siblings) == 1 else None
        return value

    @staticmethod
    def siblings_of(raw: tuple[bytes, tuple[Any, ...]], /) -> tuple[Sibling, ...]:
        return make_siblings(raw[1], None)

    @staticmethod
    def context_of(key: bytes, raw: tuple[bytes, tuple[Any, ...]], /) -> Context:
        return Context(raw[0], unseen_siblings=m.left_out((0,) * 5 + raw))


_replied = _Replied()


def result_of(place: Place, key: bytes, reply: Message, resolver: Resolver | None = None) -> Result:
    """What a GET_REPLY says of the key. Values with a codec are decoded now: what that raises belongs to the read."""
    if place.codec is None:
        return Result.unopened(key, _replied, reply[5:9], (reply[4], resolver or place.resolver, None))
    owners_answered, token, siblings = reply[4:7]
    context = Context(token, unseen_siblings=m.left_out(reply))
    return Result(key, make_siblings(siblings, place.codec), context, owners_answered, resolver or place.resolver)


def context_of(reply: Message) -> Context:
    """The new context in a PUT_REPLY."""
    token, actor, counter, unseen = reply[4:8]
    return Context(token, dot=Dot(actor, counter), unseen_siblings=unseen)


def _read(place: Place, name: bytes, r: int | None = None, pr: int | None = None) -> Request:
    return Request(m.GET, (place.bucket, name, count_asked("r", r), count_asked("pr", pr)), m.GET_REPLY)


def count_asked(name: str, value: int | None) -> int:
    """A quorum for the wire, where 0 means the bucket's own."""
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 255:
        raise ValueError(f"{name} is a number of nodes, not {value!r}; leave it out for the bucket's own setting")
    return int(value)
