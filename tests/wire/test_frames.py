"""Frames: what is encoded comes back however it is cut, and nothing hostile gets further than a ProtocolError."""

from __future__ import annotations

import tracemalloc

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.errors import ProtocolError, ValueTooLarge
from dynamo.model.messages import GET
from dynamo.wire.documents import decode_document, encode_document
from dynamo.wire.frames import ANSWER_ELEMENTS_MAX, ARRAY_ELEMENTS_MAX, FRAME_BYTES_MAX, INTEGER_MAX, FrameDecoder, encode

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), INTEGER_MAX) | st.binary(max_size=40) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=10,
)
messages = st.tuples(st.integers(0, 255), st.integers(0, INTEGER_MAX)).flatmap(lambda head: st.lists(values, max_size=5).map(lambda fields: (*head, *fields)))


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


@given(st.lists(messages, max_size=6), st.data())
def test_messages_come_back_from_any_pieces(sent, data):
    stream = b"".join(map(encode, sent))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    decoder, received = FrameDecoder(), []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += decoder.feed(stream[start:stop])
    assert received == sent
    assert decoder.held_bytes == 0


def test_every_single_cut_and_byte_by_byte():
    sent = [(GET, 1, b"default", b"key", 0, 0, 5000), (GET, 2, b"default", b"k" * 300, 2, 1, 1)]
    stream = b"".join(map(encode, sent))
    for cut in range(len(stream) + 1):
        decoder = FrameDecoder()
        assert decoder.feed(stream[:cut]) + decoder.feed(stream[cut:]) == sent
    decoder, received = FrameDecoder(), []
    for i in range(len(stream)):
        received += decoder.feed(stream[i : i + 1])
    assert received == sent


def test_a_message_is_delivered_with_its_last_byte_and_not_held():
    decoder, whole = FrameDecoder(), encode((GET, 1, b"x" * 100))
    assert decoder.feed(whole[:-1]) == []
    assert decoder.held_bytes == len(whole) - 1
    assert decoder.feed(whole[-1:]) == [(GET, 1, b"x" * 100)]
    assert decoder.held_bytes == 0


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(bytes(4), id="length 0"),
        pytest.param((FRAME_BYTES_MAX + 1).to_bytes(4, "big"), id="length over the limit, header only"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="http"),
        pytest.param(bytes.fromhex("1603010200010001fc0303"), id="tls"),
        pytest.param(frame(b"\xc1"), id="no msgpack"),
        pytest.param(frame(b"\x92\x01"), id="cut short"),
        pytest.param(frame(b"\x92\x01\x02\x00"), id="trailing bytes"),
        pytest.param(frame(b"\x01"), id="no array"),
        pytest.param(frame(b"\x91\x01"), id="one element"),
        pytest.param(frame(b"\x92\xff\x01"), id="negative type"),
        pytest.param(frame(b"\x92\x01\xff"), id="negative request id"),
        pytest.param(frame(b"\x92\xc3\x01"), id="type is a bool"),
        pytest.param(frame(b"\x92\x01\xa1a"), id="request id is text"),
        pytest.param(frame(msgpack.packb([1, 2, {"a": 1}])), id="map"),
        pytest.param(frame(msgpack.packb([1, 2, msgpack.ExtType(5, b"abc")])), id="extension"),
        pytest.param(frame(msgpack.packb([1, 2, msgpack.Timestamp(0)])), id="timestamp"),
        pytest.param(frame(b"\x93\x01\x02\xa1\xff"), id="text that is not UTF-8"),
        pytest.param(frame(b"\x93\x01\x02\xdd\x00\x01\x00\x00"), id="array of 65,536"),
        pytest.param(frame(b"\x93\x01\x02\xdb\x7f\xff\xff\xff"), id="text of 2 GiB"),
        pytest.param(frame(b"\x93\x01\x02\xc6\x7f\xff\xff\xff"), id="bytes of 2 GiB"),
        pytest.param(frame(b"\x92\x01" + b"\x91" * 5000), id="nested deeply"),
    ],
)
def test_malformed_input_is_a_protocol_error(bad):
    with pytest.raises(ProtocolError):
        FrameDecoder().feed(bad)
    with pytest.raises(ProtocolError):  # and behind a sound message too
        FrameDecoder().feed(encode((GET, 1)) + bad)


@given(st.binary(max_size=200))
def test_noise_is_messages_or_a_protocol_error(noise):
    try:
        for message in FrameDecoder(frame_bytes_max=1000).feed(noise):
            assert type(message) is tuple and message[0] >= 0 <= message[1]
    except ProtocolError:
        pass


def test_the_length_is_judged_before_the_body_is_kept():
    decoder = FrameDecoder(frame_bytes_max=100)
    assert decoder.feed(b"\x00\x00\x00") == []
    with pytest.raises(ProtocolError):
        decoder.feed(b"\x65")


def test_what_a_small_hostile_frame_can_allocate_is_bounded():
    bomb = frame(b"\x92\x01" + b"\xdc\x10\x00" * 1000)  # a thousand nested arrays that claim 4,096 elements each
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError):
            FrameDecoder().feed(bomb)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_elements_of_one_array_are_bounded():
    most = (GET, 1, (0,) * ARRAY_ELEMENTS_MAX)
    assert FrameDecoder().feed(encode(most)) == [most]
    more = encode((GET, 1, (0,) * (ARRAY_ELEMENTS_MAX + 1)))
    with pytest.raises(ProtocolError):
        FrameDecoder().feed(more)
    assert FrameDecoder(elements_max=ANSWER_ELEMENTS_MAX).feed(more)


def test_a_message_over_the_limit_is_refused_by_its_sender():
    with pytest.raises(ValueTooLarge):
        encode((GET, 1, b"x" * 100), frame_bytes_max=100)
    assert encode((GET, 1), frame_bytes_max=100)


def test_documents_come_back_and_noise_does_not():
    value = {"name": "n1", "list": (1, (), None), "map": {b"\xff": 1.5}}
    assert decode_document(encode_document(value)) == value
    for noise in (b"", b"\xc1", b"\x81\x01\x02", b"\x81\x90\x02", b"\x01\x02", b"\xdd\x7f\xff\xff\xff", b"\x82\xa1a\x01\xa1a\x02"):
        with pytest.raises(ProtocolError):
            decode_document(noise)
