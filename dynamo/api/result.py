"""What a read returns: the key's concurrent versions, the context that covers them, and one value where there is one.

Siblings are exactly the live concurrent writes, sorted by dot; deletes that stand beside them are covered by the context but not shown.
Nothing is thrown away behind the caller's back: a key with several values and no rule to merge them makes `Result.value` raise rather
than pick one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from dynamo.api.codec import Codec
from dynamo.api.context import Context, Dot
from dynamo.errors import ConflictError, CorruptRecord

_new = object.__new__


class Sibling(NamedTuple):
    """One live version. `time` is when its coordinator says it was written, in unix seconds: for people, no promise rests on it."""

    value: Any
    dot: Dot
    time: float


Resolver = Callable[[Sequence[Sibling]], Any]
"""Makes one value of several siblings. It must not depend on their order or on how often it runs: every reader resolves on its own."""


class Opener(Protocol):
    """Who makes the parts of a result out of what came of a read, `raw`, when somebody looks at them; each twice, perhaps, if two threads do."""

    def single_value(self, raw: Any, /) -> bytes | None:
        """The value, if there is one sibling."""

    def siblings_of(self, raw: Any, /) -> tuple[Sibling, ...]: ...

    def context_of(self, key: bytes, raw: Any, /) -> Context: ...


About = tuple[int, Resolver | None, str | None]  # owners answered, what makes one value of several, cursor


class Result:
    """The answer of a read; immutable. Absent or deleted: `found` is False, `siblings` and `values` are empty, `value` is None; the context is
    still there, to be given to the write that creates the key anew. Equal are those of equal key, siblings, context and owners answered."""

    __slots__ = ("_about", "_context", "_key", "_opener", "_raw", "_siblings")

    _siblings: tuple[Sibling, ...]  # unset until the opener has made them, and so is the context
    _context: Context
    _opener: Opener | None
    _raw: Any
    _about: About

    def __init__(
        self, key: bytes, siblings: tuple[Sibling, ...], context: Context, owners_answered: int, resolver: Resolver | None = None, cursor: str | None = None
    ) -> None:
        self._key = key
        self._siblings = siblings
        self._context = context
        self._opener = None
        self._raw = None
        self._about = owners_answered, resolver, cursor

    @staticmethod
    def unopened(key: bytes, opener: Opener, raw: Any, about: About) -> Result:
        """A result whose siblings and context `opener` makes out of `raw` when they are asked for."""
        self = _new(Result)
        self._key = key
        self._opener = opener
        self._raw = raw
        self._about = about
        return self

    @property
    def key(self) -> bytes:
        """The key, as bytes."""
        return self._key

    @property
    def siblings(self) -> tuple[Sibling, ...]:
        """The live versions, sorted by dot."""
        try:
            return self._siblings
        except AttributeError:
            assert self._opener is not None
            self._siblings = siblings = self._opener.siblings_of(self._raw)
            return siblings

    @property
    def context(self) -> Context:
        """Covers all siblings, and the deletes beside them; for the write that replaces them. `context.unseen_siblings`: how many more there are, of a
        key that no answer holds."""
        try:
            return self._context
        except AttributeError:
            assert self._opener is not None
            self._context = context = self._opener.context_of(self._key, self._raw)
            return context

    @property
    def owners_answered(self) -> int:
        """How many of the key's owners stand behind this answer. A "not found" with 0 means that only stand-ins were asked."""
        return self._about[0]

    @property
    def resolver(self) -> Resolver | None:
        """What makes one value of several siblings."""
        return self._about[1]

    @property
    def cursor(self) -> str | None:
        """Given to another `scan`, goes on behind this key; url-safe text. None but for the results of a scan."""
        return self._about[2]

    def __eq__(self, other: object) -> bool:
        return self._compared() == other._compared() if isinstance(other, Result) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._compared())

    def __repr__(self) -> str:
        if self._opener is _damaged:
            return f"<Result of {self.key!r}: damaged>"
        return f"Result(key={self.key!r}, siblings={self.siblings!r}, context={self.context!r}, owners_answered={self.owners_answered!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._opener is _damaged:
            return damaged_result, (self.key, self.owners_answered, self.cursor)
        return Result, (self.key, self.siblings, self.context, self.owners_answered, self.resolver, self.cursor)

    @property
    def error(self) -> CorruptRecord | None:
        """Why the key cannot be read. None but for a key that a `scan` met and whose stored row is damaged: then the properties that tell of its
        versions raise this, and `set` or `delete(blind=True)` overwrite it."""
        return damage(self._key) if self._opener is _damaged else None

    def _compared(self) -> tuple[Any, ...]:
        if self._opener is _damaged:
            return self._key, _damaged
        return self._key, self.siblings, self.context, self.owners_answered

    @property
    def found(self) -> bool:
        """Whether there is any live version."""
        if self._opener is not None and self._opener.single_value(self._raw) is not None:
            return True
        return bool(self.siblings)

    @property
    def values(self) -> tuple[Any, ...]:
        """The values of the siblings, in the order of their dots."""
        return tuple(sibling.value for sibling in self.siblings)

    @property
    def value(self) -> Any:
        """The one value; of several, what the resolver makes of them; None when not found.

        Raises ConflictError, whose `.result` is this result, for several siblings without a resolver. Merge its `values` and put the merged
        value with its `context`, or read with `resolver=`.
        """
        if self._opener is not None:
            value = self._opener.single_value(self._raw)
            if value is not None:
                return value
        siblings = self.siblings
        if len(siblings) <= 1:
            return siblings[0].value if siblings else None
        if self.resolver is None:
            raise ConflictError(f"the key {self.key!r} has {len(siblings)} values and there is no resolver", result=self)
        return self.resolver(siblings)


class _Damaged:
    """The opener of a key that cannot be read."""

    def single_value(self, raw: Any, /) -> bytes | None:
        raise damage(raw)

    def siblings_of(self, raw: Any, /) -> tuple[Sibling, ...]:
        raise damage(raw)

    def context_of(self, key: bytes, raw: Any, /) -> Context:
        raise damage(key)


_damaged = _Damaged()


def damage(key: bytes) -> CorruptRecord:
    """What to raise where a damaged row is looked at."""
    return CorruptRecord(f"the stored row of {key!r} is damaged; restore it, or overwrite it with `set`, or delete it")


def damaged_result(key: bytes, owners_answered: int, cursor: str | None) -> Result:
    """What a scan gives for a key that is there and cannot be read, so that it need not stop: see `Result.error`."""
    return Result.unopened(key, _damaged, key, (owners_answered, None, cursor))


def unix_seconds(hlc_time: int) -> float:
    """Unix seconds of a hybrid logical clock's time (unix microseconds << 12 | logical)."""
    return (hlc_time >> 12) / 1_000_000


def make_siblings(raw: Iterable[tuple[bytes, int, int, int]], codec: Codec | None) -> tuple[Sibling, ...]:
    """Siblings of the wire's (value, actor, counter, HLC time), values decoded. What the codec raises reaches the caller."""
    return tuple(Sibling(value if codec is None else codec.decode(value), Dot(actor, counter), unix_seconds(time)) for value, actor, counter, time in raw)
