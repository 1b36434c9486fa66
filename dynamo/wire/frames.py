"""Frames: u32 big-endian length, then one msgpack array `[type, request id, ...]`. The kernel `frame` reads and writes them; here are the
limits of this protocol, and the decoder of one connection.

Everything that arrives is hostile until shown otherwise: the length is judged before a byte of the body is kept, and nothing is allocated for
elements, text or bytes that are only claimed. A decoder that failed is of no more use and is dropped with its connection. It holds nothing but
the unfinished remainder of its stream, so ten thousand idle connections cost almost nothing (a `msgpack.Unpacker` each would hold 44 KiB).
"""

from __future__ import annotations

from dynamo._core import frame as kernel
from dynamo.model.messages import Message

HEADER_BYTES = kernel.HEADER_BYTES
FRAME_BYTES_MAX = kernel.FRAME_BYTES_MAX
TEXT_BYTES_MAX = kernel.TEXT_BYTES_MAX
NESTING_MAX = kernel.NESTING_MAX
# Elements of one array in a request.
ARRAY_ELEMENTS_MAX = 4096
# The same for what a client reads from its own node: siblings come as arrays, and merges never refuse one.
ANSWER_ELEMENTS_MAX = 65_536
# Elements of a whole frame are as many as those of so many full arrays: 131,072 in a request, more than the largest gossip has. That is what
# bounds the memory a hostile frame of 8 MiB turns into. In an answer 2,097,152, more than 8 MiB of siblings with empty values.
FULL_ARRAYS_MAX = 32
INTEGER_MAX = (1 << 64) - 1

encode = kernel.encode
encode_all = kernel.encode_all


class FrameDecoder:
    """Turns the bytes of one connection, in whatever pieces they come, into messages.

    After a ProtocolError the stream has lost its framing: discard the decoder and close the connection.
    """

    __slots__ = ("_elements_max", "_greeting_bytes_max", "_needed", "_rest", "frame_bytes_max")

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX, elements_max: int = ARRAY_ELEMENTS_MAX, greeting_bytes_max: int = 0) -> None:
        """`elements_max` is for one array; see `FULL_ARRAYS_MAX` for all of a frame. `greeting_bytes_max`: of the first frame, which then comes
        alone; what follows it is held as it came, unread, until `greeted`."""
        self.frame_bytes_max = frame_bytes_max
        self._elements_max = elements_max
        self._greeting_bytes_max = greeting_bytes_max
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
        elements_max = self._elements_max
        if self._greeting_bytes_max:
            return self._greeting(data)
        messages, used, self._needed = kernel.decode(data, self.frame_bytes_max, elements_max, elements_max * FULL_ARRAYS_MAX)
        if used < len(data):
            self._rest = bytearray(data[used:])
        return messages

    def _greeting(self, data: bytes) -> list[Message]:
        """The first message once it is whole. Its bound is its own: a frame of full size may stand behind it in the same piece."""
        first = data[: HEADER_BYTES + int.from_bytes(data[:HEADER_BYTES], "big")] if len(data) >= HEADER_BYTES else data
        messages, used, self._needed = kernel.decode(first, self._greeting_bytes_max, self._elements_max, self._elements_max * FULL_ARRAYS_MAX)
        if used < len(data):
            self._rest = bytearray(data[used:])
        return messages

    def greeted(self) -> list[Message]:
        """The greeting was accepted: what followed it, and all that comes from here on, has the full bounds."""
        self._greeting_bytes_max = 0
        held, self._rest, self._needed = bytes(self._rest), b"", 0
        return self.feed(held) if held else []
