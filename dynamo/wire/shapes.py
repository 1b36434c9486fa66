"""How the shape of a message is described and tested: a table of fields, which the kernel `shape` holds a message against.

A field has a kind: the Python types it may have, and for some the range of an integer, the length of bytes, or a test of what is nested in it.
Fields behind the known ones are ignored, so that later versions can append some.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from dynamo._core import shape as kernel
from dynamo.errors import ProtocolError
from dynamo.wire.frames import INTEGER_MAX


@dataclass(frozen=True, slots=True)
class Kind:
    """What one field may hold. `low`..`high` bound an integer, or the length of bytes, text or a tuple."""

    name: str
    types: tuple[type, ...]
    low: int = 0
    high: int = INTEGER_MAX
    nested: Callable[[Any], None] | None = None  # raises ProtocolError


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

    __slots__ = ("_first", "expected", "fields", "name")

    def __init__(self, name: str, fields: list[tuple[str, Kind]], first: int = 2) -> None:
        """`first`: where the fields begin; 2 in a message, 0 in a nested array."""
        self.name = name
        self.fields = tuple(fields)
        self._first = first
        self.expected = kernel.Fields(first, [(kind.types, kind.low, kind.high, kind.nested) for _, kind in fields])

    def check(self, values: tuple[Any, ...]) -> None:
        """Raises ProtocolError, naming the first field that does not fit."""
        at = self.expected.unfit(values)
        if at != kernel.FITS:
            self._refuse(at, values)

    def check_array(self, value: Any) -> None:
        """The same for a nested value of unknown type."""
        if type(value) is not tuple:
            raise ProtocolError(f"{self.name}: not an array")
        at = self.expected.unfit(value)
        if at != kernel.FITS:
            self._refuse(at, value)

    def _refuse(self, at: int, values: tuple[Any, ...]) -> NoReturn:
        """`at`: what the kernel said of the values."""
        if at == kernel.TOO_SHORT:
            raise ProtocolError(f"{self.name}: {len(values)} fields of {self._first + len(self.fields)}")
        if at == kernel.NO_HEAD:
            raise ProtocolError(f"{self.name}: type or request id is no integer")
        name, kind = self.fields[at - self._first]
        too_long = ", or too long" if type(values[at]) in kind.types else ""
        raise ProtocolError(f"{self.name}: field {name!r} is not {kind.name}{too_long}")
