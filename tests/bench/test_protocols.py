"""The two protocols of the load generator, without a socket."""

from __future__ import annotations

import pytest

from dynamo.bench.protocols import CONTEXTS_MAX, DynamoTalk, RedisTalk
from dynamo.bench.workloads import INSERT, MODIFY, READ, SCAN, UPDATE, key_of
from dynamo.errors import ProtocolError
from dynamo.model import messages as m
from dynamo.wire.frames import FrameDecoder, encode, encode_all
from dynamo.wire.messages import check


def asked(data: bytes) -> list[m.Message]:
    """The requests in what a talk sends; each is one a node takes."""
    messages = FrameDecoder().feed(data)
    for message in messages:
        check(message, m.ROLE_CLIENT)
    return messages


def talk() -> DynamoTalk:
    return DynamoTalk("h:1", b"v" * 9, operation_prefix=b"8 bytes!", r=2, w=3)


def got(slot: int, context: bytes, siblings: int = 1) -> m.Message:
    return (m.GET_REPLY, slot, 1, 7, 3, context, ((b"v", 1, 1, 0),) * siblings, ())


def put(slot: int, context: bytes) -> m.Message:
    return (m.PUT_REPLY, slot, 1, 7, context, 1, 2, 0, 3, 3)


def test_a_write_carries_the_last_context_of_its_key() -> None:
    t = talk()
    (first,) = asked(t.encode([(0, UPDATE, 5)]))
    assert first[2:9] == (b"default", key_of(5), b"v" * 9, None, m.MODE_SET, 3, 0)
    assert t.feed(encode(put(0, b"one"))) == ([0], [], b"")
    (second,) = asked(t.encode([(0, UPDATE, 5)]))
    assert second[5:7] == (b"one", m.MODE_PUT)
    asked(t.encode([(1, READ, 5)]))
    assert t.feed(encode_all([got(1, b"two", 3), put(0, b"three")])) == ([1, 0], [], b"")
    (third,) = asked(t.encode([(0, UPDATE, 5)]))
    assert third[5] == b"three" and (t.reads, t.siblings) == (1, 3)
    assert len({message[-1] for message in (first, second, third)}) == 3  # operation ids


def test_a_read_modify_write_writes_what_it_was_shown() -> None:
    t = talk()
    (read,) = asked(t.encode([(4, MODIFY, 5)]))
    assert read[:4] == (m.GET, 4, b"default", key_of(5)) and read[4] == 2
    done, failed, more = t.feed(encode(got(4, b"context")))
    (write,) = asked(more)
    assert done == failed == [] and write[0] == m.PUT and write[1] == 4 and write[5] == b"context"
    assert t.feed(encode(put(4, b"new"))) == ([4], [], b"")


def test_scans_go_on_where_the_last_one_ended() -> None:
    t = talk()
    (first,) = asked(t.encode([(0, SCAN, 7)]))
    assert first[4] == b"" and 1 <= first[5] <= 100
    t.feed(encode((m.SCAN_REPLY, 0, 1, 7, (), b"cursor", 3)))
    (second,) = asked(t.encode([(0, SCAN, 7)]))
    assert second[4] == b"cursor" and second[5] != first[5]


def test_errors_are_counted_and_end_their_operation() -> None:
    t = talk()
    t.encode([(2, MODIFY, 1), (3, READ, 1)])
    busy = m.error_message(2, 2, "too few nodes", False, 2, 1)
    assert t.feed(encode_all([busy, (busy[0], 3, *busy[2:])]))[1] == [2, 3]
    assert list(t.errors.values()) == [2]
    asked(t.encode([(2, READ, 1)]))
    assert t.feed(encode(got(2, b"c"))) == ([2], [], b"")  # no write is left over
    with pytest.raises(ProtocolError):
        t.feed(encode((m.STATS_REPLY, 0, b"")))


def test_contexts_are_bounded() -> None:
    t = talk()
    for number in range(CONTEXTS_MAX + 10):
        t.encode([(0, READ, number)])
        t.feed(encode(got(0, b"c")))
    assert len(t._contexts) == CONTEXTS_MAX and key_of(9) not in t._contexts and key_of(10) in t._contexts


def test_redis_answers_in_any_pieces() -> None:
    answers = b"$3\r\na\r\n\r\n$-1\r\n+OK\r\n-ERR no\r\n$0\r\n\r\n"
    for cut in range(len(answers) + 1):
        t = RedisTalk(b"value")
        sent = t.encode([(0, READ, 1), (1, READ, 2), (2, UPDATE, 3), (3, INSERT, 4), (4, READ, 5)])
        assert sent.startswith(b"*2\r\n$3\r\nGET\r\n$13\r\nkey0000000001\r\n") and b"SET\r\n$13\r\nkey0000000003\r\n$5\r\nvalue\r\n" in sent
        first, failed, _ = t.feed(answers[:cut])
        second, also, _ = t.feed(answers[cut:])
        assert first + second == [0, 1, 2, 4] and failed + also == [3]
        assert (t.reads, t.siblings, t.errors) == (3, 2, {"ERR no": 1})


def test_redis_reads_before_it_writes() -> None:
    t = RedisTalk(b"value")
    t.encode([(0, MODIFY, 1), (1, READ, 2)])
    done, failed, more = t.feed(b"$1\r\nx\r\n$1\r\ny\r\n")
    assert done == [1] and not failed and b"SET" in more
    assert t.feed(b"+OK\r\n") == ([0], [], b"")
    with pytest.raises(ProtocolError):
        t.feed(b"?\r\n")


def test_redis_scans_do_not_compare() -> None:
    with pytest.raises(ValueError, match="no scan"):
        RedisTalk(b"").encode([(0, SCAN, 1)])
