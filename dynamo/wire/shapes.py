"""How the shape of a message is described and tested: a table of fields, compiled into a few set look-ups.

A field has a kind: the Python types it may have, and for some the range of an integer, the length of bytes, or a test of what is nested in it.
A message passes if the types of its known fields are one of the allowed combinations (one tuple built in C and one set look-up) and the few
bounded fields are within bounds. Fields behind the known ones are ignored, so that later versions can append some.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

from dynamo.errors import ProtocolError
from dynamo.model.messages import Message
from dynamo.wire.frames import INTEGER_MAX


@dataclass(frozen=True, slots=True)
class Kind:
    """What one field may hold. `low`..`high` bound an integer, or the length of bytes, text or a tuple."""

    name: str
    types: tuple[type, ...]
    low: int = 0
    high: int = INTEGER_MAX
    nested: Callable[[Any], None] | None = None  # raises ProtocolError

    @property
    def bounded(self) -> bool:
        return self.low > 0 or self.high < INTEGER_MAX


BYTES = Kind("bytes", (bytes,))
BYTES_OR_NIL = Kind("bytes or nil", (bytes, type(None)))
ID = Kind("16 bytes", (bytes,), 16, 16)
TEXT = Kind("text", (str,))
FLAG = Kind("bool", (bool,))
U8 = Kind("integer 0..255", (int,), 0, 255)
U32 = Kind("integer 0..2^32-1", (int,), 0, (1 << 32) - 1)
U64 = Kind("integer 0..2^64-1", (int,), 0, INTEGER_MAX)


def upto(high: int) -> Kind:
    """An integer from 0 to `high`."""
    return Kind(f"integer 0..{high}", (int,), 0, high)


def array_of(what: str, check: Callable[[Any], object], low: int = 0, high: int = INTEGER_MAX) -> Kind:
    """An array whose elements all pass `check`."""

    def each(elements: Any) -> None:
        for element in elements:
            check(element)

    return Kind(f"array of {what}", (tuple,), low, high, each)


class Shape:
    """The fields of one message type (or of one nested array), and the test for them."""

    __slots__ = ("_combinations", "_first", "_integers", "_nested", "_size", "_sized", "fields", "name")

    def __init__(self, name: str, fields: list[tuple[str, Kind]], first: int = 2) -> None:
        """`first`: where the fields begin; 2 in a message, 0 in a nested array."""
        self.name = name
        self.fields = tuple(fields)
        self._first = first
        self._size = first + len(fields)
        head: list[tuple[type, ...]] = [(int,)] * first
        self._combinations = frozenset(product(*head, *(kind.types for _, kind in fields)))
        numbered = list(enumerate(fields, first))
        self._integers = tuple((i, kind.low, kind.high) for i, (_, kind) in numbered if kind.types == (int,))
        self._sized = tuple((i, kind.low, kind.high) for i, (_, kind) in numbered if kind.types != (int,) and kind.bounded)
        self._nested = tuple((i, kind.nested) for i, (_, kind) in numbered if kind.nested is not None)

    def check(self, values: tuple[Any, ...]) -> None:
        """Raises ProtocolError, naming the first field that does not fit."""
        size = self._size
        if tuple(map(type, values if len(values) == size else values[:size])) not in self._combinations:
            self._refuse(values)
        for i, low, high in self._integers:
            if not low <= values[i] <= high:
                self._out_of_bounds(i)
        for i, low, high in self._sized:
            if not low <= len(values[i]) <= high:
                self._out_of_bounds(i)
        for i, check in self._nested:
            check(values[i])

    def check_array(self, value: Any) -> None:
        """The same for a nested value of unknown type."""
        if type(value) is not tuple:
            raise ProtocolError(f"{self.name}: not an array")
        self.check(value)

    def _out_of_bounds(self, i: int) -> None:
        name, kind = self.fields[i - self._first]
        raise ProtocolError(f"{self.name}: field {name!r} is not {kind.name}, or too long")

    def _refuse(self, values: Message) -> None:
        if len(values) < self._size:
            raise ProtocolError(f"{self.name}: {len(values)} fields of {self._size}")
        for (name, kind), value in zip(self.fields, values[self._first :], strict=False):
            if type(value) not in kind.types:
                raise ProtocolError(f"{self.name}: field {name!r} is not {kind.name}")
        raise ProtocolError(f"{self.name}: type or request id is no integer")
