"""The row: what a store keeps under one row key, a local header and the record. The header is never sent.

    0   u8 format = 2 | u8 status | u64 since_actor | u64 since | 16 bytes digest | u16 length of the full key
    36  full key (`bucket 0x00 key`) where the row key holds only its hash, else nothing
        u64 xxh3-64 of row key + everything above | record

All integers big-endian. The header enters no digest. The row key is hashed along, so that a row found under another key
is as damaged as one with a flipped bit. The record brings its own checksum. Every read from disk comes through
`decode_row`: a bad row is an error, never "not found".
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from xxhash import xxh3_64_digest

from dynamo._core import record as records
from dynamo.errors import CorruptRecord
from dynamo.model.key import is_hashed

FORMAT = 2  # 1 had row keys whose hash was not keyed
OWNED, FALLBACK, QUARANTINE = 0, 1, 2  # held as an owner | as a hint to the owners | until peers have repaired it

_HEAD = Struct(">BBQQ16sH")
_HEAD_BYTES = _HEAD.size
_CHECKSUM_BYTES = 8
_INLINE_RECORD_AT = _HEAD_BYTES + _CHECKSUM_BYTES


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


def encode_row(row_key: bytes, row: Row) -> bytes:
    """The bytes to store under `row_key`."""
    status, since_actor, since, digest, full_key, record = row
    # Invariant: exactly the rows under a hashed row key carry their full key; only a quarantined one may lack a record.
    assert bool(full_key) == is_hashed(row_key) and (record or status == QUARANTINE) and len(digest) == 16
    head = _HEAD.pack(FORMAT, status, since_actor, since, digest, len(full_key)) + full_key
    return head + xxh3_64_digest(row_key + head) + record


def decode_row(row_key: bytes, data: bytes, verify: bool = True) -> Row:
    """The row stored as `data` under `row_key`. Raises CorruptRecord for a damaged header or, with `verify`, record."""
    if len(data) < _INLINE_RECORD_AT:
        raise CorruptRecord(f"a row of {len(data)} bytes is too short")
    form, status, since_actor, since, digest, full_length = _HEAD.unpack_from(data)
    head_end = _HEAD_BYTES + full_length
    record_at = head_end + _CHECKSUM_BYTES
    # Invariant: no field is believed before the checksum. A length past the end leaves less than 8 bytes to compare.
    if xxh3_64_digest(row_key + data[:head_end]) != data[head_end:record_at]:
        raise CorruptRecord("the header of a row does not match its checksum")
    if form != FORMAT or status > QUARANTINE:
        raise CorruptRecord(f"a row of format {form}, status {status} is not understood")
    full_key = data[_HEAD_BYTES:head_end] if full_length else b""
    record = data[record_at:]
    if not record and status != QUARANTINE:
        raise CorruptRecord("a row has lost its record")
    if bool(full_key) != is_hashed(row_key):
        raise CorruptRecord("a row has a full key where none belongs, or lacks one")
    if verify and record:
        records.check(record)
    return Row(status, since_actor, since, digest, full_key, record)
