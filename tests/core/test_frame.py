"""Frames and msgpack values: what goes in comes out, the bytes are msgpack's, limits hold, and the twins agree on any input at all."""

from __future__ import annotations

import json
import struct
import tracemalloc
from collections import namedtuple
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dynamo._core import _frame_py
from dynamo.errors import ProtocolError, ValueTooLarge

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "frames_v1.json").read_text())["frames"]
MAX = 2**64 - 1
FRAME, ARRAY, TOTAL = 8 << 20, 4096, 4096 * 32


@pytest.fixture(scope="session")
def frame(core: Any) -> ModuleType:
    return core.frame


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def decode(frame: ModuleType, data: bytes, bytes_max: int = FRAME, array_max: int = ARRAY, total_max: int = TOTAL) -> list[Any]:
    """The messages of whole frames."""
    messages, used, needed = frame.decode(data, bytes_max, array_max, total_max)
    assert (used, needed) == (len(data), 4)
    return messages


def golden(encoded: Any) -> Any:
    if isinstance(encoded, list):
        return tuple(map(golden, encoded))
    return bytes.fromhex(encoded["hex"]) if isinstance(encoded, dict) else encoded


leaves = st.none() | st.booleans() | st.integers(-(1 << 63), MAX) | st.binary(max_size=40) | st.text(max_size=20) | st.floats()
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=10)
messages = st.tuples(st.integers(0, 255), st.integers(0, MAX)).flatmap(lambda head: st.lists(values, max_size=5).map(lambda fields: (*head, *fields)))
documents = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4).map(tuple) | st.dictionaries(st.text(max_size=8) | st.binary(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def outcome(call: Callable[..., Any], *arguments: Any) -> str:
    """What came of it, types and all (1 is not True, NaN is itself), or the error's class."""
    try:
        return repr(call(*arguments))
    except Exception as error:
        return type(error).__name__


# --- what goes in comes out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_frames(frame: ModuleType, name: str) -> None:
    message, data = golden(GOLDEN[name]["message"]), bytes.fromhex(GOLDEN[name]["frame"])
    assert decode(frame, data) == [message]
    assert frame.encode(message) == data


@given(sent=st.lists(messages, max_size=5), data=st.data())
def test_messages_come_back_however_they_are_cut(frame: ModuleType, sent: list[Any], data: st.DataObject) -> None:
    stream = frame.encode_all(sent)
    assert stream == b"".join(map(frame.encode, sent))
    assert repr(decode(frame, stream)) == repr(sent)
    cut = data.draw(st.integers(0, len(stream)))
    first, used, needed = frame.decode(stream[:cut], FRAME, ARRAY, TOTAL)
    assert used <= cut < used + needed
    then, used_then, needed_then = frame.decode(stream[used:], FRAME, ARRAY, TOTAL)
    assert (repr(first + then), used + used_then, needed_then) == (repr(sent), len(stream), 4)


@given(value=documents)
def test_bytes_are_those_of_msgpack_and_values_come_back(frame: ModuleType, value: Any) -> None:
    packed = msgpack.packb(value, use_bin_type=True)
    assert frame.pack(value) == packed
    assert repr(frame.unpack(packed, 1000)) == repr(value)


def test_every_form_of_an_integer(frame: ModuleType) -> None:
    for bits in (0, 5, 7, 8, 15, 16, 31, 32, 63, 64):
        for value in (sign * (1 << bits) + more for sign in (-1, 1) for more in (-2, -1, 0, 1, 2)):
            if -(1 << 63) <= value <= MAX:
                assert frame.pack(value) == msgpack.packb(value)
                assert frame.unpack(frame.pack(value), 1) == value


@pytest.mark.parametrize("size", [0, 1, 15, 16, 31, 32, 255, 256, 1023, 1024, 1025, 65_535, 65_536, 300_000])
def test_every_form_of_a_length(frame: ModuleType, size: int) -> None:
    for value in (bytes(size), "x" * size, (None,) * size, {b"%d" % i: i for i in range(size)}, ("é" * (size // 2), (0, b"y" * size))):
        packed = frame.pack(value)
        assert packed == msgpack.packb(value, use_bin_type=True)
        assert frame.unpack(packed, 1 << 20) == value


def test_how_much_more_is_needed(frame: ModuleType) -> None:
    whole = frame.encode((10, 1, b"x" * 300))
    for cut in range(len(whole)):
        assert frame.decode(whole + whole[:cut], FRAME, ARRAY, TOTAL) == ([(10, 1, b"x" * 300)], len(whole), 4 if cut < 4 else len(whole))


NOT_CANONICAL = {
    "cc01": 1, "cd0001": 1, "ce00000001": 1, "cf0000000000000001": 1, "d001": 1, "d10001": 1, "d200000001": 1, "d30000000000000001": 1,
    "d0ff": -1, "d1ffff": -1, "d2ffffffff": -1, "d3ffffffffffffffff": -1, "d38000000000000000": -(1 << 63), "d180": None,
    "c50001ff": b"\xff", "c600000001ff": b"\xff", "d90161": "a", "da000161": "a", "db0000000161": "a", "dc000107": (7,), "dd0000000107": (7,),
    "ca3fc00000": 1.5, "cb3ff8000000000000": 1.5,
}  # fmt: skip


@pytest.mark.parametrize("encoded", NOT_CANONICAL)
def test_longer_forms_than_needed_are_accepted(frame: ModuleType, encoded: str) -> None:
    value, data = NOT_CANONICAL[encoded], bytes.fromhex(encoded)
    if value is None:
        with pytest.raises(ProtocolError):
            frame.unpack(data, 10)
        return
    assert frame.unpack(data, 10) == value == msgpack.unpackb(data, use_list=False)
    assert decode(frame, framed(b"\x93\x01\x02" + data)) == [(1, 2, value)]


# --- what is refused ----------------------------------------------------------------------------------------------------


def many(form: str, head: int, count: int) -> bytes:
    return struct.pack(form, head, count)


MALFORMED = {
    "length 0": bytes(4),
    "length over the limit": (FRAME + 1).to_bytes(4, "big"),
    "length 2^31": b"\x80\0\0\0" + bytes(50),
    "length 2^32 - 1": b"\xff" * 50,
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "no msgpack": framed(b"\xc1"),
    "no msgpack inside": framed(b"\x93\x01\x02\xc1"),
    "cut short": framed(b"\x92\x01"),
    "trailing byte": framed(b"\x92\x01\x02\x00"),
    "trailing array": framed(b"\x92\x01\x02\x92\x01\x02"),
    "no array": framed(b"\x01"),
    "no elements": framed(b"\x90"),
    "one element": framed(b"\x91\x01"),
    "negative type": framed(b"\x92\xff\x01"),
    "negative id": framed(b"\x92\x01\xff"),
    "type a bool": framed(b"\x92\xc3\x01"),
    "id a bool": framed(b"\x92\x01\xc2"),
    "type text": framed(b"\x92\xa1a\x01"),
    "type a float": framed(b"\x92\xcb" + bytes(8) + b"\x01"),
    "id nil": framed(b"\x92\x01\xc0"),
    "a map": framed(b"\x81\x01\x02"),
    "an empty map": framed(b"\x93\x01\x02\x80"),
    "an empty map 16": framed(b"\x93\x01\x02\xde\0\0"),
    "a map inside": framed(msgpack.packb([1, 2, [{"a": 1}]])),
    "ext of nothing": framed(b"\x93\x01\x02\xc7\0\x05"),
    "ext 16": framed(b"\x93\x01\x02\xc8\0\x01\x05a"),
    "ext 32": framed(b"\x93\x01\x02\xc9\0\0\0\x01\x05a"),
    "fixext 1": framed(msgpack.packb([1, 2, msgpack.ExtType(5, b"a")])),
    "fixext 16": framed(msgpack.packb([1, 2, msgpack.ExtType(5, b"a" * 16)])),
    "timestamp": framed(msgpack.packb([1, 2, msgpack.Timestamp(0)])),
    "timestamp of nothing": framed(b"\x93\x01\x02\xc7\0\xff"),
    "not UTF-8": framed(b"\x93\x01\x02\xa1\xff"),
    "a surrogate": framed(b"\x93\x01\x02\xa3\xed\xa0\x80"),
    "overlong UTF-8": framed(b"\x93\x01\x02\xa2\xc0\x80"),
    "array 16 too large": framed(b"\x93\x01\x02" + many(">BH", 0xDC, ARRAY + 1) + bytes(ARRAY + 1)),
    "array 32 of 2^32 - 1": framed(b"\x93\x01\x02" + many(">BI", 0xDD, 2**32 - 1)),
    "text too long": framed(b"\x93\x01\x02" + many(">BI", 0xDB, 65_537) + b"x" * 65_537),
    "text of 2 GiB": framed(b"\x93\x01\x02\xdb\x7f\xff\xff\xff"),
    "bytes of 2 GiB": framed(b"\x93\x01\x02\xc6\x7f\xff\xff\xff"),
    "bytes of 4 GiB": framed(b"\x93\x01\x02\xc6\xff\xff\xff\xff"),
    "bytes one too long": framed(b"\x93\x01\x02\xc4\x03ab"),
    "bytes at the cost of the next": framed(b"\x94\x01\x02\xc4\x03abc"),
    "an inner array at the cost of the next": framed(b"\x94\x01\x02\x91\x05"),
    "nested deeply": framed(b"\x93\x01\x02" + b"\x91" * 5000 + b"\x90"),
    "a mebibyte of arrays": framed(b"\x93\x01\x02" + b"\x91" * (1 << 20) + b"\x90"),
    "a mebibyte of empty maps": framed(b"\x93\x01\x02" + many(">BI", 0xDD, 1 << 20) + b"\x80" * (1 << 20)),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_input_is_a_protocol_error(frame: ModuleType, name: str) -> None:
    for before in (b"", frame.encode((10, 1))):
        with pytest.raises(ProtocolError):
            frame.decode(before + MALFORMED[name], FRAME, ARRAY, TOTAL)


NO_DOCUMENTS = [
    "", "c1", "8101", "810102", "81c001", "81900a", "81cb00000000000000000a", "82a16101a16102", "83a16101a16202a16103", "81c4016101c0",
    "82c4016101c4016102", "91", "dc", "dc00", "dd000000", "de00", "df000000", "d9", "da00", "db000000", "c4", "c500", "c6000000", "ca000000",
    "cb00", "cf00", "0102",
]  # fmt: skip


@pytest.mark.parametrize("encoded", NO_DOCUMENTS)
def test_what_is_no_document(frame: ModuleType, encoded: str) -> None:
    with pytest.raises(ProtocolError):
        frame.unpack(bytes.fromhex(encoded), 100)


def test_text_and_bytes_are_different_keys(frame: ModuleType) -> None:
    assert frame.unpack(bytes.fromhex("82a16101c4016102"), 4) == {"a": 1, b"a": 2}


def test_every_truncation_is_refused(frame: ModuleType) -> None:
    body = msgpack.packb([42, 1 << 40, b"default", "größe", 1.5, [b"x" * 40, [None, True, -5, -70000]], b"y" * 300, 1 << 63], use_bin_type=True)
    decode(frame, framed(body))
    document = msgpack.packb({"a": [1, {"b": b"c"}], "d": body}, use_bin_type=True)
    frame.unpack(document, 100)
    for cut in range(1, len(body)):
        with pytest.raises(ProtocolError):
            frame.decode(framed(body[:cut]), FRAME, ARRAY, TOTAL)
    for cut in range(len(document)):
        with pytest.raises(ProtocolError):
            frame.unpack(document[:cut], 100)


def deep(levels: int) -> bytes:
    return b"\x93\x01\x02" + b"\x91" * (levels - 2) + b"\x90"


def test_each_limit_to_the_last_one(frame: ModuleType) -> None:
    """The same body passes, and fails when the limit is one less."""
    body = msgpack.packb([1, 2, [0] * 10, [[0] * 5, "x" * 7]])  # arrays of 4, 10, 2 and 5
    for limits in ((len(body), 10, 21), (FRAME, 10, TOTAL), (FRAME, ARRAY, 21)):
        decode(frame, framed(body), *limits)
    for limits in ((len(body) - 1, ARRAY, TOTAL), (FRAME, 9, TOTAL), (FRAME, ARRAY, 20)):
        with pytest.raises(ProtocolError):
            frame.decode(framed(body), *limits)
    decode(frame, framed(deep(frame.NESTING_MAX)))
    with pytest.raises(ProtocolError):
        frame.decode(framed(deep(frame.NESTING_MAX + 1)), FRAME, ARRAY, TOTAL)
    assert decode(frame, framed(b"\x93\x01\x02\xdb" + struct.pack(">I", 65_536) + b"x" * 65_536))[0][2] == "x" * 65_536
    nested = b"\x91" * (frame.NESTING_MAX - 1)
    assert frame.unpack(nested + b"\x80", 100) and frame.unpack(b"\x82\xa1a\x91\x05\xa1b\x06", 5) == {"a": (5,), "b": 6}
    for bad, total in ((nested + b"\x91\x80", 100), (b"\x82\xa1a\x91\x05\xa1b\x06", 4), (nested + b"\x81\xa1a\x90", 100)):
        with pytest.raises(ProtocolError):
            frame.unpack(bad, total)


def test_elements_count_anew_in_each_frame(frame: ModuleType) -> None:
    one = framed(msgpack.packb([1, 2, *range(50)]))
    assert len(decode(frame, one * 10, FRAME, 52, 52)) == 10


BOMBS = {
    "claims within claims": (b"\x92\x01" + b"\xdc\x10\x00" * 1000, 1),
    "claims in bytes that are there": (b"\x93\x01\x02" + (b"\xdc\x10\x00" * 1000) + bytes(100_000), 1),
    "8 MiB of nil": (b"\x93\x01\x02" + many(">BI", 0xDD, (8 << 20) - 100) + b"\xc0" * ((8 << 20) - 100), 1),
    "8 MiB of nil in full arrays": (b"\x92\x01" + many(">BH", 0xDC, 2047) + (many(">BH", 0xDC, 4000) + b"\xc0" * 4000) * 2047, 4),
    "8 MiB of arrays of one": (b"\x92\x01" + many(">BH", 0xDC, 2000) + (many(">BH", 0xDC, 2000) + b"\x91\xc0" * 2000) * 2000, 12),
    "2 MiB of empty text": (b"\x92\x01" + many(">BH", 0xDC, 500) + (many(">BH", 0xDC, 4096) + b"\xa0" * 4096) * 500, 4),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_a_hostile_frame_can_allocate_is_bounded(frame: ModuleType, name: str) -> None:
    """Beside the frame itself, and in the pure twin its body as a copy."""
    body, mebibytes = BOMBS[name]
    data = framed(body)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            frame.decode(data, 9 << 20, ARRAY, TOTAL)
        assert tracemalloc.get_traced_memory()[1] < (mebibytes << 20) + len(body)
        tracemalloc.reset_peak()
        with pytest.raises(ProtocolError):
            frame.unpack(body, TOTAL)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_arrays_within_arrays_cannot_claim_the_same_bytes(frame: ModuleType) -> None:
    """Without a limit on elements, what is allocated for them is still bounded by the bytes that are there: 8 for each."""
    body = b"\x92\x01" + many(">BI", 0xDD, 1 << 20) * 14 + bytes((1 << 20) + 100)
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            frame.decode(framed(body), 9 << 20, 1 << 30, 1 << 30)
        assert tracemalloc.get_traced_memory()[1] < 12 * len(body)
    finally:
        tracemalloc.stop()


# --- what cannot be encoded ---------------------------------------------------------------------------------------------


def test_a_message_over_the_limit_is_refused_by_its_sender(frame: ModuleType) -> None:
    size = len(frame.encode((10, 1, b"x" * 100))) - 4
    assert frame.encode((10, 1, b"x" * 100), size)
    with pytest.raises(ValueTooLarge):
        frame.encode((10, 1, b"x" * 100), size - 1)
    with pytest.raises(ValueTooLarge):
        frame.encode_all([(10, 1), (10, 1, b"x" * 100)], size - 1)
    with pytest.raises(ValueTooLarge):
        frame.encode((10, 1, bytes(FRAME)))
    assert frame.encode_all([]) == b""


class Color(IntEnum):
    RED = 300


class Text(str):
    pass


Point = namedtuple("Point", "x y")
ODD = [
    Color.RED, Text("größe"), Point(1, (b"x",)), Point(1, object()), [1, [2]], bytearray(b"abc"), memoryview(b"abc"), msgpack.ExtType(5, b"x"),
    msgpack.Timestamp(7), 2**64, -(2**63) - 1, 2**200, "\ud800", object(), {1, 2}, 1j, range(3), {1: 2}, {(1, 2): 3}, {"a": {"b": object()}},
    1.5, float("nan"), -0.0,
]  # fmt: skip


@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
def test_unusual_values_are_encoded_or_refused_as_msgpack_does(frame: ModuleType, value: Any) -> None:
    for inside in (value, (1, 2, value), [b"x" * 2000, value, value]):
        assert outcome(frame.pack, inside) == outcome(msgpack.packb, inside)


def test_nesting_without_end_is_an_error(frame: ModuleType) -> None:
    value: Any = ()
    for _ in range(1100):
        value = (value,)
    endless: list[Any] = []
    endless.append(endless)
    for bad in (value, endless):
        with pytest.raises(ValueError):
            frame.encode((1, 2, bad))
    assert frame.encode((1, 2)) == framed(b"\x92\x01\x02")  # and it goes on


# --- the twins ----------------------------------------------------------------------------------------------------------


def agree(cores: Any, data: bytes, limits: tuple[int, int, int] = (1000, 20, 50)) -> None:
    compiled, pure = (core.frame for core in cores)
    assert outcome(compiled.decode, data, *limits) == outcome(pure.decode, data, *limits)
    assert outcome(compiled.decode, framed(data), *limits) == outcome(pure.decode, framed(data), *limits)
    assert outcome(compiled.unpack, data, 50) == outcome(pure.unpack, data, 50)


@settings(max_examples=4 * settings.default.max_examples)
@given(data=st.binary(max_size=100))
@example(b"")
def test_twins_agree_on_noise(cores: Any, data: bytes) -> None:
    agree(cores, data)


HEADS = [bytes([head]) for head in range(256)]
TAILS = [
    b"",
    b"\0",
    b"\x01",
    b"\0\0",
    b"\0\x01",
    b"\xff\xff",
    b"\0\0\0\x02",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"a",
    b"\xc3\xa9",
    b"\xff" * 8,
    bytes(8),
]
soup = st.lists(st.sampled_from(HEADS) | st.sampled_from(TAILS), max_size=20).map(b"".join)


@settings(max_examples=10 * settings.default.max_examples)
@given(data=soup)
def test_twins_agree_on_heads_and_tails(cores: Any, data: bytes) -> None:
    agree(cores, data)
    agree(cores, b"\x93\x01\x02" + data)


def mutated(random: Random, data: bytes) -> bytes:
    """The bytes with one to three faults."""
    changed = bytearray(data)
    for _ in range(random.randrange(1, 4)):
        at = random.randrange(len(changed) + 1)
        match random.randrange(5):
            case 0:
                changed[at : at + 1] = random.randbytes(1)
            case 1:
                changed[at:at] = random.choice(HEADS) + random.choice(TAILS)
            case 2:
                del changed[at : at + random.randrange(1, 4)]
            case 3:
                changed[at : at + 1] = random.choice((b"\xdc", b"\xdd", b"\xc6", b"\xdb", b"\xdf", b"\x81", b"\x91", b"\xc1", b"\xff"))
            case 4:
                del changed[at:]
    return bytes(changed)


@pytest.mark.parametrize("seed", range(4))
def test_twins_agree_on_damaged_messages(cores: Any, seed: int) -> None:
    random = Random(seed)
    whole = [golden(case["message"]) for case in GOLDEN.values()]
    for _ in range(2000):
        stream = b"".join(map(_frame_py.encode, random.sample(whole, random.randrange(1, 3))))
        agree(cores, mutated(random, stream), (100_000, 20, 50))
        agree(cores, mutated(random, stream[4:]), (100_000, 20, 50))


@given(message=messages, value=documents)
def test_twins_encode_the_same(cores: Any, message: Any, value: Any) -> None:
    compiled, pure = (core.frame for core in cores)
    assert compiled.encode(message) == pure.encode(message)
    assert compiled.pack(value) == pure.pack(value)
    for limit in (10, 30):
        assert outcome(compiled.encode, message, limit) == outcome(pure.encode, message, limit)


@pytest.mark.parametrize("seed", range(3))
def test_the_two_roads_of_the_pure_twin_are_one(seed: int) -> None:
    """msgpack's decoder, where it may be used, gives what the one written out in the twin gives."""

    def slow(body: bytes) -> Any:
        return _frame_py._Decoder(body, 20, 200, _frame_py.TEXT_BYTES_MAX, False).whole(0, len(body))

    random = Random(seed)
    bodies = [_frame_py.encode(golden(case["message"]))[4:] for case in GOLDEN.values()]
    for _ in range(3000):
        body = random.choice(bodies)
        body = mutated(random, body) if random.random() < 0.9 else body
        if 0 < len(body) <= 200:
            assert outcome(_frame_py._body, body, 0, len(body), 20, 200) == outcome(slow, body)
    for bad in MALFORMED.values():
        if len(bad[4:]) and len(bad) < 200:
            assert outcome(_frame_py._body, bad[4:], 0, len(bad) - 4, 20, 200) == outcome(slow, bad[4:])
