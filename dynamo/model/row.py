"""The row as a value. Its bytes, and why they are as they are, are the kernel's (`_core/_row_py.py`)."""

from __future__ import annotations

from typing import NamedTuple

from dynamo._core import row as kernel

FORMAT = kernel.FORMAT
OWNED, FALLBACK, QUARANTINE = 0, 1, 2  # held as an owner | as a hint to the owners | until peers have repaired it


class Row(NamedTuple):
    """One decoded row. `since`: the first counter minted on it under `since_actor` (0, 0: none). `digest`: of key and
    record. `full_key`: b"" where the row key holds the whole key.
    """

    status: int
    since_actor: int
    since: int
    digest: bytes
    full_key: bytes
    record: bytes


_made = tuple.__new__

encode_row = kernel.encode
"""(row key, Row) -> the bytes to store under it."""


def decode_row(row_key: bytes, data: bytes, verify: bool = True) -> Row:
    """The row stored as `data` under `row_key`. Raises CorruptRecord for a damaged header or, with `verify`, record."""
    return _made(Row, kernel.decode(row_key, data, verify))  # what Row._make does, without a call in Python
