"""Messages between nodes that are larger than a frame: their bytes travel as PART messages, in order, and are put together at the other end.

Records have no largest size: each side of a partition takes writes up to a limit, there may be any number of sides, and a merge never refuses. So what
carries a record must not have one either, short of what a node can hold in memory. Only nodes that said so in HELLO (`PARTS`) are sent parts.
One message at a time is under way in each direction of a connection; other messages may stand between its parts.
"""

from __future__ import annotations

from dynamo._core import frame as kernel
from dynamo.errors import ProtocolError
from dynamo.model.messages import PART, Message
from dynamo.wire.frames import ARRAY_ELEMENTS_MAX, FULL_ARRAYS_MAX, HEADER_BYTES, encode

PART_BYTES = 1 << 20
MESSAGE_BYTES_MAX = 128 << 20  # 60 sides of a partition that each wrote as much to one key as they may


def encode_whole(message: Message) -> bytes:
    """The frame of a message, which may be larger than any receiver takes in one piece. Raises ValueTooLarge beyond what it takes in parts."""
    return encode(message, MESSAGE_BYTES_MAX)


def split(frame: bytes, part_bytes: int = PART_BYTES) -> list[bytes]:
    """Frames that carry the message of this one."""
    if len(frame) <= part_bytes:
        return [frame]
    cuts = range(HEADER_BYTES, len(frame), part_bytes)
    return [encode((PART, 0, at + part_bytes >= len(frame), frame[at : at + part_bytes])) for at in cuts]


class Parts:
    """The message that a connection is being sent in parts."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = bytearray()

    @property
    def held_bytes(self) -> int:
        """Bytes of it so far."""
        return len(self._held)

    def take(self, messages: list[Message]) -> list[Message]:
        """The same messages with those in them that are whole now, in the place of their last parts. Raises ProtocolError for one that is too large, or no
        message."""
        whole: list[Message] = []
        for message in messages:
            if message[0] != PART:
                whole.append(message)
                continue
            _, _, last, data = message[:4]
            self._held += data
            if len(self._held) > MESSAGE_BYTES_MAX:
                raise ProtocolError(f"a message of more than {MESSAGE_BYTES_MAX} bytes in parts")
            if last:
                body, self._held = bytes(self._held), bytearray()
                frame = len(body).to_bytes(HEADER_BYTES, "big") + body
                whole += kernel.decode(frame, MESSAGE_BYTES_MAX, ARRAY_ELEMENTS_MAX, ARRAY_ELEMENTS_MAX * FULL_ARRAYS_MAX)[0]
                if whole[-1][0] == PART:
                    raise ProtocolError("a part of a message within a part")
        return whole
