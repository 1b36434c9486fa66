"""The protocols of the load generator, without a socket."""

from __future__ import annotations

import json
import sys
from base64 import b64decode
from importlib.util import find_spec

import pytest

from dynamo.bench.protocols import PEERS, DynamoTalk, EtcdTalk, MemcachedTalk, RedisTalk
from dynamo.bench.protocols.own import CONTEXTS_MAX
from dynamo.bench.workloads import INSERT, MODIFY, READ, SCAN, UPDATE, key_of
from dynamo.errors import ConfigError, ProtocolError
from dynamo.model import messages as m
from dynamo.wire.frames import FrameDecoder, encode, encode_all
from dynamo.wire.messages import check

needs_h11 = pytest.mark.skipif(find_spec("h11") is None, reason="h11 is not installed (the extra `etcd`)")


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


def http(body: bytes, status: bytes = b"200 OK", more: bytes = b"") -> bytes:
    """An answer of a web server, as etcd frames those that succeed."""
    return b"HTTP/1.1 %b\r\nContent-Type: application/json\r\n%bContent-Length: %d\r\n\r\n%b" % (status, more, len(body), body)


def chunked(body: bytes, status: bytes) -> bytes:
    """Likewise, as it frames its errors."""
    chunks = b"%x\r\n%b\r\n0\r\nGrpc-Trailer-Content-Type: application/grpc\r\n\r\n" % (len(body), body)
    return b"HTTP/1.1 %b\r\nTrailer: Grpc-Trailer-Content-Type\r\nTransfer-Encoding: chunked\r\n\r\n%b" % (status, chunks)


HEADER = b'"header":{"cluster_id":"16669793395648480238","revision":"2"}'
MISSING = STORED = http(b"{%b}" % HEADER)
FOUND = http(b'{%b,"kvs":[{"key":"a2V5","version":"1","value":"dmFsdWU="}],"count":"1"}' % HEADER)
REFUSED = chunked(b'{"error":"etcdserver: mvcc: database space exceeded","code":8}', b"429 Too Many Requests")


def test_redis_answers_in_any_pieces() -> None:
    answers = b"$3\r\na\r\n\r\n$-1\r\n+OK\r\n-ERR no\r\n$0\r\n\r\n"
    for cut in range(len(answers) + 1):
        t = RedisTalk("h:1", b"value")
        sent = t.encode([(0, READ, 1), (1, READ, 2), (2, UPDATE, 3), (3, INSERT, 4), (4, READ, 5)])
        assert sent.startswith(b"*2\r\n$3\r\nGET\r\n$13\r\nkey0000000001\r\n") and b"SET\r\n$13\r\nkey0000000003\r\n$5\r\nvalue\r\n" in sent
        first, failed, _ = t.feed(answers[:cut])
        second, also, _ = t.feed(answers[cut:])
        assert first + second == [0, 1, 2, 4] and failed + also == [3]
        assert (t.reads, t.siblings, t.errors) == (3, 2, {"ERR no": 1})


def test_memcached_answers_in_any_pieces() -> None:
    refused = b"SERVER_ERROR out of memory storing object\r\n"
    answers = b"VALUE key0000000001 0 5\r\nEND\r\n\r\nEND\r\nEND\r\nSTORED\r\n%bVALUE key0000000005 0 0\r\n\r\nEND\r\n" % refused
    for cut in range(len(answers) + 1):
        t = MemcachedTalk("h:1", b"value")
        sent = t.encode([(0, READ, 1), (1, READ, 2), (2, UPDATE, 3), (3, INSERT, 4), (4, READ, 5)])
        assert sent.startswith(b"get key0000000001\r\nget key0000000002\r\nset key0000000003 0 0 5\r\nvalue\r\n")
        first, failed, _ = t.feed(answers[:cut])
        second, also, _ = t.feed(answers[cut:])
        assert first + second == [0, 1, 2, 4] and failed + also == [3]
        assert (t.reads, t.siblings, t.errors) == (3, 2, {"SERVER_ERROR out of memory storing object": 1})


@needs_h11
def test_etcd_is_asked_over_http() -> None:
    t = EtcdTalk("h:1", b"value")
    for operation, path, fields in (
        (READ, b"range", {"key": b"key0000000001"}), (UPDATE, b"put", {"key": b"key0000000001", "value": b"value"}),
        (INSERT, b"put", {"key": b"key0000000001", "value": b"value"}),
    ):  # fmt: skip
        head, _, body = t.encode([(0, operation, 1)]).partition(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        assert lines[0] == b"post /v3/kv/%b http/1.1" % path and {b"host: h:1", b"content-length: %d" % len(body)} <= set(lines)
        assert {name: b64decode(value) for name, value in json.loads(body).items()} == fields
        assert t.feed(MISSING) == ([0], [], b"")


@needs_h11
def test_etcd_answers_in_any_pieces() -> None:
    rounds = [(READ, FOUND), (READ, MISSING), (UPDATE, STORED), (INSERT, REFUSED), (READ, FOUND)]
    for cut in range(max(len(answer) for _, answer in rounds)):
        t = EtcdTalk("h:1", b"value")
        done: list[int] = []
        failed: list[int] = []
        for slot, (operation, answer) in enumerate(rounds):
            t.encode([(slot, operation, slot)])
            for piece in filter(None, (answer[:cut], answer[cut:])):
                these, those, more = t.feed(piece)
                done += these
                failed += those
                assert not more
        assert done == [0, 1, 2, 4] and failed == [3] and (t.reads, t.siblings) == (3, 2)
        assert t.errors == {'HTTP 429: {"error":"etcdserver: mvcc: database space exceeded","code":8}': 1}


@needs_h11
def test_a_value_of_no_bytes_is_one() -> None:
    """JSON leaves out what is empty, as protobuf does."""
    t = EtcdTalk("h:1", b"")
    t.encode([(0, READ, 1)])
    assert t.feed(http(b'{%b,"kvs":[{"key":"a2V5","version":"1"}],"count":"1"}' % HEADER)) == ([0], [], b"")
    assert t.siblings == 1


def test_without_h11_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h11", None)
    with pytest.raises(ConfigError, match=r"pip install 'dynamo-kv\[etcd\]'"):
        EtcdTalk("h:1", b"")


FOUND_STORED = {"redis": (b"$1\r\nx\r\n", b"+OK\r\n"), "memcached": (b"VALUE k 0 1\r\nx\r\nEND\r\n", b"STORED\r\n"), "etcd": (FOUND, STORED)}
MARKS = {"redis": [], "memcached": [], "etcd": [needs_h11]}
each_peer = pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS[name]) for name in PEERS])


@each_peer
def test_peers_read_before_they_write(name: str) -> None:
    found, stored = FOUND_STORED[name]
    t = PEERS[name]("h:1", b"value")
    assert t.greeting() == b"" and t.greeted(b"")
    read = t.encode([(0, READ, 1)])
    assert t.feed(found) == ([0], [], b"")
    assert t.encode([(0, MODIFY, 1)]) == read
    done, failed, more = t.feed(found)
    assert done == failed == [] and t.feed(stored) == ([0], [], b"") and (t.reads, t.siblings) == (2, 2)
    assert t.encode([(0, UPDATE, 1)]) == more


def test_what_was_read_is_written_behind_what_was_asked_meanwhile() -> None:
    for name in ("redis", "memcached"):
        found, stored = FOUND_STORED[name]
        t = PEERS[name]("h:1", b"value")
        t.encode([(0, MODIFY, 1), (1, READ, 2)])
        done, failed, more = t.feed(found + found)
        assert done == [1] and not failed and more
        assert t.feed(stored) == ([0], [], b"")


@each_peer
def test_scans_of_peers_do_not_compare(name: str) -> None:
    with pytest.raises(ValueError, match="no scan"):
        PEERS[name]("h:1", b"").encode([(0, SCAN, 1)])


@each_peer
def test_an_answer_that_nobody_asked_for(name: str) -> None:
    for answer in FOUND_STORED[name]:
        with pytest.raises(ProtocolError):
            PEERS[name]("h:1", b"").feed(answer)
        t = PEERS[name]("h:1", b"")
        t.encode([(0, READ, 1)])
        with pytest.raises(ProtocolError):
            t.feed(FOUND_STORED[name][0] + answer)


MALFORMED = {
    "redis": [b"?\r\n", b"\r\n", b":1\r\n", b"$x\r\n", b"$-2\r\n", b"$1\r\nxyz", b"+OK\r\n"],
    "memcached": [
        b"?\r\n", b"\r\n", b"VALUE\r\n", b"VALUE k 0 x\r\n", b"VALUE k 0 -1\r\n", b"VALUE k 0 1\r\nxyzEND\r\n", b"VALUE k 0 1\r\nx\r\nVALUE", b"STORED\r\n",
    ],
    "etcd": [
        b"?\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n\r\n", http(b"{"), http(b"[]"), http(b"{}"), http(b'{"header":1}'), http(b'{%b,"kvs":1}' % HEADER),
        http(b'{%b,"kvs":[{},{}]}' % HEADER), http(b'{%b,"kvs":[1]}' % HEADER), http(b"\xff"), http(b"{%b}" % HEADER, more=b"Connection: close\r\n"),
        FOUND.replace(b"Content-Length: ", b"Content-Length: x"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "answer"), [pytest.param(name, answer, marks=MARKS[name]) for name in PEERS for answer in MALFORMED[name]])
def test_what_is_no_answer_to_a_read(name: str, answer: bytes) -> None:
    t = PEERS[name]("h:1", b"value")
    t.encode([(0, READ, 1)])
    with pytest.raises(ProtocolError):
        t.feed(answer)


@pytest.mark.parametrize("name", ["redis", "memcached"])
def test_a_value_is_no_answer_to_a_write(name: str) -> None:
    t = PEERS[name]("h:1", b"value")
    t.encode([(0, UPDATE, 1)])
    with pytest.raises(ProtocolError):
        t.feed(FOUND_STORED[name][0])
