"""Verbs for many keys and scans without a socket: the requests they make of the answers they get, and what becomes of errors."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from fake_node import error, get_reply, put_reply, scan_reply
from hypothesis import given
from hypothesis import strategies as st

from dynamo.api.context import Context
from dynamo.api.result import Result
from dynamo.client import many
from dynamo.client.core import Request
from dynamo.client.scan import Scan
from dynamo.client.verbs import Place, Verb, run
from dynamo.errors import (
    ConnectionFailed,
    CorruptRecord,
    DynamoError,
    InvalidContext,
    InvalidRequest,
    ProtocolError,
    Timeout,
    Unavailable,
    ValueTooLarge,
)
from dynamo.model import messages as m
from dynamo.model.messages import MODE_PUT, Message

PLACE = Place(b"b")
KEYS = [b"k%d" % i for i in range(10)]
Node = Callable[[Request], Message | DynamoError]


def answered(verb: Verb[Any], node: Node) -> tuple[Any, list[Request]]:
    """(result, requests) of a verb; the node answers, or raises."""
    requests = []

    def call(request: Request) -> Message:
        requests.append(request)
        reply = node(request)
        if isinstance(reply, DynamoError):
            raise reply
        return reply

    return run(verb, call), requests


def get_many(node: Node, keys: list[bytes] = KEYS) -> tuple[dict[bytes, Result | DynamoError], list[Request]]:
    return answered(many.get_many(PLACE, keys), node)


def put_many(node: Node, values: dict[bytes, bytes] | None = None) -> tuple[dict[bytes, Context | DynamoError], list[Request]]:
    numbers = count()
    values = dict.fromkeys(KEYS, b"v") if values is None else values
    return answered(many.put_many(PLACE, values, None, MODE_PUT, lambda: b"%016d" % next(numbers)), node)


def each(kind: int, reply: Callable[[bytes], Message]) -> Callable[[Request], Message]:
    """A node that answers each key with what `reply` says."""
    return lambda request: (kind, 1, tuple(reply(entry if isinstance(entry, bytes) else entry[0]) for entry in request.fields[1]))


LEFT_OUT = error(ValueTooLarge.code)


def asked(requests: list[Request]) -> list[list[bytes]]:
    return [[entry if isinstance(entry, bytes) else entry[0] for entry in request.fields[1]] for request in requests]


# --- answers that do not fit ------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 12))
def test_what_was_left_out_is_asked_for_again_in_parts_that_fit(total: int, room: int) -> None:
    def node(request: Request) -> Message:
        replies = [get_reply(key) if i < room else LEFT_OUT for i, key in enumerate(request.fields[1])]
        return (m.GET_MANY_REPLY, 1, tuple(replies))

    keys = [b"k%d" % i for i in range(total)]
    found, requests = get_many(node, keys)
    assert [result.value for result in found.values()] == keys == list(found)
    assert len(requests) <= 1 + -(-total // room), "after the first answer the node is asked for as much as fits"


def test_one_answer_that_fits_into_no_frame_is_the_error_of_its_key() -> None:
    found, requests = get_many(lambda request: ValueTooLarge("the answer") if len(request.fields[1]) == 1 else each(22, lambda key: LEFT_OUT)(request))
    assert all(isinstance(outcome, ValueTooLarge) for outcome in found.values()) and len(requests) == 1 + len(KEYS)


def test_a_write_whose_answer_was_left_out_is_repeated_by_its_operation_id() -> None:
    def node(request: Request) -> Message:
        replies = [put_reply() if i < 4 else error(ValueTooLarge.code, maybe_applied=True) for i in range(len(request.fields[1]))]
        return (m.PUT_MANY_REPLY, 1, tuple(replies))

    done, requests = put_many(node)
    assert all(isinstance(outcome, Context) for outcome in done.values()) and len(requests) == 3
    operations = [{entry[0]: entry[3] for entry in request.fields[1]} for request in requests]
    assert operations[1].items() <= operations[0].items() and operations[2].items() <= operations[0].items()


def test_a_value_that_is_too_large_is_not_asked_again() -> None:
    done, requests = put_many(each(m.PUT_MANY_REPLY, lambda key: LEFT_OUT))
    assert all(isinstance(outcome, ValueTooLarge) and not outcome.maybe_applied for outcome in done.values()) and len(requests) == 1


def test_requests_are_bounded_in_keys_and_in_bytes() -> None:
    values = {b"k%d" % i: bytes(i * 37_000) for i in range(200)} | {b"huge": bytes(many.REQUEST_BYTES * 2)}
    done, requests = put_many(each(m.PUT_MANY_REPLY, lambda key: put_reply()), values)
    assert set(done) == set(values) and sum(len(request.fields[1]) for request in requests) == len(values)
    for request in requests:
        sizes = [len(entry[1]) for entry in request.fields[1]]
        assert len(sizes) <= many.KEYS_PER_REQUEST and (len(sizes) == 1 or sum(sizes) <= many.REQUEST_BYTES)


# --- errors -----------------------------------------------------------------------------------------------------------------------------


def test_keys_that_another_node_may_serve_are_asked_of_another_one() -> None:
    def node(request: Request) -> Message:
        if request.elsewhere:
            return each(m.GET_MANY_REPLY, get_reply)(request)
        return each(m.GET_MANY_REPLY, lambda key: error({b"k1": 1, b"k2": 8, b"k3": 3}.get(key, 0)) if key in KEYS[1:4] else get_reply(key))(request)

    found, requests = get_many(node)
    assert asked(requests) == [KEYS, KEYS[1:3]] and [request.elsewhere for request in requests] == [False, True]
    assert isinstance(found[b"k3"], InvalidContext) and {found[key].value for key in KEYS[1:3]} == set(KEYS[1:3])


def test_without_another_node_the_first_errors_stand() -> None:
    found, requests = get_many(lambda request: Unavailable("no other") if request.elsewhere else each(22, lambda key: error(8))(request))
    assert all(isinstance(outcome, CorruptRecord) for outcome in found.values()) and len(requests) == 2


def test_a_request_that_failed_as_a_whole_concerns_its_keys_alone() -> None:
    keys = [b"k%d" % i for i in range(300)]
    found, requests = get_many(lambda request: Timeout("slow") if keys[0] in request.fields[1] else each(22, get_reply)(request), keys)
    assert [isinstance(found[key], Timeout) for key in keys] == [True] * 128 + [False] * 172 and len(requests) == 3


@pytest.mark.parametrize("later", [Unavailable("u", maybe_applied=False), ConnectionFailed("c", maybe_applied=False)])
@pytest.mark.parametrize("code", [ValueTooLarge.code, Unavailable.code, CorruptRecord.code])
def test_what_may_have_been_applied_once_is_never_denied(code: int, later: DynamoError) -> None:
    """The first node leaves k0 unanswered, or fails with it; what comes after knows nothing of that."""
    failing = each(m.PUT_MANY_REPLY, lambda key: error(code, maybe_applied=True) if key == b"k0" else put_reply())
    replies = iter([failing])
    done, requests = put_many(lambda request: next(replies, lambda _: later)(request))
    assert len(requests) == 2 and isinstance(done[b"k0"], DynamoError) and done[b"k0"].maybe_applied
    assert all(isinstance(done[key], Context) for key in KEYS[1:]) and not later.maybe_applied


def test_maybe_applied_comes_from_the_other_nodes_too() -> None:
    lost = ConnectionFailed("lost", maybe_applied=True)
    done, _ = put_many(lambda request: lost if request.elsewhere else each(26, lambda key: error(1))(request))
    assert all(isinstance(outcome, Unavailable) and outcome.maybe_applied for outcome in done.values())


def test_another_number_of_answers_than_keys_is_a_protocol_error() -> None:
    done, _ = put_many(lambda request: (m.PUT_MANY_REPLY, 1, (put_reply(),)))
    assert all(isinstance(outcome, ProtocolError) and outcome.maybe_applied for outcome in done.values())


# --- scans ------------------------------------------------------------------------------------------------------------------------------


def pages(scan: Scan, node: Node) -> tuple[list[bytes], list[Request]]:
    keys, requests = [], []
    while not scan.done:
        page, asked_for = answered(scan.page(), node)
        keys += [result.key for result in page]
        requests += asked_for
    return keys, requests


def test_a_scan_goes_from_page_to_page_and_asks_for_no_more_than_is_wanted() -> None:
    replies = iter([scan_reply((b"a", b"1"), (b"b", b"2"), cursor=b"one"), scan_reply(cursor=b"two"), scan_reply((b"c", b"3"), (b"d", b"4"))])
    keys, requests = pages(Scan(PLACE, "p", 3, None), lambda request: next(replies))
    assert keys == [b"a", b"b", b"c"], "a node that gives more than asked is not taken at its word"
    assert [request.fields for request in requests] == [(b"b", b"p", b"", 3), (b"b", b"p", b"one", 1), (b"b", b"p", b"two", 1)]
    replies = iter([scan_reply((b"a", b"1"), cursor=b"one"), scan_reply()])
    assert pages(Scan(PLACE, b"", None, None), lambda request: next(replies))[1][0].fields == (b"b", b"", b"", 0)


def test_a_page_that_failed_can_be_asked_for_again() -> None:
    scan = Scan(PLACE, b"", None, None)
    answered(scan.page(), lambda request: scan_reply((b"a", b"1"), cursor=b"one"))
    with pytest.raises(Timeout):
        answered(scan.page(), lambda request: Timeout("slow"))
    page, requests = answered(scan.page(), lambda request: scan_reply((b"b", b"2")))
    assert [result.key for result in page] == [b"b"] and requests[0].fields[2] == b"one" and scan.done


def test_cursors_are_taken_as_text_and_as_its_bytes_and_no_other_way() -> None:
    page, _ = answered(Scan(PLACE, b"", None, None).page(), lambda request: scan_reply((b"a", b"1")))
    assert page[0].cursor is not None and page[0].owners_answered == 2
    for given_back in (page[0].cursor, page[0].cursor.encode()):
        _, requests = answered(Scan(PLACE, b"", None, given_back).page(), lambda request: scan_reply())
        assert requests[0].fields[2] == b"behind a"
    for altered in ("!", page[0].cursor + "=", b"\xff", "é"):
        with pytest.raises(InvalidRequest):
            Scan(PLACE, b"", None, altered)
    with pytest.raises(TypeError):
        Scan(PLACE, b"", None, 5)  # type: ignore[arg-type]


def test_a_node_that_sends_a_scan_in_circles_is_found_out() -> None:
    scan = Scan(PLACE, b"", None, None)
    answered(scan.page(), lambda request: scan_reply(cursor=b"one"))
    with pytest.raises(ProtocolError):
        answered(scan.page(), lambda request: scan_reply(cursor=b"one"))
