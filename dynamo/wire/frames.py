"""Frames: u32 big-endian length, then one msgpack array `[type, request id, ...]`.

Everything that arrives is hostile until shown otherwise. The length is judged before a byte of the body is kept; the limits on arrays,
strings and maps are given to msgpack, which judges them before it allocates; a decoder that failed is of no more use and is dropped with
its connection. A decoder holds nothing but the unfinished remainder of its stream, so ten thousand idle connections cost almost nothing
(a `msgpack.Unpacker` each would hold 44 KiB).

One packer serves the process: a reused one packs a message in a seventh of the time of `packb`. That is sound where calls of `encode` do not
overlap: packing the built-in types runs no Python code, so under the interpreter lock no second call gets in between.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import msgpack

from dynamo.errors import ProtocolError, ValueTooLarge
from dynamo.model.messages import Message

HEADER_BYTES = 4
FRAME_BYTES_MAX = 8 * 1024 * 1024
# Elements of one array in a request. msgpack allocates an array from its claimed length, and arrays nest up to 1,024 deep, so this number
# times 8 KiB bounds what a hostile frame of five kilobytes can make a node allocate: 32 MiB, for a moment.
ARRAY_ELEMENTS_MAX = 4096
# The same for what a client reads from its own node: siblings come as arrays, and merges never refuse one.
ANSWER_ELEMENTS_MAX = 65_536
TEXT_BYTES_MAX = 65_536
INTEGER_MAX = (1 << 64) - 1

_pack: Callable[[Message], bytes] = msgpack.Packer(use_bin_type=True, autoreset=True).pack


def encode(message: Message, frame_bytes_max: int = FRAME_BYTES_MAX) -> bytes:
    """The frame of a message. Raises ValueTooLarge when it would be larger than the other side accepts."""
    body = _pack(message)
    if len(body) > frame_bytes_max:
        raise ValueTooLarge(f"a message of {len(body)} bytes does not fit into a frame of {frame_bytes_max}")
    return len(body).to_bytes(HEADER_BYTES, "big") + body


class FrameDecoder:
    """Turns the bytes of one connection, in whatever pieces they come, into messages.

    After a ProtocolError the stream has lost its framing: discard the decoder and close the connection.
    """

    __slots__ = ("_needed", "_rest", "_unpack", "frame_bytes_max")

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX, elements_max: int = ARRAY_ELEMENTS_MAX) -> None:
        self.frame_bytes_max = frame_bytes_max
        self._unpack = _unpacker(elements_max)
        self._rest: bytes | bytearray = b""
        self._needed = 0  # bytes of `_rest` at which it holds a whole header or a whole frame

    @property
    def held_bytes(self) -> int:
        """Bytes of an unfinished frame kept here."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes, in order. Raises ProtocolError for a length of 0 or over the limit, and for a body that is
        not one msgpack array beginning with two non-negative integers, or breaks a limit."""
        if self._rest:
            # Invariant: a remainder is a bytearray, so that a large frame in many pieces costs time linear in its size.
            assert isinstance(self._rest, bytearray)
            self._rest += data
            if len(self._rest) < self._needed:
                return []
            data = bytes(self._rest)
            self._rest = b""
        messages: list[Message] = []
        start, size, unpack = 0, len(data), self._unpack
        while True:
            body = start + HEADER_BYTES
            if size < body:
                self._needed = HEADER_BYTES
                break
            length = int.from_bytes(data[start:body], "big")
            if not 0 < length <= self.frame_bytes_max:
                raise ProtocolError(f"a frame of {length} bytes; frames have 1 to {self.frame_bytes_max}")
            end = body + length
            if size < end:
                self._needed = HEADER_BYTES + length
                break
            messages.append(_message(unpack, data[body:end]))
            start = end
        if start < size:
            self._rest = bytearray(data[start:])
        return messages


def _message(unpack: Callable[[bytes], Any], body: bytes) -> Message:
    """One decoded body, checked as far as every message is alike."""
    try:
        message = unpack(body)
    except ValueError as error:  # msgpack's errors and bad UTF-8 are all ValueErrors
        raise ProtocolError(f"a frame that is not msgpack, or too large: {error}") from None
    if type(message) is not tuple or len(message) < 2 or type(message[0]) is not int or type(message[1]) is not int:
        raise ProtocolError("a frame that is no array beginning with a type and a request id")
    if message[0] < 0 or message[1] < 0:
        raise ProtocolError("a negative message type or request id")
    return message


@cache
def _unpacker(elements_max: int) -> Callable[[bytes], Any]:
    """msgpack's decoder with the limits of this protocol: no maps, no extension types, text in UTF-8."""
    return partial(
        msgpack.unpackb,
        use_list=False,
        raw=False,
        strict_map_key=True,
        max_str_len=TEXT_BYTES_MAX,
        max_array_len=elements_max,
        max_map_len=0,
        max_ext_len=0,
    )
