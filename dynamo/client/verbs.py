"""The verbs as generators: each yields requests, is sent their replies, and returns what the caller gets. Sans-IO.

Written once for every colour of client: a shell runs `request = next(verb)`, has it answered within the caller's time, and goes on with
`verb.send(reply)` (or `verb.throw(error)`) until StopIteration brings the result. A verb that needs two requests, a blind delete or an
update, thus shares one deadline without knowing of time. Arguments are checked before the first request, so that a wrong call raises
and sends nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from dynamo.api.codec import Codec, bucket_bytes, encode_value, key_bytes
from dynamo.api.context import Context, Dot, token_bytes
from dynamo.api.result import Resolver, Result, make_siblings
from dynamo.api.update import DELETE, Change, changed
from dynamo.client.core import Request
from dynamo.errors import DynamoError, ProtocolError, from_wire
from dynamo.model import messages as m
from dynamo.model.messages import Message
from dynamo.wire.documents import decode_document

T = TypeVar("T")
Verb = Generator[Request, Message, T]
Key = str | bytes
Token = Context | str | bytes | None
NewOperation = Callable[[], bytes]

KEYS_PER_REQUEST = 128  # of get_many: a reply must fit into a frame, and one slow key should not hold up a thousand


@dataclass(frozen=True, slots=True)
class Place:
    """A bucket as the verbs see it: its name, how values are encoded, how siblings resolve."""

    bucket: bytes
    codec: Codec | None = None
    resolver: Resolver | None = None

    @classmethod
    def named(cls, name: str | bytes, codec: Codec | None = None, resolver: Resolver | None = None) -> Place:
        """Raises TypeError or InvalidKey for what is no bucket name."""
        return cls(bucket_bytes(name), codec, resolver)


def get(place: Place, key: Key, r: int | None, pr: int | None, resolver: Resolver | None) -> Verb[Result]:
    """Read the key."""
    name = key_bytes(key)
    reply = yield Request(m.GET, (place.bucket, name, _count("r", r), _count("pr", pr)), m.GET_REPLY)
    return _result(place, name, reply, resolver)


def write(place: Place, key: Key, value: Any, token: Token, mode: int, w: int | None, pw: int | None, operation: bytes) -> Verb[Context]:
    """Put, set or (value DELETE) delete under a context. `operation` is the write's 16-byte id, the same for every attempt."""
    data = None if value is DELETE else encode_value(value, place.codec)
    reply = yield Request(
        m.PUT,
        (place.bucket, key_bytes(key), data, token_bytes(token), mode, _count("w", w), _count("pw", pw)),
        m.PUT_REPLY,
        after=(operation,),
        writes=True,
    )
    actor, counter, unseen = reply[5:8]
    return Context(reply[4], dot=Dot(actor, counter), unseen_siblings=unseen)


def delete(place: Place, key: Key, context: Token, blind: bool, w: int | None, operation: bytes) -> Verb[Context]:
    """Write a tombstone under the context, or, blind, under that of a read made now."""
    if (context is None) != blind:
        raise TypeError(
            "delete takes context=, from the read that showed what to delete, or blind=True, to delete whatever a read shows now; "
            f"got {'neither' if context is None else 'both'}"
        )
    if blind:
        context = (yield from get(place, key, None, None, None)).context
    return (yield from write(place, key, DELETE, context, m.MODE_PUT, w, None, operation))


def update(place: Place, key: Key, change: Change, default: Any, operation: bytes) -> Verb[Context]:
    """Read, change, write under the context of the read."""
    result = yield from get(place, key, None, None, None)
    value = changed(result, change, default)
    return (yield from write(place, key, value, result.context, m.MODE_PUT, None, None, operation))


def get_many(place: Place, keys: Iterable[Key]) -> Verb[dict[bytes, Result | DynamoError]]:
    """Read many keys. An error concerns its key alone and stands in its place; so do the keys of a request that failed as a whole."""
    if isinstance(keys, str | bytes):
        raise TypeError("get_many takes several keys; for one there is get")
    names = list(dict.fromkeys(key_bytes(key) for key in keys))
    found: dict[bytes, Result | DynamoError] = {}
    for start in range(0, len(names), KEYS_PER_REQUEST):
        part = tuple(names[start : start + KEYS_PER_REQUEST])
        try:
            reply = yield Request(m.GET_MANY, (place.bucket, part, 0, 0), m.GET_MANY_REPLY)
        except DynamoError as error:
            found |= dict.fromkeys(part, error)
            continue
        if len(reply[2]) != len(part):
            raise ProtocolError(f"{len(reply[2])} replies to a request for {len(part)} keys")
        for name, answer in zip(part, reply[2], strict=True):
            found[name] = from_wire(*answer[2:7]) if answer[0] == m.ERROR else _result(place, name, answer, None)
    return found


def cluster_status() -> Verb[dict[str, Any]]:
    """The cluster as the answering node sees it."""
    reply = yield Request(m.CLUSTER_STATUS, (), m.CLUSTER_STATUS_REPLY, timed=False)
    return dict(decode_document(reply[2]))


def preference_list(place: Place, key: Key) -> Verb[dict[str, Any]]:
    """Where the key lies: position, partition, owners and fallbacks."""
    reply = yield Request(m.PREFERENCE_LIST, (place.bucket, key_bytes(key)), m.PREFERENCE_LIST_REPLY, timed=False)
    return dict(decode_document(reply[2]))


def _result(place: Place, key: bytes, reply: Message, resolver: Resolver | None) -> Result:
    owners_answered, token, siblings = reply[4:7]
    return Result(key, make_siblings(siblings, place.codec), Context(token), owners_answered, resolver or place.resolver)


def _count(name: str, value: int | None) -> int:
    """A quorum for the wire, where 0 means the bucket's own."""
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 255:
        raise ValueError(f"{name} is a number of nodes, not {value!r}; leave it out for the bucket's own setting")
    return value
