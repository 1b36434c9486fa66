"""Keys and where their rows lie. A row key starts with the partition, so that one partition scans and transfers as one range.

    row key = u16 partition | bucket | 0x00 | key                                  (at most 494 bytes: the key is in it)
            | u16 partition | first 493 bytes of bucket | 0x00 | key, 128-bit hash  (always 511 bytes: the full key is in the row)

511 bytes is LMDB's limit. The lengths tell the two apart. Bucket names hold no zero byte, so the first one ends the bucket. The hash is BLAKE2b under
the cluster's secret: two keys of one row key would share a row, and whoever chooses keys could make such for any hash that is not cryptographic.
"""

from __future__ import annotations

import re
from hashlib import blake2b

from dynamo.errors import InvalidKey, KeyTooLong

KEY_BYTES_MAX = 1024
ROW_KEY_BYTES_MAX = 511
_HASH_BYTES = 16
_INLINE_BYTES_MAX = 494
HEAD_BYTES = ROW_KEY_BYTES_MAX - _HASH_BYTES  # of the row key of a long key: as far as it shows the key
_BUCKET_NAME = re.compile(rb"[A-Za-z0-9_.-]{1,64}\Z")


def check_key(key: bytes) -> None:
    """Raises InvalidKey for an empty key and KeyTooLong beyond 1,024 bytes."""
    if not key:
        raise InvalidKey("a key has at least one byte")
    if len(key) > KEY_BYTES_MAX:
        raise KeyTooLong(f"the key has {len(key)} bytes; the limit is {KEY_BYTES_MAX}")


def check_bucket(bucket: bytes) -> None:
    """Raises InvalidKey unless the name matches [A-Za-z0-9_.-]{1,64}."""
    if not _BUCKET_NAME.match(bucket):
        shown = repr(bucket if len(bucket) <= 80 else bucket[:80] + b"...")  # it may be as long as a frame, and a text four times as long
        raise InvalidKey(f"bucket name {shown} is not of the form [A-Za-z0-9_.-]{{1,64}}")


def full_key(bucket: bytes, key: bytes) -> bytes:
    """`bucket 0x00 key`: what is hashed to a position and named in digests."""
    return bucket + b"\0" + key


def row_key(partition: int, bucket: bytes, key: bytes, secret: bytes) -> bytes:
    """The key of the row in storage; at most 511 bytes. `secret`: the cluster's, up to 64 bytes."""
    full = bucket + b"\0" + key
    if len(full) + 2 <= _INLINE_BYTES_MAX:
        return partition.to_bytes(2, "big") + full
    return partition.to_bytes(2, "big") + full[: HEAD_BYTES - 2] + blake2b(full, digest_size=_HASH_BYTES, key=secret, person=b"dynamo row key").digest()


def could_be_row_key(row: bytes, partitions: int) -> bool:
    """Whether the bytes have the form of a row key in a cluster of so many partitions. What is read from a disk may be anything."""
    if len(row) > _INLINE_BYTES_MAX and len(row) != ROW_KEY_BYTES_MAX:
        return False
    bucket, zero, key = row[2:].partition(b"\0")
    return bool(zero and key and _BUCKET_NAME.match(bucket)) and int.from_bytes(row[:2], "big") < partitions


def is_hashed(row: bytes) -> bool:
    """Whether the row key holds only the beginning and the hash of a long key."""
    return len(row) == ROW_KEY_BYTES_MAX


def split_row_key(row: bytes, full: bytes = b"") -> tuple[int, bytes, bytes]:
    """(partition, bucket, key) of a row key; `full` is the full key kept in the row of a long one."""
    body = full if is_hashed(row) else row[2:]
    bucket, _, key = body.partition(b"\0")
    return int.from_bytes(row[:2], "big"), bucket, key
