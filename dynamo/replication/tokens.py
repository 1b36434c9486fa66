"""Context tokens: what a client is given by a read and gives back with a write.

    token = u8 version | u8 record kind | u64 HLC time | ranges (24 bytes each) | 8-byte MAC

The MAC (BLAKE2b under the cluster's secret) binds the ranges to one key of one cluster, so that another key's token, a forged one or one of a
foreign cluster is refused instead of silently claiming, and thereby dropping, versions its owner never saw. Clients treat it as opaque.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from hmac import compare_digest

from dynamo._core import record
from dynamo.errors import InvalidContext

VERSION = 1
MAC_BYTES = 8
RANGE_BYTES = 24
RANGES_MAX = 4096
_HEAD = struct.Struct(">BBQ")


def seal(secret: bytes, full_key: bytes, kind: int, time: int, context: bytes) -> bytes:
    """The token for a context of the key. Ranges beyond the limit are left out, which can only keep siblings, never drop one."""
    body = _HEAD.pack(VERSION, kind, time) + context[: RANGES_MAX * RANGE_BYTES]
    return body + _mac(secret, full_key, body)


def unseal(secret: bytes, full_key: bytes, kind: int, token: bytes | None) -> tuple[int, bytes]:
    """(HLC time, context) of a token; None is the context of a client that has been shown nothing.

    Raises InvalidContext unless this cluster sealed it for this very key. Empty bytes are no token: whoever sends them has lost one, and means
    to replace what it was shown, not to add a sibling.
    """
    if token is None:
        return 0, b""
    body, mac = token[:-MAC_BYTES], token[-MAC_BYTES:]
    if len(body) < _HEAD.size or len(body) > _HEAD.size + RANGES_MAX * RANGE_BYTES:
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
