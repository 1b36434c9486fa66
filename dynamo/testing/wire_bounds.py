"""The bounds of the wire in a simulated network: what no receiver takes does not arrive, and is a violation.

A simulated message is a tuple and never meets a decoder; so nothing would notice a sender without the bound that its receiver has. Here each message that
is large, and some of the others, is encoded, cut into parts where that is how it would travel, decoded and checked as a real one. The bounds are drawn
from the seed, from a stream of their own: small ones bring into a small cluster what otherwise takes millions of keys, or megabytes in one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

from dynamo.errors import ProtocolError, ValueTooLarge
from dynamo.model import messages as m
from dynamo.model.messages import Message
from dynamo.wire.frames import ANSWER_ELEMENTS_MAX, ARRAY_ELEMENTS_MAX, FRAME_BYTES_MAX, FrameDecoder, encode
from dynamo.wire.messages import check, check_answer
from dynamo.wire.parts import Parts, encode_whole, split

_LARGE_BYTES = 2048  # of one field
_LARGE_ELEMENTS = 8
_SAMPLED = 64  # of the small ones each so manieth
_BESIDE_BYTES = 1024  # of an answer beside the part of a record that it shows


@dataclass(frozen=True, slots=True)
class WireBounds:
    """What receivers take."""

    answer_bytes_max: int = 7 << 20
    part_bytes: int = 1 << 20
    keys_per_listing: int = 1024

    @classmethod
    def draw(cls, rng: Random) -> WireBounds:
        """Small ones for most seeds, each apart."""
        plain = cls()
        answer, part, keys = rng.choice((1_500, 4_000)), rng.choice((300, 3_000)), rng.choice((1, 1, 2))
        return cls(
            answer if rng.random() < 0.7 else plain.answer_bytes_max,
            part if rng.random() < 0.5 else plain.part_bytes,
            keys if rng.random() < 0.7 else plain.keys_per_listing,
        )

    def settings(self) -> dict[str, Any]:
        """What a node has to know of them."""
        return {"answer_bytes_max": self.answer_bytes_max, "keys_per_listing": self.keys_per_listing}


class Wire:
    """Judges the messages of one run. `checked`: how many so far; `parted`: how many of them travelled in parts."""

    __slots__ = ("_bounds", "_carried", "checked", "parted", "refusals")

    def __init__(self, bounds: WireBounds) -> None:
        self._bounds = bounds
        self._carried = 0
        self.checked = 0
        self.parted = 0
        self.refusals: dict[int, str] = {}  # by message type: what was said of the first that did not get through

    def passes(self, source: bytes | int, destination: bytes | int, message: Message) -> bool:
        """Whether the receiver takes this message."""
        self._carried += 1
        if self._carried % _SAMPLED and message[0] != m.TREE_KEYS_REPLY and not _large(message):
            return True
        self.checked += 1
        try:
            self._receive(source, destination, message)
        except (ProtocolError, ValueTooLarge) as error:
            self.refusals.setdefault(message[0], f"a message of type {message[0]} is not taken by who gets it: {error}")
            return False
        return True

    def _receive(self, source: bytes | int, destination: bytes | int, message: Message) -> None:
        kind, bounds = message[0], self._bounds
        if type(destination) is int:
            frame_max = FRAME_BYTES_MAX
            if kind == m.GET_REPLY:  # the token, which is bounded by itself, is small beside a real answer
                frame_max = min(FRAME_BYTES_MAX, bounds.answer_bytes_max + _BESIDE_BYTES + len(message[5]))
            check_answer(_decoded(encode(message, frame_max), frame_max, ANSWER_ELEMENTS_MAX))
            return
        elements_max = ARRAY_ELEMENTS_MAX
        if kind == m.TREE_KEYS_REPLY and len(message[3]) > bounds.keys_per_listing:
            raise ProtocolError(f"a listing of {len(message[3])} keys")
        if type(source) is int:
            check(_decoded(encode(message), FRAME_BYTES_MAX, elements_max), m.ROLE_CLIENT)
            return
        frames = split(encode_whole(message), bounds.part_bytes)
        if len(frames) == 1:
            check(_decoded(frames[0], FRAME_BYTES_MAX, elements_max), m.ROLE_PEER)
            return
        self.parted += 1
        parts, found, frame_max = Parts(), [], bounds.part_bytes + _BESIDE_BYTES
        for frame in frames:
            part = _decoded(frame, frame_max, elements_max)
            check(part, m.ROLE_PEER)
            found += parts.take([part])
        if found != [message]:
            raise ProtocolError("its parts make another message")
        check(message, m.ROLE_PEER)


def _decoded(frame: bytes, frame_bytes_max: int, elements_max: int) -> Message:
    (message,) = FrameDecoder(frame_bytes_max, elements_max).feed(frame)
    return message


def _large(message: Message) -> bool:
    for field in message:
        if (type(field) is bytes and len(field) >= _LARGE_BYTES) or (type(field) is tuple and len(field) >= _LARGE_ELEMENTS):
            return True
        if type(field) is tuple and field and type(field[0]) is tuple and len(field[0]) > 1 and type(field[0][0]) is bytes and len(field[0][0]) >= _LARGE_BYTES:
            return True
    return False
