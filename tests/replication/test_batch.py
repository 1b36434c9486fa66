"""Answers to requests for many keys: complete, in order, and never larger than a frame."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dynamo.errors import ValueTooLarge
from dynamo.model import messages as m
from dynamo.replication.batch import ANSWER_BYTES_MAX, Batch
from dynamo.wire.frames import FRAME_BYTES_MAX, encode
from dynamo.wire.messages import check_answer

KIBIBYTE = 1024


def get_reply(number: int, size: int) -> m.Message:
    return (m.GET_REPLY, 0, 1, 1, 3, b"token", ((bytes(size), 7, number, 1),), ())


@given(st.lists(st.sampled_from([0, 1, 100 * KIBIBYTE, 1024 * KIBIBYTE, 4096 * KIBIBYTE]), min_size=1, max_size=30), st.randoms())
def test_an_answer_fits_a_frame_holds_something_and_is_in_order(sizes: list[int], random: object) -> None:
    batch = Batch(m.GET_MANY_REPLY, 9, len(sizes))
    slots = list(range(len(sizes)))
    random.shuffle(slots)  # type: ignore[attr-defined]
    wholes = [batch.add(slot, get_reply(slot, sizes[slot])) for slot in slots]
    assert wholes[:-1] == [None] * (len(sizes) - 1)
    whole = wholes[-1]
    assert whole is not None and whole[:2] == (m.GET_MANY_REPLY, 9)
    check_answer(whole)
    assert len(encode(whole)) <= FRAME_BYTES_MAX
    kept = [(slot, reply) for slot, reply in enumerate(whole[2]) if reply[0] == m.GET_REPLY]
    assert kept and all(reply == get_reply(slot, sizes[slot]) for slot, reply in kept)
    assert slots[0] in dict(kept), "the first to come is always kept"
    left_out = [reply for reply in whole[2] if reply[0] == m.ERROR]
    assert all(reply[2] == ValueTooLarge.code and reply[4] is False for reply in left_out)
    assert not left_out or sum(sizes) + 200 * len(sizes) > ANSWER_BYTES_MAX, "what fits is not left out"


def test_a_write_whose_answer_is_left_out_may_have_been_applied_and_errors_never_are() -> None:
    token = bytes(98 * KIBIBYTE)
    batch = Batch(m.PUT_MANY_REPLY, 9, 60)
    refused = m.error_message(0, 3, "forged", False)
    whole = None
    for slot in range(60):
        whole = batch.add(slot, refused if slot == 59 else (m.PUT_REPLY, 0, 1, 1, token, 7, slot, 0, 2, 3))
    assert whole is not None and len(encode(whole)) <= FRAME_BYTES_MAX
    left_out = [reply for reply in whole[2][:59] if reply[0] == m.ERROR]
    assert left_out and all(reply[2:5:2] == (ValueTooLarge.code, True) for reply in left_out) and whole[2][59] == refused
