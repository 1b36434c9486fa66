"""Documents: msgpack values that travel or are stored as one opaque `bytes` field.

The cluster's document, the answers for people (`cluster status`, `ring preflist`) and what a node keeps in its meta table are read rarely
and grow new fields often, so they are maps by name, not arrays by position, and stay out of the message shapes.
"""

from __future__ import annotations

from typing import Any

from dynamo._core import frame as kernel
from dynamo.errors import ProtocolError, ValueTooLarge
from dynamo.wire.frames import FRAME_BYTES_MAX

DOCUMENT_BYTES_MAX = FRAME_BYTES_MAX - 64 * 1024  # the status of the largest cluster, in names of the longest, has an eighth less
_ELEMENTS_MAX = 1 << 20  # of all arrays and maps; the status of the largest cluster has a tenth of that


def encode_document(value: Any) -> bytes:
    """The bytes of a value made of None, bool, int, float, str, bytes, lists or tuples, and dicts. Raises ValueTooLarge for one that no reader takes."""
    data = kernel.pack(value)
    if len(data) > DOCUMENT_BYTES_MAX:
        raise ValueTooLarge(f"a document of {len(data)} bytes; the limit is {DOCUMENT_BYTES_MAX}")
    return data


def decode_document(data: bytes) -> Any:
    """The value; arrays come back as tuples. Raises ProtocolError for bytes that are no document, say one with a key twice, or a larger one than
    any node makes."""
    if len(data) > DOCUMENT_BYTES_MAX:
        raise ProtocolError(f"a document of {len(data)} bytes; the limit is {DOCUMENT_BYTES_MAX}")
    return kernel.unpack(data, _ELEMENTS_MAX)
