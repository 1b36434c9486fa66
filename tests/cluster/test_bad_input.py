"""A door that stays shut to nonsense: whatever arrives at a real node, its sender gets a typed error or a clean close, and nobody else notices.

One node process takes all of it. After each test it is still that process, has logged no traceback, serves a client that was connected all the
time, holds what that client wrote, and has never used much more memory than at rest.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import dynamo
from dynamo import errors
from dynamo.model import messages as m
from dynamo.replication import tokens
from dynamo.testing.cluster import ServedCluster, ServedNode
from dynamo.wire.documents import decode_document
from dynamo.wire.frames import ANSWER_ELEMENTS_MAX, FRAME_BYTES_MAX, FrameDecoder, encode
from dynamo.wire.hello import TREE_SHAPE, Hello, client_hello, message_of, sign

MEBIBYTE = 1 << 20
WAIT_S = 20.0
# Of one test: a frame of the largest size, what it decodes to, 16 MiB of answers to who does not read, and what malloc keeps.
GROWTH_BYTES_MAX = 96 * MEBIBYTE
ME = b"m" * 16
Message = tuple[Any, ...]


class Raw:
    """A connection that says what it is told to."""

    def __init__(self, address: str, hello: Message | None = None) -> None:
        """With a `hello`, it is sent and has to be accepted."""
        host, port = address.rsplit(":", 1)
        self.sock = socket.create_connection((host, int(port)), timeout=WAIT_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._decoder = FrameDecoder(elements_max=ANSWER_ELEMENTS_MAX)
        self._messages: list[Message] = []
        if hello is not None:
            self.hello = self.ask(hello)
            assert self.hello[0] == m.HELLO_REPLY, self.hello

    def send(self, *messages: Message) -> None:
        self.sock.sendall(b"".join(map(encode, messages)))

    def receive(self) -> Message | None:
        """The next message; None at the end, also where it is a reset."""
        while not self._messages:
            try:
                data = self.sock.recv(1 << 20)
            except ConnectionError:
                return None
            if not data:
                return None
            self._messages += self._decoder.feed(data)
        return self._messages.pop(0)

    def ask(self, message: Message) -> Any:
        self.send(message)
        return self.receive()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


def greeted(address: str) -> Raw:
    return Raw(address, client_hello())


def get(key: bytes, number: int = 1, bucket: bytes = b"default", r: int = 0, time_ms: int = 5000) -> Message:
    return (m.GET, number, bucket, key, r, 0, time_ms)


def put(
    key: bytes, value: bytes | None = b"v", context: bytes | None = None, bucket: bytes = b"default", mode: int = 0, w: int = 0, time_ms: int = 5000
) -> Message:
    return (m.PUT, 1, bucket, key, value, context, mode, w, 0, time_ms, os.urandom(16))


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def memory(pid: int, name: str) -> int:
    """VmRSS, or VmHWM, its peak, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedNode]:
    with ServedCluster(tmp_path_factory.mktemp("node"), nodes=1, flags=("--durability", "relaxed")) as cluster:
        yield cluster.nodes[0]
        assert cluster.nodes[0].stop() == 0


@pytest.fixture(scope="module")
def good(served: ServedNode) -> Iterator[dynamo.Client]:
    """A client of good will, connected before and after."""
    with dynamo.Client(served.address, timeout=WAIT_S) as client:
        client.set("canary", b"alive")
        yield client


@pytest.fixture(autouse=True)
def unharmed(served: ServedNode, good: dynamo.Client) -> Iterator[None]:
    pid, measured = served.pid, sys.platform == "linux"
    if measured:
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
        before = memory(pid, "VmRSS")
    yield
    assert served.running and served.pid == pid
    assert good.get("canary").value == b"alive"
    good.set("canary", b"alive")
    assert "Traceback" not in served.log_tail(100_000)
    if measured:
        grown = memory(pid, "VmHWM") - before
        assert grown < GROWTH_BYTES_MAX, f"grew by {grown >> 20} MiB"


@pytest.fixture
def address(served: ServedNode) -> str:
    return served.address


def is_error(reply: Message | None, error: type[errors.DynamoError]) -> None:
    """A typed error of a request, which was not applied and says in a few words why."""
    assert reply is not None and (reply[0], reply[2]) == (m.ERROR, error.code), reply
    assert reply[4] is False and 0 < len(reply[3]) < 1500


def turns_away(raw: Raw, error: type[errors.DynamoError] = errors.ProtocolError) -> None:
    """The connection's own error, then its end."""
    reply = raw.receive()
    is_error(reply, error)
    assert reply is not None and reply[1] == 0
    assert raw.receive() is None


# --- requests that mean nothing: a typed error each, and the connection goes on --------------------------------------------------------------

HUGE = b"\xff" * (7 * MEBIBYTE)
REQUESTS = {
    "empty key": (get(b""), errors.InvalidKey),
    "over-long key": (get(b"k" * 1025), errors.KeyTooLong),
    "over-long key, put": (put(b"k" * 1025), errors.KeyTooLong),
    "empty key, put": (put(b""), errors.InvalidKey),
    "empty bucket": (get(b"k", bucket=b""), errors.InvalidKey),
    "bucket with a zero byte": (put(b"k", bucket=b"a\0b"), errors.InvalidKey),
    "bucket of 65 bytes": (get(b"k", bucket=b"b" * 65), errors.InvalidKey),
    "bucket of 7 MiB": (get(b"k", bucket=HUGE), errors.InvalidKey),
    "bucket of 7 MiB, put": (put(b"k", bucket=HUGE), errors.InvalidKey),
    "bucket of 7 MiB, preference list": ((m.PREFERENCE_LIST, 1, HUGE, b"k"), errors.InvalidKey),
    "bucket of 7 MiB, scan": ((m.SCAN, 1, HUGE, b"", b"", 0, 5000), errors.InvalidKey),
    "prefix of 7 MiB": ((m.SCAN, 1, b"default", HUGE, b"", 0, 5000), errors.KeyTooLong),
    "key of 7 MiB": (get(HUGE), errors.KeyTooLong),
    "key of 7 MiB, preference list": ((m.PREFERENCE_LIST, 1, b"default", HUGE), errors.KeyTooLong),
    "value one byte too long": (put(b"k", bytes(MEBIBYTE + 1)), errors.ValueTooLarge),
    "value of 7 MiB": (put(b"k", HUGE), errors.ValueTooLarge),
    "token of 7 MiB": (put(b"k", context=HUGE), errors.InvalidContext),
    "no keys": ((m.GET_MANY, 1, b"default", (), 0, 0, 5000), errors.InvalidRequest),
    "1,025 keys": ((m.GET_MANY, 1, b"default", (b"k",) * 1025, 0, 0, 5000), errors.InvalidRequest),
    "no entries": ((m.PUT_MANY, 1, b"default", (), 0, 0, 0, 5000), errors.InvalidRequest),
    "1,025 entries": ((m.PUT_MANY, 1, b"default", ((b"k", b"v", None, bytes(16)),) * 1025, 0, 0, 0, 5000), errors.InvalidRequest),
    "255 nodes to read from": (get(b"k", r=255), errors.Unavailable),
    "255 nodes to write to": (put(b"k", w=255), errors.Unavailable),
    "a cursor of nothing": ((m.SCAN, 1, b"default", b"", b"\0", 0, 5000), errors.InvalidRequest),
    "a cursor beyond the partitions": ((m.SCAN, 1, b"default", b"", b"\xff\xff", 0, 5000), errors.InvalidRequest),
    "a cursor of another bucket": ((m.SCAN, 1, b"default", b"", b"\0\0other\0k", 0, 5000), errors.InvalidRequest),
    "a cursor of 7 MiB": ((m.SCAN, 1, b"default", b"", HUGE, 0, 5000), errors.InvalidRequest),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_without_sense_gets_a_typed_error(address: str, name: str) -> None:
    request, error = REQUESTS[name]
    with greeted(address) as raw:
        is_error(raw.ask(request), error)
        assert raw.ask(get(b"k", 2))[:2] == (m.GET_REPLY, 2)
        assert raw.ask(get(b"k", 2))[6] == ()  # nothing of it was written


def test_many_keys_of_a_bucket_that_cannot_be_cost_no_more_than_one(address: str) -> None:
    with greeted(address) as raw:
        for request in (
            (m.GET_MANY, 1, HUGE, (b"k",) * 1024, 0, 0, 5000),
            (m.PUT_MANY, 1, HUGE, ((b"k", b"v", None, bytes(16)),) * 1024, 0, 0, 0, 5000),
        ):
            reply = raw.ask(request)
            assert reply[1] == 1 and len(reply[2]) == 1024
            for each in reply[2]:
                is_error(each, errors.InvalidKey)


def test_a_key_many_times_in_one_request(address: str, good: dynamo.Client) -> None:
    good.set("large", bytes(MEBIBYTE))
    with greeted(address) as raw:
        replies = raw.ask((m.GET_MANY, 1, b"default", (b"large",) * 1024, 0, 0, 5000))[2]
        assert len(replies) == 1024 and replies[0][6][0][0] == bytes(MEBIBYTE)
        assert {reply[2] for reply in replies if reply[0] == m.ERROR} == {errors.ValueTooLarge.code}
        entries = tuple((b"twins", b"%d" % i, None, i.to_bytes(16, "big")) for i in (1, 2, 3, 1))
        replies = raw.ask((m.PUT_MANY, 2, b"default", entries, 0, 0, 0, 5000))[2]
        assert [reply[0] for reply in replies] == [m.PUT_REPLY] * 4
        assert replies[0][5:7] == replies[3][5:7]  # one operation, one dot
        assert sorted(sibling[0] for sibling in raw.ask(get(b"twins"))[6]) == [b"1", b"2", b"3"]


def test_no_time_at_all_is_a_timeout_or_an_answer(address: str) -> None:
    with greeted(address) as raw:
        for _ in range(20):
            reply = raw.ask(get(b"canary", time_ms=0))
            assert reply[0] == m.GET_REPLY or reply[2] == errors.Timeout.code
            reply = raw.ask(put(b"hurried", time_ms=0))
            assert reply[0] == m.PUT_REPLY or (reply[2], reply[4]) == (errors.Timeout.code, True)
        assert raw.ask(get(b"canary", time_ms=(1 << 32) - 1))[0] == m.GET_REPLY


def test_the_hundred_and_first_sibling_is_refused_until_they_are_merged(good: dynamo.Client) -> None:
    for i in range(100):
        good.put("crowd", b"%d" % i)
    for _ in range(3):
        with pytest.raises(dynamo.DynamoError) as raised:
            good.put("crowd", b"one more")
        assert raised.value.code == errors.TooManySiblings.code and not raised.value.maybe_applied
    shown = good.get("crowd")
    assert sorted(shown.values) == sorted(b"%d" % i for i in range(100))
    good.put("crowd", b"merged", context=shown.context)
    assert good.get("crowd").values == (b"merged",)


def test_a_record_that_would_outgrow_its_limit_is_refused_and_stays_as_it_is(good: dynamo.Client) -> None:
    taken = []
    with pytest.raises(dynamo.ValueTooLarge) as raised:
        for i in range(100):
            good.put("heap", bytes([i]) * (MEBIBYTE - 1))
            taken.append(i)
    assert not raised.value.maybe_applied and 1 <= len(taken) < 10
    shown = good.get("heap")
    assert sorted(value[0] for value in shown.values) == taken
    good.put("heap", b"merged", context=shown.context)
    assert good.get("heap").values == (b"merged",)


# --- tokens ----------------------------------------------------------------------------------------------------------------------------------


def secret_of(address: str) -> tuple[bytes, Message, bytes]:
    """(the cluster's secret, a node's greeting, its cluster id), as whoever joins is told them."""
    with Raw(address, message_of(Hello(role=m.ROLE_JOIN, node_id=ME))) as raw:
        document = decode_document(raw.ask((m.JOIN, 1, ME, "me", "127.0.0.1:1"))[2])
        return document["secret"], raw.hello, document["cluster_id"]


def test_a_token_that_is_not_of_this_key_is_refused_whatever_was_done_to_it(address: str, good: dynamo.Client) -> None:
    good.set("mine", b"1")
    good.set("other", b"1")
    good.bucket("other").set("mine", b"1")
    mine = bytes(good.get("mine").context)
    secret, _, _ = secret_of(address)
    full, body = b"default\0mine", mine[: -tokens.MAC_BYTES]
    bad = {
        "one byte changed": [mine[:i] + bytes([mine[i] ^ 1]) + mine[i + 1 :] for i in range(len(mine))],
        "truncated": [mine[:i] for i in range(1, len(mine))],
        "extended": [mine + b"\0", mine + mine, b"\0" + mine],
        "of another key": [bytes(good.get("other").context)],
        "of another bucket": [bytes(good.bucket("other").get("mine").context)],
        "of another cluster": [tokens.seal(bytes(32), full, 1, 0, body[10:])],
        "of another kind of bucket": [tokens.seal(secret, full, 2, 0, body[10:])],
        "forged": [os.urandom(len(mine)) for _ in range(20)] + [body + bytes(8), bytes(len(mine))],
        "sealed, but with ranges that cannot be": [
            tokens.seal(secret, full, 1, 0, ranges)
            for ranges in (b"\0" * 24, struct.pack(">QQQ", 1, 5, 4), struct.pack(">QQQ", 1, 0, 4), struct.pack(">6Q", 2, 1, 1, 1, 1, 1), b"\1" * 23)
        ],
    }
    with greeted(address) as raw:
        for name, forms in bad.items():
            for form in forms:
                for value in (b"v", None):
                    reply = raw.ask(put(b"mine", value, form))
                    assert (reply[0], reply[2], reply[4]) == (m.ERROR, errors.InvalidContext.code, False), (name, form, reply)
        assert [sibling[0] for sibling in raw.ask(get(b"mine"))[6]] == [b"1"]
        assert raw.ask(put(b"mine", b"2", mine))[0] == m.PUT_REPLY


# --- bytes that are no frames: the reason, and the end ----------------------------------------------------------------------------------------

GOOD = encode(get(b"canary"))
HEAD = b"\x97\x0a\x01\xc4\x07default"  # of a GET with seven elements: type, request id, bucket
MALFORMED = {
    "length 0": bytes(4),
    "length 2^31": (1 << 31).to_bytes(4, "big"),
    "length 2^32-1": b"\xff" * 4,
    "length one over the limit": (FRAME_BYTES_MAX + 1).to_bytes(4, "big"),
    "no msgpack": framed(b"\xc1"),
    "an integer": framed(b"\x07"),
    "an empty array": framed(b"\x90"),
    "no request id": framed(b"\x91\x0a"),
    "a map": framed(b"\x82\x00\x0a\x01\x01"),
    "trailing bytes": framed(GOOD[4:] + b"\0"),
    "two messages in one frame": framed(GOOD[4:] * 2),
    "cut short": framed(GOOD[4:-1]),
    "a negative request id": framed(b"\x97\x0a\xff" + GOOD[7:]),
    "a type of 2^64-1": framed(b"\x92\xcf" + b"\xff" * 8 + b"\x01"),
    "an unknown type": encode((77, 1)),
    "a type as float": framed(b"\x97\xcb" + struct.pack(">d", 10.0) + GOOD[6:]),
    "a map with a key twice, in a field": framed(HEAD + b"\x82\xa1a\x01\xa1a\x02\x00\x00\x00"),
    "an empty map in a field": framed(HEAD + b"\x80\x00\x00\x00"),
    "an empty map behind the fields": framed(b"\x98" + GOOD[5:] + b"\x80"),
    "an extension in a field": framed(HEAD + b"\xd6\x05abcd\x00\x00\x00"),
    "an empty extension behind the fields": framed(b"\x98" + GOOD[5:] + b"\xc7\x00\x05"),
    "a timestamp behind the fields": framed(b"\x98" + GOOD[5:] + b"\xd6\xff\0\0\0\0"),
    "a key as text": framed(HEAD + b"\xa1k\x00\x00\x00"),
    "a key as array": framed(HEAD + b"\x91\x01\x00\x00\x00"),
    "r as float": framed(HEAD + b"\xc4\x01k\xca\0\0\0\0\x00\x00"),
    "r of 256": encode((m.GET, 1, b"default", b"k", 256, 0, 5000)),
    "r of -1": encode((m.GET, 1, b"default", b"k", -1, 0, 5000)),
    "mode 2": encode(put(b"k", mode=2)),
    "an operation id of 15 bytes": encode((*put(b"k")[:-1], bytes(15))),
    "fields missing": encode(get(b"k")[:-1]),
    "a second HELLO": encode(client_hello()),
    "an entry that is no array": encode((m.PUT_MANY, 1, b"default", (b"k",), 0, 0, 0, 5000)),
    "an array of 4,097": encode((m.GET_MANY, 1, b"default", (b"k",) * 4097, 0, 0, 5000)),
    "an array that claims 2^32-1": framed(b"\x97\x0c\x01\xc4\x07default\xdd\xff\xff\xff\xff"),
    "bytes that claim 2^32-1": framed(HEAD + b"\xc6\xff\xff\xff\xff"),
    "text that claims 2^32-1": framed(HEAD + b"\xdb\xff\xff\xff\xff"),
    "text that is no UTF-8": framed(b"\x98" + GOOD[5:] + b"\xa1\xff"),
    "arrays 5,000 deep": framed(b"\x92\x0a" + b"\x91" * 5000),
    "arrays 8 million deep": framed(b"\x91" * FRAME_BYTES_MAX),
    "a thousand arrays deep that claim 4,096 each": framed(b"\x92\x0a" + b"\xdc\x10\x00" * 1000),
    "a mebibyte of empty maps": framed(b"\x93\x0a\x01\xdd" + (MEBIBYTE).to_bytes(4, "big") + b"\x80" * MEBIBYTE),
    "a mebibyte of empty maps in arrays": framed(b"\x93\x0a\x01\xdc\x01\x00" + (b"\xdc\x10\x00" + b"\x80" * 4096) * 256),
    "8 MiB of tiny arrays": framed(b"\x93\x0a\x01\xdc\x04\x00" + (b"\xdc\x0f\xff" + b"\x91\x01" * 4095) * 1000 + b"\xc0" * 24),
    "8 MiB of integers": framed(b"\x93\x0a\x01\xdc\x02\xaa" + (b"\xdc\x0f\xff" + b"\xcd\x7f\xff" * 4095) * 682),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_frame_ends_its_connection_alone(address: str, name: str) -> None:
    with greeted(address) as raw, greeted(address) as other:
        assert raw.ask(get(b"canary"))[0] == m.GET_REPLY
        raw.sock.sendall(MALFORMED[name])
        turns_away(raw)
        assert other.ask(get(b"canary"))[0] == m.GET_REPLY


def test_in_the_same_piece_as_sound_requests_nothing_of_it_is_done(address: str) -> None:
    with greeted(address) as raw:
        raw.sock.sendall(encode(put(b"piece")) + MALFORMED["no msgpack"])
        turns_away(raw)
    with greeted(address) as raw:
        assert raw.ask(get(b"piece"))[6] == ()


def test_a_frame_cut_off_at_each_byte(address: str) -> None:
    frame = encode(put(b"cut off"))
    hello = encode(client_hello())
    for whole, before in ((hello, None), (frame, client_hello())):
        for length in range(len(whole)):
            with Raw(address, before) as raw:
                raw.sock.sendall(whole[:length])
                if length % 2:
                    raw.sock.shutdown(socket.SHUT_WR)
                    assert raw.receive() is None
    with greeted(address) as raw:
        assert raw.ask(get(b"cut off"))[6] == ()


def test_one_byte_a_segment(address: str) -> None:
    with Raw(address) as raw:
        for message in (client_hello(), put(b"dripped"), get(b"dripped")):
            for byte in encode(message):
                raw.sock.sendall(bytes([byte]))
            reply = raw.receive()
            assert reply is not None and reply[0] != m.ERROR
        assert reply[6][0][0] == b"v"


# --- who comes to the wrong door ---------------------------------------------------------------------------------------------------------------


def tls_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="node").do_handshake()
    return outgoing.read()


STRANGERS: dict[str, Callable[[], bytes]] = {
    "HTTP": lambda: b"GET / HTTP/1.1\r\nHost: node\r\n\r\n",
    "HTTP/2": lambda: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": tls_hello,
    "Redis": lambda: b"*1\r\n$4\r\nPING\r\n",
    "Redis, inline": lambda: b"PING\r\n",
    "SSH": lambda: b"SSH-2.0-OpenSSH_9.2\r\n",
    "memcached": lambda: b"\x80\x0b" + bytes(22),
    "another magic": lambda: encode((m.HELLO, 0, b"\x8aother\r\n", *Hello())),
    "a magic that a text transfer mangled": lambda: encode((m.HELLO, 0, b"\x8adynamo\n", *Hello())),
    "a request before HELLO": lambda: encode(get(b"canary")),
    "a later protocol": lambda: encode(message_of(Hello(protocol_min=2, protocol_max=9))),
    "protocol versions the wrong way round": lambda: encode(message_of(Hello(protocol_min=1, protocol_max=0))),
    "a role that is none": lambda: encode(message_of(Hello(role=3))),
    "half a cluster id": lambda: encode(message_of(Hello(cluster_id=b"c" * 8))),
    "a HELLO that is too long": lambda: encode(message_of(Hello(address="a" * 5000))),
    "an address that is too long": lambda: encode(message_of(Hello(address="a" * 301))),
    "HELLO_REPLY": lambda: encode(message_of(Hello(), (0, 0))),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_who_speaks_another_protocol_is_told_so(address: str, name: str) -> None:
    with Raw(address) as raw:
        raw.sock.sendall(STRANGERS[name]())
        turns_away(raw)


@pytest.mark.parametrize("role", [m.ROLE_CLIENT, m.ROLE_JOIN, m.ROLE_PEER], ids=["client", "joiner", "peer"])
def test_a_sound_frame_of_another_role_ends_the_connection(address: str, role: int) -> None:
    from dynamo.wire.messages import REQUESTS, SHAPES

    secret, reply, cluster_id = secret_of(address)
    peer = Hello(cluster_id=cluster_id, partitions=reply[8], tree_shape=TREE_SHAPE, role=role, node_id=ME, boot_nonce=ME, incarnation=1)
    hello = {
        m.ROLE_CLIENT: client_hello(),
        m.ROLE_JOIN: message_of(Hello(role=m.ROLE_JOIN, node_id=ME)),
        m.ROLE_PEER: message_of(sign(peer, secret)),
    }[role]
    for kind in sorted(set(SHAPES) - REQUESTS[role]):
        with Raw(address, hello) as raw:
            raw.send(GOLDEN[kind])
            if role == m.ROLE_PEER:  # between nodes there is nobody to tell
                assert raw.receive() is None, SHAPES[kind].name
            else:
                turns_away(raw)


def _golden() -> dict[int, Message]:
    import json

    def value(encoded: Any) -> Any:
        if isinstance(encoded, list):
            return tuple(map(value, encoded))
        return bytes.fromhex(encoded["hex"]) if isinstance(encoded, dict) else encoded

    frames = json.loads((Path(__file__).parents[1] / "golden" / "frames_v1.json").read_text())["frames"]
    return {case["message"][0]: value(case["message"]) for case in frames.values()}


GOLDEN = _golden()


def test_a_peer_that_does_not_know_the_secret_is_no_peer(address: str) -> None:
    secret, reply, cluster_id = secret_of(address)
    node_id = reply[11]
    peer = Hello(cluster_id=cluster_id, partitions=reply[8], tree_shape=TREE_SHAPE, role=m.ROLE_PEER, node_id=ME, boot_nonce=ME, incarnation=1)
    bad = {
        "nothing": peer,
        "zeros": peer._replace(auth=bytes(16)),
        "another secret": sign(peer, bytes(32)),
        "half of it": (signed := sign(peer, secret))._replace(auth=signed.auth[:8]),
        "another node's proof": sign(peer, secret)._replace(node_id=b"x" * 16),
        "an earlier process's proof": sign(peer, secret)._replace(boot_nonce=b"x" * 16),
        "this node's own id": sign(peer._replace(node_id=node_id), secret),
        "another number of partitions": sign(peer._replace(partitions=512), secret),
        "another tree": sign(peer._replace(tree_shape=9), secret),
        "another cluster": sign(peer._replace(cluster_id=b"c" * 16), secret),
    }
    for name, hello in bad.items():
        with Raw(address) as raw:
            raw.send(message_of(hello))
            reply = raw.receive()
            code = errors.InvalidRequest.code if name == "this node's own id" else errors.ConfigError.code  # a second process, perhaps an old one
            assert reply is not None and (reply[0], reply[2]) == (m.ERROR, code), name
            assert secret not in encode(reply) and raw.receive() is None, name
    with Raw(address, message_of(sign(peer, secret))) as raw:
        assert raw.hello[11] == node_id  # and who knows it is


def test_a_peer_that_sends_records_which_are_none_is_answered_and_nothing_is_stored(address: str) -> None:
    secret, reply, cluster_id = secret_of(address)
    peer = Hello(cluster_id=cluster_id, partitions=reply[8], tree_shape=TREE_SHAPE, role=m.ROLE_PEER, node_id=ME, boot_nonce=ME, incarnation=1)
    with Raw(address, message_of(sign(peer, secret))) as raw:
        for number, record in enumerate((b"", b"\0", bytes(12), os.urandom(300), b"\1\1\0\0" + b"\xff" * 8, b"\1\1\0\0" + bytes(8))):
            raw.send((m.REPLICATE, number, b"default", b"damaged", record, 0, b"", 5000, 1, 1, 0, 3, bytes(16)))
            while (reply := raw.receive()) is not None and reply[:2] != (m.REPLICATE_REPLY, number):
                pass  # the node greets its peer with gossip
            assert reply is not None and reply[2] == errors.CorruptRecord.code
    with greeted(address) as raw:
        assert raw.ask(get(b"damaged"))[6:] == ((), ())


# --- who takes its time ------------------------------------------------------------------------------------------------------------------------


def test_who_never_finishes_hello_is_cut_off_at_an_absolute_deadline(address: str, good: dynamo.Client) -> None:
    hello = encode(client_hello())
    with Raw(address) as silent, Raw(address) as half, Raw(address) as dripping:
        began = time.monotonic()
        half.sock.sendall(hello[:-1])
        dripped = 0
        dripping.sock.settimeout(0.3)
        try:
            while dripped < len(hello) - 1:
                dripping.sock.sendall(hello[dripped : dripped + 1])
                dripped += 1
                try:
                    if not dripping.sock.recv(1):
                        break
                except TimeoutError:
                    good.get("canary")
        except ConnectionError:
            pass
        assert 10 < dripped < len(hello) - 1 and 4.5 < time.monotonic() - began < 7.5
        assert silent.receive() is None and half.receive() is None
        assert time.monotonic() - began < 8


def test_who_asks_and_never_reads_waits_in_the_kernel_and_others_are_served(address: str, good: dynamo.Client) -> None:
    good.set("large", bytes(MEBIBYTE))
    with greeted(address) as raw:
        raw.sock.settimeout(1.0)
        sent = 0
        try:
            while sent < 200_000:  # 200 GB of answers
                raw.sock.sendall(b"".join(encode(get(b"large", number)) for number in range(sent, sent + 1000)))
                sent += 1000
        except TimeoutError:
            pass
        assert 0 < sent < 200_000  # the node has stopped reading
        began = time.monotonic()
        for i in range(50):
            good.set("beside", b"%d" % i)
            assert good.get("beside").value == b"%d" % i
        assert time.monotonic() - began < 5


def test_who_asks_for_answers_that_no_window_holds_back_is_cut_off_at_the_bound(address: str, good: dynamo.Client) -> None:
    def cut_off() -> int:
        with greeted(address) as raw:
            return int(decode_document(raw.ask((m.STATS, 1))[2])["connections_cut_off"])

    before = cut_off()
    with greeted(address) as raw:
        piece = encode((m.CLUSTER_STATUS, 1)) * 2000
        with pytest.raises(ConnectionError):
            for _ in range(1000):
                raw.sock.sendall(piece)
        good.set("beside", b"1")
    assert cut_off() == before + 1


def test_a_thousand_large_values_at_once_cost_a_node_of_a_cluster_a_few(tmp_path: Path, good: dynamo.Client) -> None:
    with ServedCluster(tmp_path, flags=("--durability", "relaxed")) as cluster:
        with dynamo.Client(cluster.addresses, timeout=WAIT_S) as client:
            client.set("large", bytes(MEBIBYTE))
        first = cluster.nodes[0]
        before = memory(first.pid, "VmRSS") if sys.platform == "linux" else 0
        callers = [greeted(first.address) for _ in range(4)]
        try:
            for raw in callers:
                raw.send((m.GET_MANY, 1, b"default", (b"large",) * 1024, 0, 0, 5000))
            for raw in callers:
                reply = raw.receive()
                assert reply is not None and reply[0] == m.GET_MANY_REPLY and len(reply[2]) == 1024
                assert {each[2] for each in reply[2] if each[0] == m.ERROR} == {errors.ValueTooLarge.code}
        finally:
            for raw in callers:
                raw.sock.close()
        assert sys.platform != "linux" or memory(first.pid, "VmHWM") - before < 200 * MEBIBYTE


def test_frames_that_are_claimed_and_never_sent_cost_nothing(address: str) -> None:
    connections = [greeted(address) for _ in range(100)]
    try:
        for raw in connections:
            raw.sock.sendall(FRAME_BYTES_MAX.to_bytes(4, "big") + b"\x93\x0c\x01\xdd\x00\x00\x10\x00")
        with greeted(address) as raw:
            assert raw.ask(get(b"canary"))[0] == m.GET_REPLY
    finally:
        for raw in connections:
            raw.sock.close()


def test_noise_from_many_sides_at_once(address: str, good: dynamo.Client) -> None:
    """Random mutations of sound frames, some of which stay sound: whatever comes back is well formed, and the node goes on."""
    frames = [encode(message) for message in (get(b"canary", 3), put(b"noise"), GOLDEN[m.GET_MANY], GOLDEN[m.SCAN], GOLDEN[m.PUT_MANY])]
    failed: list[BaseException] = []

    def shout(seed: int) -> None:
        from random import Random

        random = Random(seed)
        try:
            for _ in range(60):
                with greeted(address) as raw:
                    for _ in range(random.randrange(1, 6)):
                        frame = bytearray(random.choice(frames))
                        for _ in range(random.randrange(0, 3)):
                            frame[random.randrange(4, len(frame))] = random.randrange(256)
                        raw.sock.sendall(frame)
                    raw.sock.shutdown(socket.SHUT_WR)
                    while raw.receive() is not None:
                        pass
        except ConnectionError:
            pass  # the node hung up first
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=shout, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)
    assert not failed and not any(thread.is_alive() for thread in threads)
