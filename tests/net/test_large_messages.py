"""Messages between nodes that no frame holds, or many large ones at once: they arrive, nothing waits behind them, and what they take is bounded."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
from rig import CLUSTER, SECRET, Echo, connect, run, running

from dynamo.errors import ProtocolError
from dynamo.model import messages as m
from dynamo.net.limits import Limits
from dynamo.wire.frames import FRAME_BYTES_MAX, FrameDecoder, encode
from dynamo.wire.hello import PARTS, Hello, message_of, sign
from dynamo.wire.messages import check
from dynamo.wire.parts import MESSAGE_BYTES_MAX, Parts, encode_whole, split

A, B = b"a" * 16, b"b" * 16


def greeting(node_id, **changes):
    return {"greeting": Hello(cluster_id=CLUSTER, partitions=256, tree_shape=1, role=1, node_id=node_id, incarnation=1, boot_nonce=node_id,
                              capabilities=PARTS)} | changes  # fmt: skip


def replicate(request_id, size):
    return (m.REPLICATE, request_id, b"default", b"k", bytes([request_id % 251]) * size, 0, b"", 1000, 1, 1, 0, 3, bytes(16))


def read(request_id):
    return (m.READ, request_id, b"default", b"key", b"", 1000, 1, 1, 0)


def send(reactor, destination, *messages):
    for message in messages:
        reactor.replica.send(destination, message)
    reactor.wake()


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 20_000])
def test_parts_become_the_message_they_were_cut_of(size):
    message = replicate(3, size)
    frames = split(encode_whole(message), 1000)
    assert (len(frames) == 1) == (len(encode(message)) <= 1000)
    parts, found = Parts(), []
    for frame in frames:
        (received,) = FrameDecoder(2000).feed(frame)
        check(received, m.ROLE_PEER)
        found += parts.take([received, read(1)])
    assert [other for other in found if other != read(1)] == [message] and parts.held_bytes == 0


@pytest.mark.parametrize("body", [b"", b"\xc0", b"\x91\x01", encode((m.PART, 0, True, b"x"))[4:], b"\xdd\x00\xff\xff\xff", b"\x93*\x01"])
def test_parts_of_no_message_are_refused(body):
    with pytest.raises(ProtocolError):
        Parts().take([(m.PART, 0, False, body[:1]), (m.PART, 0, True, body[1:])])


def test_parts_without_end_are_refused(monkeypatch):
    monkeypatch.setattr("dynamo.wire.parts.MESSAGE_BYTES_MAX", 5000)
    parts = Parts()
    with pytest.raises(ProtocolError, match="more than"):
        for _ in range(6):
            parts.take([(m.PART, 0, False, b"x" * 1000)])
    assert MESSAGE_BYTES_MAX > 8 * FRAME_BYTES_MAX


def test_a_message_larger_than_a_frame_arrives_and_small_ones_do_not_wait_for_it():
    async def test():
        a, b = Echo(), Echo()
        async with running(b, node_id=B, **greeting(B)) as to, running(a, node_id=A, addresses={B: to.address}, **greeting(A)) as fro:
            send(fro, B, read(1))
            await a.until(lambda: a.received)
            large = [replicate(10, FRAME_BYTES_MAX + 5), replicate(11, 3 * FRAME_BYTES_MAX), replicate(12, 40_000)]
            send(fro, B, *large, read(2))
            await b.until(lambda: len(b.received) == 5)
            order = [message[1] for _, message in b.received]
            assert order == [1, 2, 10, 11, 12] and [message for _, message in b.received[2:]] == large
            assert a.events == [("up", B)] and b.events == [("up", A)]
            counters = fro.counters
            assert counters["messages_too_large"] == counters["peer_messages_dropped"] == counters["connections_cut_off"] == 0

    run(test)


def test_more_large_messages_at_once_than_a_connection_may_hold_do_not_cut_it_off():
    """A node that comes back is owed many records at once."""

    async def test():
        a, b = Echo(), Echo()
        async with running(b, node_id=B, **greeting(B)) as to, running(a, node_id=A, addresses={B: to.address}, **greeting(A)) as fro:
            send(fro, B, read(1))
            await a.until(lambda: a.received)
            send(fro, B, *[replicate(i, 2 << 20) for i in range(24)])
            await b.until(lambda: len(b.received) == 25)
            assert a.events == [("up", B)] and fro.counters["connections_cut_off"] == 0

    run(test)


def test_what_waits_for_a_peer_is_bounded_and_one_message_is_always_let_in():
    async def test():
        a, b = Echo(), Echo()
        limits = Limits(bulk_bytes_max=1 << 20)
        async with running(b, node_id=B, **greeting(B)) as to, running(a, node_id=A, addresses={B: to.address}, **greeting(A, limits=limits)) as fro:
            send(fro, B, read(1))
            await a.until(lambda: a.received)
            send(fro, B, replicate(2, 20 << 20), replicate(3, 2 << 20), replicate(4, 100))
            await b.until(lambda: len(b.received) == 3)
            assert sorted(message[1] for _, message in b.received) == [1, 2, 4]
            assert fro.counters["peer_messages_dropped"] == 1

    run(test)


def test_parts_that_never_end_count_as_unfinished_and_a_refused_one_is_logged(caplog):
    async def test():
        a = Echo()
        async with running(a, node_id=A, limits=Limits(input_total_bytes_max=300_000)) as reactor:
            for messages in ([(m.PART, 0, False, b"x" * 100_000)] * 4, [(m.PART, 0, True, b"\xc0")]):
                peer = await connect(reactor.address)
                await peer.send(message_of(sign(Hello(cluster_id=CLUSTER, partitions=256, tree_shape=1, role=1, node_id=B, boot_nonce=B), SECRET)))
                assert (await peer.receive())[0] == m.HELLO_REPLY
                with suppress(trio.BrokenResourceError):
                    await peer.send(*messages)
                assert await peer.receive() is None
            assert reactor.counters["connections_cut_off"] == 1 and reactor.counters["protocol_errors"] == 1

    run(test)
    assert "sent what this node does not take" in caplog.text


def test_what_is_too_large_for_a_peer_that_takes_no_parts_is_lost_alone_counted_and_logged(caplog):
    async def test():
        a, b = Echo(), Echo()
        whole = greeting(B)["greeting"]._replace(capabilities=0)
        async with running(b, node_id=B, greeting=whole) as to, running(a, node_id=A, addresses={B: to.address}, **greeting(A)) as fro:
            send(fro, B, read(1))
            await a.until(lambda: a.received)
            send(fro, B, replicate(2, FRAME_BYTES_MAX), read(3))
            await b.until(lambda: len(b.received) == 2)
            assert [message[1] for _, message in b.received] == [1, 3]
            assert fro.counters["messages_too_large"] == 1 and a.events == [("up", B)]

    run(test)
    assert f"a message of type {m.REPLICATE} is not sent" in caplog.text
