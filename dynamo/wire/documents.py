"""Documents: msgpack values that travel or are stored as one opaque `bytes` field.

The cluster's document, the answers for people (`cluster status`, `ring preflist`) and what a node keeps in its meta table are read rarely
and grow new fields often, so they are maps by name, not arrays by position, and stay out of the message shapes.
"""

from __future__ import annotations

from typing import Any

import msgpack

from dynamo.errors import ProtocolError

DOCUMENT_BYTES_MAX = 4 * 1024 * 1024
_ELEMENTS_MAX = 65_536


def encode_document(value: Any) -> bytes:
    """The bytes of a value made of None, bool, int, float, str, bytes, lists or tuples, and dicts."""
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def decode_document(data: bytes) -> Any:
    """The value; arrays come back as tuples. Raises ProtocolError for bytes that are no document or a larger one than any node makes."""
    if len(data) > DOCUMENT_BYTES_MAX:
        raise ProtocolError(f"a document of {len(data)} bytes; the limit is {DOCUMENT_BYTES_MAX}")
    try:
        return msgpack.unpackb(
            data,
            use_list=False,
            raw=False,
            strict_map_key=True,  # str and bytes
            max_array_len=_ELEMENTS_MAX,
            max_map_len=_ELEMENTS_MAX,
            max_ext_len=0,
        )
    except (ValueError, TypeError) as error:  # TypeError: an unhashable map key
        raise ProtocolError(f"a document that is not msgpack: {error}") from None
