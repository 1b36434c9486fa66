"""The retry policy without a socket: where a request is tried, for how long, and what its final error says."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.client.addresses import parse_addresses
from dynamo.client.core import Attempts, Nodes, Request, RetryPolicy
from dynamo.errors import (
    ConfigError,
    ConnectionFailed,
    CorruptRecord,
    DynamoError,
    InvalidContext,
    InvalidRequest,
    ProtocolError,
    StorageFull,
    Timeout,
    TooManySiblings,
    Unavailable,
)
from dynamo.model import messages as m
from dynamo.replication import Settings

POLICY = RetryPolicy(attempt_timeout_s=1.0)
GET = Request(m.GET, (b"b", b"k", 0, 0), m.GET_REPLY)
PUT = Request(m.PUT, (b"b", b"k", b"v", None, 0, 0, 0), m.PUT_REPLY, after=(b"o" * 16,), writes=True)


def attempts(request: Request = GET, addresses: str = "abc", deadline: float = 5.0) -> Attempts:
    return Attempts(request, list(addresses), POLICY, deadline)


def error_reply(error: DynamoError) -> m.Message:
    return m.error_message(1, error.code, str(error), error.maybe_applied, getattr(error, "required", 0), getattr(error, "received", 0))


def test_a_message_has_its_time_where_its_shape_wants_it() -> None:
    assert GET.message(9, 800) == (m.GET, 9, b"b", b"k", 0, 0, 800)
    assert PUT.message(9, 800)[-2:] == (800, b"o" * 16)
    assert Request(m.CLUSTER_STATUS, (), m.CLUSTER_STATUS_REPLY, timed=False).message(9, 800) == (m.CLUSTER_STATUS, 9)


@pytest.mark.parametrize("fields", [(b"b", b"k", 256, 0), (b"b", b"k", -1, 0), ("b", b"k", 0, 0), (b"b", b"k", 0)])
def test_what_no_node_takes_is_no_request(fields: tuple[Any, ...]) -> None:
    # A node ends the connection it comes on, and with it the requests of everybody who shares it.
    with pytest.raises(InvalidRequest):
        Request(m.GET, fields, m.GET_REPLY)


@pytest.mark.parametrize("remaining", [61.0, 5e6, 1e12])
def test_a_node_is_never_told_more_time_than_it_takes(remaining: float) -> None:
    assert attempts(addresses="a", deadline=remaining).next(0.0).time_ms == m.TIME_MS_MAX == int(Settings().request_time_s_max * 1000)


@pytest.mark.parametrize("addresses", ["a:1,b:2", "dynamo://a:1,b:2", "dynamo://a:1,dynamo://b:2/", ["dynamo://a:1", " b:2 "], ("a:1,b:2", "a:1")])
def test_addresses_come_in_many_forms(addresses: Any) -> None:
    assert parse_addresses(addresses) == ("a:1", "b:2")


@pytest.mark.parametrize("addresses", [None, 5, [5], ["a:1", None], b"a:1", [b"a:1"], {"a:1": 5}.items()])
def test_what_is_no_address_is_a_type_error_that_says_so(addresses: Any) -> None:
    with pytest.raises(TypeError, match="host:port"):
        parse_addresses(addresses)


@pytest.mark.parametrize("addresses", ["", " , ", [], "a:x", "http://a:1", "a:1/db", "a:0", "::1:7"])
def test_what_can_be_no_address_is_a_config_error(addresses: Any) -> None:
    with pytest.raises(ConfigError):
        parse_addresses(addresses)


def test_every_address_is_tried_and_then_the_error_tells_of_all() -> None:
    trying = attempts()
    for address in "abc":
        assert trying.next(0.0).address == address
        trying.failed(address, ConnectionFailed(f"{address} refused"))
    with pytest.raises(ConnectionFailed, match=r"a refused.*b refused.*c refused") as raised:
        trying.next(0.0)
    assert not raised.value.maybe_applied


def test_no_address_and_no_error_is_told_twice() -> None:
    trying = Attempts(GET, ["h:1", "h:2"], RetryPolicy(), 5.0)
    for _ in range(2):
        trying.failed(trying.next(0.0).address, ConnectionFailed("h:1: Connection refused"), stale=True)
    trying.answered("h:2", error_reply(Unavailable("needed 2 nodes, had 1", required=2, received=1)))
    trying.failed("h:1", Timeout("h:1 did not answer in time"))
    with pytest.raises(Unavailable) as raised:
        trying.next(6.0)
    assert str(raised.value) == "h:2: needed 2 nodes, had 1; h:1: Connection refused; h:1 did not answer in time"


def test_one_silent_node_leaves_time_for_the_others_and_gets_what_is_left() -> None:
    trying, now, waits = attempts(), 0.0, []
    while now < 5.0:
        attempt = trying.next(now)
        waits.append((attempt.address, attempt.wait_s))
        silent = attempt.address == "a"  # the others refuse at once
        now += attempt.wait_s if silent else 0.0
        trying.failed(attempt.address, Timeout("silent") if silent else ConnectionFailed("gone"))
    assert waits == [("a", 1.0), ("b", 1.0), ("c", 1.0), ("a", 4.0)]
    with pytest.raises(Timeout):
        trying.next(now)


def test_a_single_address_gets_all_the_time_at_once_and_a_short_time_is_shared() -> None:
    assert attempts(addresses="a").next(1.0).wait_s == 4.0
    assert attempts(deadline=0.4).next(0.0).wait_s == 0.2


@given(st.floats(0.001, 100.0))
def test_the_node_gives_up_before_its_client_does(remaining: float) -> None:
    attempt = attempts(addresses="a", deadline=remaining).next(0.0)
    assert 1 <= attempt.time_ms <= max(1.0, remaining * 1000)


@pytest.mark.parametrize("error", [Unavailable("u", required=2, received=1), StorageFull("full"), CorruptRecord("bad"), Timeout("slow")])
def test_what_another_node_may_not_suffer_from_is_tried_there(error: DynamoError) -> None:
    trying = attempts()
    assert trying.answered(trying.next(0.0).address, error_reply(error)) is None
    reply = (m.GET_REPLY, 1, 1, 1, 3, b"", ())
    assert trying.next(0.1).address == "b"
    assert trying.answered("b", reply) is reply


@pytest.mark.parametrize("error", [InvalidContext("forged"), TooManySiblings("many")])
def test_what_is_the_requests_own_fault_is_raised_at_once(error: DynamoError) -> None:
    trying = attempts(PUT)
    trying.next(0.0)
    with pytest.raises(type(error), match=str(error)):
        trying.answered("a", error_reply(error))


def test_what_a_node_said_tells_more_than_what_was_seen_of_the_others() -> None:
    trying = attempts()
    trying.failed(trying.next(0.0).address, ConnectionFailed("gone"))
    trying.answered(trying.next(0.0).address, error_reply(Unavailable("u", required=2, received=1)))
    trying.failed(trying.next(0.0).address, ConnectionFailed("gone"))
    with pytest.raises(Unavailable) as raised:
        trying.next(0.1)
    assert (raised.value.required, raised.value.received) == (2, 1)


def test_a_reply_of_another_type_is_not_taken_for_an_answer() -> None:
    trying = attempts(PUT, "a")
    trying.next(0.0)
    assert trying.answered("a", (m.GET_REPLY, 1, 1, 1, 3, b"", ())) is None
    with pytest.raises(ProtocolError) as raised:
        trying.next(0.1)
    assert raised.value.maybe_applied


def test_a_stale_connection_costs_no_attempt_but_counts_as_perhaps_applied() -> None:
    trying = attempts(PUT, "a")
    trying.next(0.0)
    trying.failed("a", ConnectionFailed("reset", maybe_applied=True), stale=True)
    assert trying.next(0.0).address == "a"
    trying.failed("a", ConnectionFailed("refused"))
    with pytest.raises(ConnectionFailed) as raised:
        trying.next(0.0)
    assert raised.value.maybe_applied


@given(st.lists(st.tuples(st.sampled_from(["seen", "told"]), st.booleans()), min_size=1, max_size=6), st.booleans())
def test_maybe_applied_is_the_or_over_all_attempts_of_a_write(met: list[tuple[str, bool]], writes: bool) -> None:
    trying = attempts(PUT if writes else GET, "abcdef"[: len(met)])
    for how, applied in met:
        address = trying.next(0.0).address
        if how == "seen":
            trying.failed(address, ConnectionFailed("broke", maybe_applied=applied))
        else:
            trying.answered(address, error_reply(Unavailable("u", required=2, maybe_applied=applied)))
    with pytest.raises(DynamoError) as raised:
        trying.next(0.0)
    assert raised.value.maybe_applied == (writes and any(applied for _, applied in met))


def test_attempts_end_however_many_addresses_there_are() -> None:
    trying = attempts(addresses="abcdefghijkl")
    with pytest.raises(ConnectionFailed):
        for _ in range(POLICY.attempts_max + 1):
            trying.failed(trying.next(0.0).address, ConnectionFailed("gone"))


def nodes(addresses: str = "abc") -> Nodes:
    return Nodes(list(addresses), RetryPolicy(down_s=1.0, down_s_max=8.0), Random(1))


def test_load_is_spread_over_the_nodes_that_work() -> None:
    known = nodes()
    assert {known.order(0.0)[0] for _ in range(50)} == set("abc")


def test_a_node_that_failed_comes_last_until_one_request_may_go_and_see() -> None:
    known = nodes()
    known.failed("b", 0.0)
    assert {known.order(0.4)[-1] for _ in range(20)} == {"b"}
    first = 0
    for _ in range(20):  # after its time it is tried first by one request, and by no other until that one has come back
        first += known.order(1.6)[0] == "b"
    assert first == 1
    known.succeeded("b")
    assert {known.order(1.6)[0] for _ in range(50)} == set("abc")


def down_for(known: Nodes, now: float) -> float:
    """How long after `now` node a of a and b is first tried in front again."""
    steps = (step / 4 for step in range(400) for _ in range(10))  # ten draws each: the order of nodes that work is random
    return next(step for step in steps if known.order(now + step)[0] == "a")


def test_a_node_that_keeps_failing_is_left_alone_longer_up_to_a_limit() -> None:
    known, now, spans = nodes("ab"), 0.0, []
    for _ in range(8):
        known.failed("a", now)
        spans.append(down_for(known, now))
        now += spans[-1]
    assert spans[0] <= 1.75 and max(spans) <= 12.25 and all(span >= 3.5 for span in spans[4:])


def test_failures_of_requests_that_were_under_way_together_count_once() -> None:
    known = nodes("ab")
    for _ in range(10):
        known.failed("a", 0.0)
    assert down_for(known, 0.0) <= 1.75


# --- nodes that are busy ----------------------------------------------------------------------------------------------------------------

BUSY = error_reply(Unavailable("busy"))


def test_a_request_goes_on_to_the_next_node_at_once_and_when_all_are_busy_after_pauses_that_double() -> None:
    trying, now, tried, pauses = attempts(PUT, "abc", deadline=5.0), 0.0, "", []
    with pytest.raises(Unavailable) as raised:
        for _ in range(100):
            attempt = trying.next(now)
            now += attempt.pause_s
            tried += attempt.address
            pauses.append(attempt.pause_s)
            assert 0 < attempt.wait_s <= 5.0 - now
            assert trying.answered(attempt.address, BUSY) is None
            assert trying.was_busy
    assert tried.startswith("abcabcabc") and raised.value.busy and not raised.value.maybe_applied
    assert pauses[:8] == [0, 0, 0, 0.02, 0.04, 0.08, 0.16, 0.32]
    assert max(pauses) == POLICY.busy_pause_s_max and 3.0 < now < 5.0
    assert str(raised.value).count("busy") <= 3


@pytest.mark.parametrize("chance", [0.0, 0.99])
def test_requests_that_were_refused_together_do_not_come_back_together(chance: float) -> None:
    trying = Attempts(GET, ["a"], POLICY, 5.0, chance)
    trying.answered(trying.next(0.0).address, BUSY)
    attempt = trying.next(0.0)
    assert (attempt.address, attempt.pause_s) == ("a", pytest.approx(0.02 * (0.5 + chance)))
    assert attempt.wait_s == pytest.approx(5.0 - attempt.pause_s)


def test_a_busy_node_is_asked_again_where_others_are_gone_and_answers() -> None:
    trying = attempts(GET, "ab")
    trying.answered(trying.next(0.0).address, BUSY)
    trying.failed(trying.next(0.0).address, ConnectionFailed("gone"))
    assert trying.next(0.0).address == "a"
    reply = (m.GET_REPLY, 1, 1, 1, 3, b"", (), ())
    assert trying.answered("a", reply) == reply and not trying.was_busy


def test_too_few_nodes_is_not_busy() -> None:
    trying = attempts(GET, "a")
    trying.answered(trying.next(0.0).address, error_reply(Unavailable(required=2, received=1)))
    assert not trying.was_busy
    with pytest.raises(Unavailable) as raised:
        trying.next(0.0)
    assert not raised.value.busy
