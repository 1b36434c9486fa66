"""What no node takes is refused by the first that sees it: nothing of it is passed on, however large it is and however often it comes at once."""

from __future__ import annotations

from typing import Any

import pytest

from dynamo.errors import InvalidContext, InvalidKey, KeyTooLong, Unavailable, ValueTooLarge
from dynamo.model import messages as m
from dynamo.model.messages import ERROR_TEXT_MAX, Message
from dynamo.replication.batch import ANSWER_BYTES_MAX, GETS_AT_ONCE, GETS_FIRST, Gets

from .rig import Rig

LONG = b"\xff" * 300_000
PUT = (b"v", None, bytes(16))
BAD: dict[str, tuple[Message, type[Exception]]] = {
    "put, bucket": ((m.PUT, 0, LONG, b"k", b"v", None, 0, 0, 0, 5000, bytes(16)), InvalidKey),
    "put, key": ((m.PUT, 0, b"default", LONG, b"v", None, 0, 0, 0, 5000, bytes(16)), KeyTooLong),
    "put, no key": ((m.PUT, 0, b"default", b"", b"v", None, 0, 0, 0, 5000, bytes(16)), InvalidKey),
    "get, bucket": ((m.GET, 0, LONG, b"k", 0, 0, 5000), InvalidKey),
    "get, key": ((m.GET, 0, b"default", LONG, 0, 0, 5000), KeyTooLong),
    "scan, bucket": ((m.SCAN, 0, LONG, b"", b"", 0, 5000), InvalidKey),
    "scan, prefix": ((m.SCAN, 0, b"default", LONG, b"", 0, 5000), KeyTooLong),
    "get many, bucket": ((m.GET_MANY, 0, LONG, tuple(b"%d" % i for i in range(50)), 0, 0, 5000), InvalidKey),
    "put many, bucket": ((m.PUT_MANY, 0, LONG, tuple((b"%d" % i, *PUT) for i in range(50)), 0, 0, 0, 5000), InvalidKey),
    "put many, keys": ((m.PUT_MANY, 0, b"default", ((LONG, *PUT),) * 50, 0, 0, 0, 5000), KeyTooLong),
}


@pytest.mark.parametrize("name", BAD)
def test_it_is_refused_at_once_and_costs_the_others_nothing(name: str) -> None:
    request, error = BAD[name]
    rig = Rig(5)
    for node_id in rig.ids:  # owners of the key and others alike
        before = rig.bytes_between
        reply: Any = rig.ask(node_id, request)
        for each in [reply] if reply[0] == m.ERROR else reply[2]:
            assert (each[0], each[2], each[4]) == (m.ERROR, error.code, False)  # type: ignore[attr-defined]
            assert len(each[3]) <= ERROR_TEXT_MAX
        assert rig.bytes_between == before
    assert not any(node.objects for node in rig.nodes.values())


@pytest.mark.parametrize("mode", [m.MODE_PUT, m.MODE_SET])
@pytest.mark.parametrize("value", [b"v", None])
def test_an_empty_context_is_no_token_whichever_node_sees_it(mode: int, value: bytes | None) -> None:
    rig = Rig(5)
    for node_id in rig.ids:
        one = rig.ask(node_id, (m.PUT, 0, b"default", b"k", value, b"", mode, 0, 0, 5000, bytes(16)))
        many: Any = rig.ask(node_id, (m.PUT_MANY, 0, b"default", ((b"k", value, b"", bytes(16)),) * 2, mode, 0, 0, 5000))
        for reply in (one, *many[2]):
            assert (reply[0], reply[2], reply[4]) == (m.ERROR, InvalidContext.code, False)
    assert not any(node.objects for node in rig.nodes.values())


# --- reads that would fill the memory ------------------------------------------------------------------------------------------------------------


def answer(size: int) -> Message:
    return (m.GET_REPLY, 0, 1, 1, 3, b"", ((bytes(size), 7, 1, 1),), ())


@pytest.mark.parametrize(("size", "at_once"), [(1, 1024), (10_000, 420), (1 << 20, GETS_FIRST)])
def test_gets_of_a_batch_are_begun_as_their_size_allows(size: int, at_once: int) -> None:
    waiting: list[int] = []

    def begin(batch: Gets, slot: int) -> int:
        waiting.append(slot)
        return 0  # nothing is known of their sizes

    gets = Gets(1, 1024, begin)
    gets.go_on()
    assert len(waiting) == GETS_FIRST
    most, begun, whole = 0, 0, None
    while waiting:
        most, begun = max(most, len(waiting)), begun + 1
        assert whole is None
        whole = gets.add(waiting.pop(0), answer(size))
    assert whole is not None and len(whole[2]) == 1024
    kept = sum(reply[0] == m.GET_REPLY for reply in whole[2])
    assert most <= at_once and kept >= min(1024, ANSWER_BYTES_MAX // (size + 200))
    assert begun <= kept + at_once  # what is left out is hardly ever read
    assert {reply[2] for reply in whole[2] if reply[0] == m.ERROR} <= {ValueTooLarge.code}
    if size == 1:
        assert most > 400  # small ones open the window


@pytest.mark.parametrize(("size", "at_once"), [(100, GETS_AT_ONCE), (1 << 17, 31), (1 << 20, 4), (ANSWER_BYTES_MAX, 1)])
def test_more_gets_of_a_batch_are_begun_where_the_sizes_are_known(size: int, at_once: int) -> None:
    begun: list[int] = []

    def begin(batch: Gets, slot: int) -> int:
        begun.append(slot)
        return size

    gets = Gets(1, 1024, begin)
    gets.go_on()
    assert len(begun) == at_once
    gets.add(0, answer(0))
    assert len(begun) <= at_once + 2


@pytest.mark.parametrize("reply", [answer(10), m.error_message(0, Unavailable.code, "busy", False)], ids=["small", "error"])
def test_answers_let_one_more_of_unknown_size_begin_and_errors_none(reply: Message) -> None:
    begun: list[int] = []

    def begin(batch: Gets, slot: int) -> int:
        begun.append(slot)
        return 0

    gets = Gets(1, 1024, begin)
    gets.go_on()
    for slot in range(GETS_FIRST):
        gets.add(slot, reply)
    assert len(begun) == GETS_FIRST * (3 if reply[0] == m.GET_REPLY else 2)


def test_gets_that_are_answered_at_once_make_no_deep_calls() -> None:
    whole: list[Any] = []
    within = [0]

    def begin(batch: Gets, slot: int) -> int:
        within[0] += 1
        assert within[0] == 1
        if (reply := batch.add(slot, answer(slot % 7))) is not None:
            whole.append(reply)
        within[0] -= 1
        return 0

    Gets(1, 5000, begin).go_on()
    assert len(whole) == 1 and [len(reply[6][0][0]) for reply in whole[0][2]] == [slot % 7 for slot in range(5000)]


def test_records_that_reads_hold_are_counted_bounded_and_let_go() -> None:
    rig = Rig(5, reading_bytes_max=25_000)
    key = b"large"
    assert rig.put(rig.owners(key)[0], key, bytes(10_000))[0] == m.PUT_REPLY
    for node_id in rig.ids:
        core = rig.nodes[node_id].replica.core  # type: ignore[union-attr]
        rig.nodes[node_id].inbox += [(1, (m.GET, number, b"default", key, 0, 0, 5000)) for number in range(1000, 1010)]
        rig.settle()
        replies, rig.replies = rig.replies, []
        assert len(replies) == 10 and core.reading_bytes == 0
        if node_id in rig.owners(key):  # it holds the record from the start; the others see it when it comes
            refused = [reply for reply in replies if reply[0] == m.ERROR]
            assert len(refused) == 7 and all(reply[2] == Unavailable.code and reply[4] is False for reply in refused)
        assert rig.values(rig.get(node_id, key)) == [bytes(10_000)]


def test_reads_that_fail_let_go_too() -> None:
    rig = Rig(3)
    a, b, c = rig.ids
    assert rig.put(a, b"key", bytes(1000), w=3)[0] == m.PUT_REPLY
    core = rig.nodes[a].replica.core  # type: ignore[union-attr]
    rig.nodes[b].up = rig.nodes[c].up = False  # silent, and not known to be down
    rig.nodes[a].inbox.append((1, (m.GET, 50, b"default", b"key", 3, 0, 2000)))
    rig.settle()
    assert core.reading_bytes > 1000
    rig.pass_time(5)
    assert core.reading_bytes == 0 and [reply[:2] for reply in rig.replies] == [(m.ERROR, 50)]
