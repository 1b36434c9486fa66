"""Context tokens: what a client is given by a read and gives back with a write.

    token = u8 version | u8 record kind | u64 HLC time | ranges (24 bytes each) | 8-byte MAC

The MAC (BLAKE2b under the cluster's secret) binds the ranges to one key of one cluster, so that another key's token, a forged one or one of a
foreign cluster is refused instead of silently claiming, and thereby dropping, versions its owner never saw. Clients treat it as opaque.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from hashlib import blake2b
from hmac import compare_digest
from itertools import islice

from dynamo._core import record
from dynamo.errors import InvalidContext

VERSION = 1
MAC_BYTES = 8
RANGE_BYTES = 24
RANGES_MAX = 4096
RANGES_BYTES_MAX = RANGES_MAX * RANGE_BYTES
_HEAD = struct.Struct(">BBQ")
_U64_MAX = (1 << 64) - 1


def seal(secret: bytes, full_key: bytes, kind: int, time: int, context: bytes) -> bytes:
    """The token for a context of the key. Ranges beyond the limit are left out, which can only keep siblings, never drop one; which of them can best be
    spared is for `fitted` to say."""
    body = _HEAD.pack(VERSION, kind, time) + context[:RANGES_BYTES_MAX]
    return body + _mac(secret, full_key, body)


def fitted(context: bytes, shown: bytes) -> bytes:
    """As much of the context as a token holds: first the ranges in which the versions of the record `shown` lie, for a token without them would replace
    nothing, ever; then as many others as there is room for."""
    ranges = [context[at : at + RANGE_BYTES] for at in range(0, len(context), RANGE_BYTES)]
    dots = [version[:2] for version in record.versions(shown)]
    at_dots = {at for at in (bisect_right(ranges, struct.pack(">QQQ", *dot, _U64_MAX)) - 1 for dot in dots) if at >= 0}
    needed = [at for at in sorted(at_dots) if any(record.context_contains(ranges[at], *dot) for dot in dots)][:RANGES_MAX]
    spare = (at for at in range(len(ranges)) if at not in at_dots)
    return b"".join(ranges[at] for at in sorted([*needed, *islice(spare, RANGES_MAX - len(needed))]))


def unseal(secret: bytes, full_key: bytes, kind: int, token: bytes | None) -> tuple[int, bytes]:
    """(HLC time, context) of a token; None is the context of a client that has been shown nothing.

    Raises InvalidContext unless this cluster sealed it for this very key. Empty bytes are no token: whoever sends them has lost one, and means
    to replace what it was shown, not to add a sibling.
    """
    if token is None:
        return 0, b""
    body, mac = token[:-MAC_BYTES], token[-MAC_BYTES:]
    if len(body) < _HEAD.size or len(body) > _HEAD.size + RANGES_BYTES_MAX:
        raise InvalidContext("the context is truncated or too long; use one that a read of this key returned")
    if not compare_digest(mac, _mac(secret, full_key, body)):
        raise InvalidContext("the context was not issued for this key by this cluster; read the key and use the context it returns")
    version, token_kind, time = _HEAD.unpack_from(body)
    context = body[_HEAD.size :]
    if version != VERSION or token_kind != kind:
        raise InvalidContext("the context is of another format or kind of bucket; read the key again")
    record.context_verify(context)
    return time, context


def _mac(secret: bytes, full_key: bytes, body: bytes) -> bytes:
    # The body's length separates it from the key: without it, a key could borrow bytes from a body.
    return blake2b(len(body).to_bytes(4, "big") + body + full_key, digest_size=MAC_BYTES, key=secret, person=b"dynamo token").digest()
