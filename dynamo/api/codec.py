"""From a program's values and keys to bytes and back.

The store keeps opaque bytes. A bucket may be given a codec, any object with `encode` and `decode`, and then takes and returns the
program's own values. Without one a value must be bytes already: guessing an encoding for text would make the guess part of the stored
data.
"""

from __future__ import annotations

from typing import Any, Protocol

from dynamo.errors import InvalidKey
from dynamo.model.key import check_bucket, check_key


class Codec(Protocol):
    """Turns values into bytes and back. `decode(encode(value))` must equal `value`; both may raise whatever fits, it reaches the caller."""

    def encode(self, value: Any, /) -> bytes: ...
    def decode(self, data: bytes, /) -> Any: ...


def encode_value(value: Any, codec: Codec | None) -> bytes:
    """The bytes to store for a value. Raises TypeError for what is neither bytes-like nor handled by a codec."""
    if codec is not None:
        value = codec.encode(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if codec is not None:
        raise TypeError(f"the codec's encode returned {type(value).__name__}, not bytes")
    raise TypeError(
        f"a value is bytes, not {type(value).__name__}; encode it, or open the bucket with a codec: bucket(name, codec=...) "
        "takes any object with encode and decode"
    )


def key_bytes(key: str | bytes) -> bytes:
    """The key as stored: str as UTF-8, bytes as they are. Raises TypeError, InvalidKey (empty) or KeyTooLong."""
    data = text_bytes(key, "key")
    check_key(data)
    return data


def bucket_bytes(name: str | bytes) -> bytes:
    """The bucket name as sent. Raises TypeError or InvalidKey."""
    data = text_bytes(name, "bucket name")
    check_bucket(data)
    return data


def text_bytes(text: str | bytes, what: str) -> bytes:
    """str as UTF-8, bytes as they are. Raises TypeError, and InvalidKey for a str with lone surrogates, which is no text."""
    if isinstance(text, str):
        try:
            return text.encode("utf-8")
        except UnicodeEncodeError:
            raise InvalidKey(f"the {what} {text!r} is no text that UTF-8 can hold; give its bytes, as os.fsencode makes them") from None
    if isinstance(text, bytes | bytearray | memoryview):
        return bytes(text)
    raise TypeError(f"a {what} is str or bytes, not {type(text).__name__}")
