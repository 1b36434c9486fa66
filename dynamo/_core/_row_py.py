"""The row: what a store keeps under one row key, a local header and the record, in pure Python; a compiled twin `_row_c` returns the same.

    0   u8 format = 2 | u8 status | u64 since_actor | u64 since | 16 bytes digest | u16 length of the full key
    36  full key (`bucket 0x00 key`) where the row key holds only its hash, else nothing
        u64 xxh3-64 of row key + everything above | record

All integers big-endian. The header enters no digest. The row key is hashed along, so that a row found under another key is as damaged as one with a
flipped bit. The record brings its own checksum. Every read from disk comes through `decode`: a bad row is an error, never "not found".
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Protocol

from xxhash import xxh3_64_digest

from dynamo._core import _record_py as records
from dynamo._core import _ring_py as ring
from dynamo.errors import CorruptRecord

FORMAT = 2  # 1 had row keys whose hash was not keyed
QUARANTINE = 2  # the last of the statuses, and the only one whose row may lack a record
HASHED_ROW_KEY_BYTES = 511  # of the row keys that hold only the hash of a long key
INLINE_ROW_KEY_BYTES_MAX = 494  # of those that hold the key

_HEAD = Struct(">BBQQ16sH")
_HEAD_BYTES = _HEAD.size
_CHECKSUM_BYTES = 8
_INLINE_RECORD_AT = _HEAD_BYTES + _CHECKSUM_BYTES


class Lock(Protocol):
    """What a Reader needs of a lock."""

    def acquire(self, blocking: bool = ..., /) -> bool: ...
    def release(self) -> None: ...


Fields = tuple[int, int, int, bytes, bytes, bytes]  # status, since_actor, since, digest, full key, record


def inline_key(bucket: bytes, key: bytes, seed: int, partitions: int) -> bytes | None:
    """The row key of a key, u16 partition | bucket | 0x00 | key; None for one that is too long for that. `partitions` is a power of two up to 2^16."""
    if 3 + len(bucket) + len(key) > INLINE_ROW_KEY_BYTES_MAX:
        return None
    partition = ring.partition_of(ring.position(bucket, key, seed), partitions)
    return partition.to_bytes(2, "big") + bucket + b"\0" + key


def encode(row_key: bytes, fields: Fields) -> bytes:
    """The bytes to store under `row_key`."""
    status, since_actor, since, digest, full_key, record = fields
    # Invariant: exactly the rows under a hashed row key carry their full key; only a quarantined one may lack a record.
    assert bool(full_key) == (len(row_key) == HASHED_ROW_KEY_BYTES) and (record or status == QUARANTINE) and len(digest) == 16
    head = _HEAD.pack(FORMAT, status, since_actor, since, digest, len(full_key)) + full_key
    return head + xxh3_64_digest(row_key + head) + record


def decode(row_key: bytes, data: bytes, verify: bool) -> Fields:
    """The fields of the row stored as `data` under `row_key`. Raises CorruptRecord for a damaged header or, with `verify`, record."""
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
    if bool(full_key) != (len(row_key) == HASHED_ROW_KEY_BYTES):
        raise CorruptRecord("a row has a full key where none belongs, or lacks one")
    if verify and record:
        records.check(record)
    return status, since_actor, since, digest, full_key, record


class Look:
    """How to read the rows of one engine with nothing around it. `read`, which the engine sets, returns what is stored under a row key, None where nothing
    is; `open` says whether one may do so now, and is for whoever drives the engine to set."""

    __slots__ = ("open", "read")

    def __init__(self, read: Callable[[bytes], object]) -> None:
        self.read = read
        self.open = False


class Reader:
    """Reads records of one bucket by way of a Look, while nobody else holds the engine's lock."""

    __slots__ = ("_bucket", "_lock", "_look", "_partitions", "_seed")

    def __init__(self, look: Look, lock: Lock, seed: int, partitions: int, bucket: bytes) -> None:
        self._look = look
        self._lock = lock
        self._seed = seed
        self._partitions = partitions
        self._bucket = bucket

    def record(self, key: bytes) -> bytes | None:
        """The record of the key, b"" where it is absent. None where more has to be seen to: the lock is held or the look not open, `read` returned
        anything else, the row is damaged or has no record, the key is empty or too long for its row key. What `read` raises is raised."""
        look = self._look
        row_key = inline_key(self._bucket, key, self._seed, self._partitions) if key else None
        # A Ctrl-C between `acquire` and `try` leaves the lock taken; who calls this lets it go after any exception (`storage.owned_lock`).
        if row_key is None or not look.open or not self._lock.acquire(False):
            return None
        try:
            if not look.open:
                return None
            data = look.read(row_key)
        finally:
            self._lock.release()
        if type(data) is not bytes:
            return b"" if data is None else None
        try:
            return decode(row_key, data, True)[5] or None
        except CorruptRecord:
            return None
