"""What a read returns: the key's concurrent versions, the context that covers them, and one value where there is one.

Siblings are exactly the live concurrent writes, sorted by dot; deletes that stand beside them are covered by the context but not shown.
Nothing is thrown away behind the caller's back: a key with several values and no rule to merge them makes `Result.value` raise rather
than pick one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dynamo.api.codec import Codec
from dynamo.api.context import Context, Dot
from dynamo.errors import ConflictError


class Sibling(NamedTuple):
    """One live version. `time` is when its coordinator says it was written, in unix seconds: for people, no promise rests on it."""

    value: Any
    dot: Dot
    time: float


Resolver = Callable[[Sequence[Sibling]], Any]
"""Makes one value of several siblings. It must not depend on their order or on how often it runs: every reader resolves on its own."""


@dataclass(frozen=True, slots=True)
class Result:
    """The answer of a read. Absent or deleted: `found` is False, `siblings` and `values` are empty, `value` is None; the context is
    still there, to be given to the write that creates the key anew."""

    key: bytes
    siblings: tuple[Sibling, ...]
    context: Context
    owners_answered: int
    """How many of the key's owners stand behind this answer. A "not found" with 0 means that only stand-ins were asked."""
    resolver: Resolver | None = field(default=None, repr=False, compare=False)
    cursor: str | None = field(default=None, repr=False, compare=False)
    """Given to another `scan`, goes on behind this key; url-safe text. None but for the results of a scan."""

    @property
    def found(self) -> bool:
        """Whether there is any live version."""
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
        if len(self.siblings) <= 1:
            return self.siblings[0].value if self.siblings else None
        if self.resolver is None:
            raise ConflictError(f"the key {self.key!r} has {len(self.siblings)} values and there is no resolver", result=self)
        return self.resolver(self.siblings)


def unix_seconds(hlc_time: int) -> float:
    """Unix seconds of a hybrid logical clock's time (unix microseconds << 12 | logical)."""
    return (hlc_time >> 12) / 1_000_000


def make_siblings(raw: Iterable[tuple[bytes, int, int, int]], codec: Codec | None) -> tuple[Sibling, ...]:
    """Siblings of the wire's (value, actor, counter, HLC time), values decoded. What the codec raises reaches the caller."""
    return tuple(Sibling(value if codec is None else codec.decode(value), Dot(actor, counter), unix_seconds(time)) for value, actor, counter, time in raw)
