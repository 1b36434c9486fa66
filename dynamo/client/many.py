"""The verbs for many keys. Sans-IO, like `verbs`.

They go out in parts, one after the other, bounded in keys and in bytes, and each key has an outcome of its own: nothing holds across keys. A node
leaves out answers that do not fit beside the others in one frame; they are asked for again in parts as large as what did fit, a write by its own
operation id, which makes asking twice harmless. Keys that failed for a reason another node may not have are asked of the other nodes, as a
request for one key would be.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from typing import Any, Generic, NamedTuple, TypeVar

from dynamo.api.codec import encode_value, key_bytes, text_bytes
from dynamo.api.context import Context, token_bytes
from dynamo.api.result import Result
from dynamo.api.update import DELETE
from dynamo.client.core import ELSEWHERE, Request
from dynamo.client.verbs import Key, NewOperation, Place, Token, Verb, context_of, result_of
from dynamo.errors import DynamoError, InvalidKey, ProtocolError, ValueTooLarge, from_wire
from dynamo.model import messages as m
from dynamo.model.messages import Message

T = TypeVar("T")
# A mapping is invariant in its keys: without the union, one whose keys are all text would be no mapping of keys.
Values = Mapping[str, Any] | Mapping[bytes, Any] | Mapping[Key, Any]
Tokens = Mapping[str, Token] | Mapping[bytes, Token] | Mapping[Key, Token]
KEYS_PER_REQUEST = 128  # one slow key should not hold up a thousand
REQUEST_BYTES = 4 << 20  # half a frame; a single entry may be larger
_ENTRY_BYTES = 40  # of an entry beside its key, value and context


class Item(NamedTuple):
    """A key, what stands for it in the request, and about how many bytes that takes."""

    key: bytes
    entry: Any
    size: int


def get_many(place: Place, keys: Iterable[Key]) -> Verb[dict[bytes, Result | DynamoError]]:
    """Read many keys. An error concerns its key alone and stands in its place, that of a key which is none included; so do the keys of a request that
    failed as a whole."""
    if isinstance(keys, str | bytes):
        raise TypeError("get_many takes several keys; for one there is get")
    items: dict[bytes, Item] = {}
    refused: dict[bytes, DynamoError] = {}
    order: dict[bytes, None] = {}
    for key in keys:
        name = _name(key)
        order[name] = None
        try:
            items[name] = Item(name, key_bytes(key), len(name))
        except InvalidKey as error:
            refused[name] = error

    def ask(entries: tuple[Any, ...], elsewhere: bool) -> Request:
        return Request(m.GET_MANY, (place.bucket, entries, 0, 0), m.GET_MANY_REPLY, elsewhere=elsewhere)

    found = yield from _Many(list(items.values()), ask, lambda key, reply: result_of(place, key, reply)).run()
    return {name: found[name] if name in found else refused[name] for name in order}


def put_many(place: Place, mapping: Values, contexts: Tokens | None, mode: int, new_operation: NewOperation) -> Verb[dict[bytes, Context | DynamoError]]:
    """Put or set many keys, each under its own context. Raises TypeError for what is no mapping, ValueError for a key that is there twice and for a
    context without a value, InvalidContext for an empty context; what else is wrong with one key stands in its place."""
    for what, given in (("the values", mapping), ("the contexts", {} if contexts is None else contexts)):
        if not isinstance(given, Mapping):
            raise TypeError(f"{what} of many keys are a mapping by key, such as a dict, not {type(given).__name__}")
    tokens = {_name(key): token for key, token in (contexts or {}).items()}
    items: dict[bytes, Item] = {}
    refused: dict[bytes, DynamoError] = {}
    for key, value in mapping.items():
        name = _name(key)
        if name in items or name in refused:
            raise ValueError(f"the key {name!r} is given twice, as text and as bytes")
        context = tokens.pop(name, None)
        if context is not None and not (context.token if isinstance(context, Context) else context):
            token_bytes(context)  # raises: whoever lost one would add siblings everywhere
        try:
            data, token = None if value is DELETE else encode_value(value, place.codec), token_bytes(context)
            entry = key_bytes(key), data, token, new_operation()
        except DynamoError as error:  # of this key, value or context alone: the others go on
            refused[name] = error
        else:
            items[name] = Item(name, entry, len(name) + len(data or b"") + len(token or b"") + _ENTRY_BYTES)
    if tokens:
        raise ValueError(f"contexts without a value: {', '.join(map(repr, tokens))}")

    def ask(entries: tuple[Any, ...], elsewhere: bool) -> Request:
        return Request(m.PUT_MANY, (place.bucket, entries, mode, 0, 0), m.PUT_MANY_REPLY, writes=True, elsewhere=elsewhere)

    done = yield from _Many(list(items.values()), ask, lambda _, reply: context_of(reply)).run()
    return {name: done[name] if name in done else refused[name] for name in map(_name, mapping)}


def _name(key: Key) -> bytes:
    """Under what the outcome of a key stands, also of one that is none. Raises TypeError."""
    return key.encode("utf-8", "surrogatepass") if isinstance(key, str) else text_bytes(key, "key")


class _Many(Generic[T]):
    """The parts of one call, and the outcome of each key.

    # Invariant: a key that may have been applied in any attempt never ends in an error that denies it (P10).
    """

    def __init__(self, items: list[Item], ask: Callable[[tuple[Any, ...], bool], Request], take: Callable[[bytes, Message], T]) -> None:
        """`ask(entries, elsewhere)` makes a request, `take(key, reply)` an outcome of a reply that is no ERROR."""
        self._items = items
        self._ask = ask
        self._take = take
        self._waiting = deque(items)
        self._step = KEYS_PER_REQUEST
        self._done: dict[bytes, T | DynamoError] = {}
        self._applied: set[bytes] = set()

    def run(self) -> Verb[dict[bytes, T | DynamoError]]:
        """All outcomes, in the order of the items."""
        while self._waiting:
            part = self._next_part()
            try:
                failed = yield from self._exchange(part, elsewhere=False)
            except DynamoError as error:
                for item in part:
                    self._settle(item.key, error)
                continue
            while failed:
                try:
                    failed = yield from self._exchange(failed, elsewhere=True)
                except DynamoError as error:  # what the first nodes said of each key tells more
                    self._note_applied(failed, error)
                    break
        return {item.key: self._done[item.key] for item in self._items}

    def _next_part(self) -> list[Item]:
        part = [self._waiting.popleft()]
        size = part[0].size
        while self._waiting and len(part) < self._step and size + self._waiting[0].size <= REQUEST_BYTES:
            part.append(self._waiting.popleft())
            size += part[-1].size
        return part

    def _exchange(self, part: list[Item], *, elsewhere: bool) -> Verb[list[Item]]:
        """Ask for a part and take its answers; returns the items that another node should be asked for."""
        request = self._ask(tuple(item.entry for item in part), elsewhere)
        replies = (yield request)[2]
        if len(replies) != len(part):
            raise ProtocolError(f"{len(replies)} replies to a request for {len(part)} keys", maybe_applied=request.writes)
        failed, left_out = [], []
        for item, reply in zip(part, replies, strict=True):
            if reply[0] != m.ERROR:
                self._done[item.key] = self._take(item.key, reply)
                continue
            error = from_wire(*reply[2:7])
            self._settle(item.key, error)
            if len(part) > 1 and isinstance(error, ValueTooLarge) and error.maybe_applied == request.writes:
                left_out.append(item)
            elif isinstance(error, ELSEWHERE):
                failed.append(item)
        if left_out:
            self._waiting.extendleft(reversed(left_out))
            self._step = max(1, len(part) - len(left_out))
        return failed

    def _settle(self, key: bytes, error: DynamoError) -> None:
        if error.maybe_applied:
            self._applied.add(key)
        elif key in self._applied:
            error = copy(error)
            error.maybe_applied = True
        self._done[key] = error

    def _note_applied(self, items: list[Item], error: DynamoError) -> None:
        for item in items:
            earlier = self._done[item.key]
            assert isinstance(earlier, DynamoError)
            earlier.maybe_applied |= error.maybe_applied
