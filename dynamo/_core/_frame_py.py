"""Frames and msgpack values, in pure Python; a compiled twin `_frame_c` returns the same from every input.

A frame is a u32, big-endian, and as many bytes that are one msgpack array: `(type, request id, ...)`, type and id not
negative. `decode` splits what a socket gave into such messages; `encode` makes the frame of one, `encode_all` those of
many in one buffer. `pack` and `unpack` are for values that lie in a field as bytes and may have maps. DESIGN 8.

What arrives is hostile until shown otherwise, so a decoder allocates only for what the bytes that are there can fill:

    a frame         its length is judged by its header, before its body is awaited
    text, bytes     the length is compared with what is left of the frame; text has a limit and must be UTF-8
    an array        has a limit of its own, its elements count towards the limit of the frame, and as many bytes must be
                    left: each element takes at least one. Those that the arrays around it still owe are not left.
    nesting         NESTING_MAX arrays or maps within each other
    maps            only where asked for; keys are text or bytes, and none comes twice
    the end         nothing may follow the value

Extension types and the byte 0xC1 are refused. Longer forms than needed are accepted, as msgpack's own decoders do; what
is encoded has the shortest form. Anything wrong is a ProtocolError. The format: github.com/msgpack/msgpack, spec.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from struct import Struct
from typing import Any, NoReturn

import msgpack

from dynamo.errors import ProtocolError, ValueTooLarge

HEADER_BYTES = 4
FRAME_BYTES_MAX = 8 * 1024 * 1024  # where the caller does not say otherwise
NESTING_MAX = 16
TEXT_BYTES_MAX = 65_536  # text in a message; in a value to `unpack` it is as long as the value

Message = tuple[Any, ...]

# Of the elements that a body can make msgpack's decoder allocate at once, without having them: 8 MiB.
_CLAIMED_ELEMENTS_MAX = 1 << 20

_pack: Callable[[Any], bytes] = msgpack.Packer(use_bin_type=True, autoreset=True).pack

# What a first byte means.
_ITSELF = {**{head: head - 256 for head in range(0xE0, 0x100)}, 0xC0: None, 0xC2: False, 0xC3: True}
_NUMBERS = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
_NUMBER = {head: (Struct(form).unpack_from, Struct(form).size) for head, form in _NUMBERS.items()}
# Bytes of the length that follows; none where it is part of the first byte.
_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_TEXT = {**dict.fromkeys(range(0xA0, 0xC0), 0), 0xD9: 1, 0xDA: 2, 0xDB: 4}
_ARRAY = {**dict.fromkeys(range(0x90, 0xA0), 0), 0xDC: 2, 0xDD: 4}
_MAP = {**dict.fromkeys(range(0x80, 0x90), 0), 0xDE: 2, 0xDF: 4}


def encode(message: Message, frame_bytes_max: int = FRAME_BYTES_MAX) -> bytes:
    """The frame of a message. Raises ValueTooLarge when it would be larger than the other side accepts."""
    body = _pack(message)
    if len(body) > frame_bytes_max:
        raise ValueTooLarge(f"a message of {len(body)} bytes does not fit into a frame of {frame_bytes_max}")
    return len(body).to_bytes(HEADER_BYTES, "big") + body


def encode_all(messages: Iterable[Message], frame_bytes_max: int = FRAME_BYTES_MAX) -> bytes:
    """The frames of messages, one after another. Raises ValueTooLarge if one of them is too large."""
    return b"".join([encode(message, frame_bytes_max) for message in messages])


def decode(data: bytes, frame_bytes_max: int, array_elements_max: int, elements_max: int) -> tuple[list[Message], int, int]:
    """The messages that begin and end in `data`; how many bytes they took; how many the rest must have to go on.

    The rest, if any, begins a frame; what it needs is a whole header or the whole frame. `elements_max` is for all
    arrays of a frame together. Raises ProtocolError for a frame of no bytes or too many, and for a body that is not one
    msgpack array beginning with two integers, neither negative, or breaks a limit.
    """
    messages: list[Message] = []
    size, start, body = len(data), 0, HEADER_BYTES
    while body <= size:
        length = int.from_bytes(data[start:body], "big")
        if not 0 < length <= frame_bytes_max:
            raise ProtocolError(f"a frame of {length} bytes; frames have 1 to {frame_bytes_max}")
        end = body + length
        if end > size:
            return messages, start, HEADER_BYTES + length
        message = _body(data, body, end, array_elements_max, elements_max)
        if type(message) is not tuple or len(message) < 2 or type(message[0]) is not int or type(message[1]) is not int:
            raise ProtocolError("a frame that is no array beginning with a type and a request id")
        if message[0] < 0 or message[1] < 0:
            raise ProtocolError("a negative message type or request id")
        messages.append(message)
        start, body = end, end + HEADER_BYTES
    return messages, start, HEADER_BYTES


def pack(value: Any) -> bytes:
    """The bytes of a value made of None, bool, int, float, str, bytes, tuples or lists, and dicts."""
    return _pack(value)


def unpack(data: bytes, elements_max: int) -> Any:
    """The value of exactly these bytes: arrays as tuples, maps as dicts. Raises ProtocolError.

    `elements_max` is for all arrays and maps together; an entry of a map counts as two.
    """
    return _Decoder(data, elements_max, elements_max, len(data), True).whole(0, len(data))


def _body(data: bytes, start: int, end: int, array_elements_max: int, elements_max: int) -> Any:
    """The value of one body.

    msgpack's own decoder is five times as fast as ours, being written in C. It has no limit for all elements of a frame,
    nests to 1,024 and allocates what an array claims. So it gets the bodies with which that comes to little: which have
    not as many bytes as elements are allowed, and few bytes that could be the head of a large array.
    """
    body = data[start:end]
    claim = min(array_elements_max, len(body))
    if len(body) > elements_max or (
        len(body) * claim > 3 * _CLAIMED_ELEMENTS_MAX  # such a head has three bytes or more
        and (body.count(b"\xdc") + body.count(b"\xdd")) * claim > _CLAIMED_ELEMENTS_MAX
    ):
        return _Decoder(data, array_elements_max, elements_max, TEXT_BYTES_MAX, False).whole(start, end)
    try:
        value = _unpacker(array_elements_max)(body)
    except ValueError as error:  # msgpack's errors and bad UTF-8 are all ValueErrors
        raise ProtocolError(f"a body that is not msgpack, or breaks a limit: {error}") from None
    if type(value) is tuple:
        _check_nesting(value, NESTING_MAX - 1)
    return value


@cache
def _unpacker(array_elements_max: int) -> Callable[[bytes], Any]:
    return partial(
        msgpack.unpackb,
        use_list=False,
        raw=False,
        max_str_len=TEXT_BYTES_MAX,
        max_array_len=array_elements_max,
        max_map_len=0,
        max_ext_len=0,
        object_hook=_refuse,  # lengths of 0 pass the limits
        ext_hook=_refuse,
    )


def _refuse(*_: Any) -> NoReturn:
    raise ProtocolError("a map, or an extension type")


def _check_nesting(values: tuple[Any, ...], nesting: int) -> None:
    for value in values:
        if type(value) is tuple:
            if nesting == 0:
                raise ProtocolError(f"more than {NESTING_MAX} arrays within each other")
            _check_nesting(value, nesting - 1)


class _Decoder:
    """Reads msgpack values out of `data` under limits. Methods return a value and where it ends."""

    __slots__ = ("_array_elements_max", "_data", "_elements_left", "_maps", "_text_bytes_max")

    def __init__(self, data: bytes, array_elements_max: int, elements_max: int, text_bytes_max: int, maps: bool) -> None:
        self._data = data
        self._array_elements_max = array_elements_max
        self._elements_left = elements_max
        self._text_bytes_max = text_bytes_max
        self._maps = maps

    def whole(self, start: int, end: int) -> Any:
        """The one value that takes all of start..end."""
        (value,), at = self._values(start, end, 1, NESTING_MAX)
        if at != end:
            raise ProtocolError(f"{end - at} bytes follow a value")
        return value

    def _values(self, at: int, end: int, count: int, nesting: int) -> tuple[list[Any], int]:
        """`count` values, none of which reaches beyond `end`. As many arrays or maps as `nesting` may be in each other."""
        data = self._data
        values: list[Any] = []
        for stop in range(end - count + 1, end + 1):  # those that follow need a byte each
            if at >= stop:
                raise ProtocolError("a value is cut short")
            head = data[at]
            at += 1
            if head < 0x80:
                values.append(head)
            elif head in _BYTES:
                size, at = self._length(at, stop, _BYTES[head])
                if size > stop - at:
                    raise ProtocolError("bytes are cut short")
                values.append(data[at : at + size])
                at += size
            elif head in _NUMBER:
                number, size = _NUMBER[head]
                if size > stop - at:
                    raise ProtocolError("a number is cut short")
                values.append(number(data, at)[0])
                at += size
            elif head in _ITSELF:
                values.append(_ITSELF[head])
            else:
                value, at = self._larger(head, at, stop, nesting)
                values.append(value)
        return values, at

    def _larger(self, head: int, at: int, stop: int, nesting: int) -> tuple[Any, int]:
        """Text, an array or a map."""
        if head in _TEXT:
            size, at = self._length(at, stop, _TEXT[head], head & 0x1F)
            if size > min(stop - at, self._text_bytes_max):
                raise ProtocolError("text is cut short, or too long")
            try:
                return str(self._data[at : at + size], "utf-8"), at + size
            except UnicodeDecodeError:
                raise ProtocolError("text that is not UTF-8") from None
        if head in _ARRAY:
            count, at = self._length(at, stop, _ARRAY[head], head & 0x0F)
            self._claim(count, stop - at, nesting)
            values, at = self._values(at, stop, count, nesting - 1)
            return tuple(values), at
        if head in _MAP and self._maps:
            count, at = self._length(at, stop, _MAP[head], head & 0x0F)
            self._claim(2 * count, stop - at, nesting)
            values, at = self._values(at, stop, 2 * count, nesting - 1)
            keys = values[::2]
            if not {str, bytes}.issuperset(map(type, keys)):
                raise ProtocolError("a key of a map is neither text nor bytes")
            entries = dict(zip(keys, values[1::2], strict=True))
            if len(entries) < count:
                raise ProtocolError("a key of a map comes twice")
            return entries, at
        raise ProtocolError(f"a value that begins with 0x{head:02x} has no place here")

    def _length(self, at: int, stop: int, size: int, short: int = 0) -> tuple[int, int]:
        """A length of `size` bytes, and where it ends; `short` if it has none."""
        if not size:
            return short, at
        if size > stop - at:
            raise ProtocolError("a length is cut short")
        return int.from_bytes(self._data[at : at + size], "big"), at + size

    def _claim(self, count: int, left: int, nesting: int) -> None:
        """Before `count` elements are made room for: they are few enough, and can be there."""
        if count > self._array_elements_max or count > self._elements_left:
            raise ProtocolError(f"an array of {count} elements, or too many with those before")
        if count > left:
            raise ProtocolError("an array is cut short")
        if nesting == 0:
            raise ProtocolError(f"more than {NESTING_MAX} arrays within each other")
        self._elements_left -= count
