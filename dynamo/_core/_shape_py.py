"""Whether the fields of a message have the types and bounds they should, in pure Python; a compiled twin `_shape_c` says the same of any values.

    fields = Fields(first, [(types, low, high, nested), ...])
    at = fields.unfit(values)

`values` is a decoded array: `first` integers (type and request id of a message; none in a nested array), then the fields, then what later versions
may have appended, which is not looked at. `types` are the exact types a field may have, out of int, bytes, None's, str, bool and tuple. `low` and
`high` bound an integer, or the length of bytes, text or an array; a field of several types has no bounds, and int stands alone. `nested(value)`
judges what is in a field, last of all, and raises. `first_unfit` does so for the messages of a piece of a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

FITS, TOO_SHORT, NO_HEAD = -1, -2, -3
UNBOUNDED = (1 << 64) - 1

Field = tuple[tuple[type, ...], int, int, Callable[[Any], None] | None]


class Fields:
    """The fields of one kind of message."""

    __slots__ = ("_bounds", "_combinations", "_fields", "_first", "_nested", "_size")

    def __init__(self, first: int, fields: Sequence[Field]) -> None:
        self._first = first
        self._fields = tuple(fields)
        self._size = first + len(fields)
        # One tuple built in C and one look-up in a set tell that all types are right.
        self._combinations = frozenset(product(*([(int,)] * first), *(types for types, *_ in fields)))
        numbered = list(enumerate(fields, first))
        self._bounds = tuple((i, types == (int,), low, high) for i, (types, low, high, _) in numbered if types == (int,) or low or high < UNBOUNDED)
        self._nested = tuple((i, nested) for i, (*_, nested) in numbered if nested is not None)

    def unfit(self, values: tuple[Any, ...]) -> int:
        """FITS, or the place in `values` of the first field that does not fit; TOO_SHORT; NO_HEAD for a type or request id that is no integer."""
        size = self._size
        if tuple(map(type, values if len(values) == size else values[:size])) not in self._combinations:
            return self._first_unfit(values)
        for i, integer, low, high in self._bounds:
            value = values[i]
            if not low <= (value if integer else 0 if value is None else len(value)) <= high:
                return self._first_unfit(values)
        for i, nested in self._nested:
            nested(values[i])
        return FITS

    def _first_unfit(self, values: tuple[Any, ...]) -> int:
        if len(values) < self._size:
            return TOO_SHORT
        if any(type(value) is not int for value in values[: self._first]):
            return NO_HEAD
        for i, (types, low, high, _) in enumerate(self._fields, self._first):
            value = values[i]
            if type(value) not in types:
                return i
            if type(value) is bool or value is None:
                continue
            if not low <= (value if type(value) is int else len(value)) <= high:
                return i
        raise AssertionError("all fields fit after all")


def first_unfit(messages: Sequence[Any], fields: Mapping[int, Fields]) -> int:
    """FITS, or the place of the first that is no message, whose type has no fields here, or that does not fit them."""
    for i, message in enumerate(messages):
        expected = fields.get(message[0]) if type(message) is tuple and message and type(message[0]) is int else None
        if expected is None or expected.unfit(message) != FITS:
            return i
    return FITS
