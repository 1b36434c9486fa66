"""What stands right behind a greeting, in the same piece of the stream, is no part of it: the bound of a greeting is not its bound."""

from __future__ import annotations

import socket
import threading

import pytest
import trio
from rig import CLUSTER, SECRET, Echo, connect, get, put, run, running

from dynamo import AsyncClient, Client
from dynamo.bench.protocols.own import DynamoTalk
from dynamo.errors import ProtocolError
from dynamo.model import messages as m
from dynamo.net.exchange import call
from dynamo.wire.frames import FRAME_BYTES_MAX, FrameDecoder, encode
from dynamo.wire.hello import HELLO_BYTES_MAX, Hello, client_hello, message_of, sign

A, B = b"a" * 16, b"b" * 16
PEER = Hello(cluster_id=CLUSTER, partitions=256, tree_shape=1, role=m.ROLE_PEER, node_id=B, boot_nonce=B)


@pytest.mark.parametrize("size", [0, 4000, HELLO_BYTES_MAX, 50_000, 300_000])
def test_a_decoder_gives_the_greeting_alone_and_reads_on_with_the_full_bounds(size):
    rest = [put(1, b"v" * size), get(2)]
    stream = encode(client_hello()) + b"".join(map(encode, rest))
    for cut in (1, 3, 4, 60, len(encode(client_hello())), len(encode(client_hello())) + 2, len(stream)):
        decoder = FrameDecoder(FRAME_BYTES_MAX, greeting_bytes_max=HELLO_BYTES_MAX)
        first, received = stream[:cut], []
        found = decoder.feed(first)
        at = cut
        while not found:
            found, at = decoder.feed(stream[at : at + 64]), at + 64
        assert found == [client_hello()]
        received += decoder.greeted()
        received += decoder.feed(stream[at:])
        assert received == rest and decoder.held_bytes == 0


@pytest.mark.parametrize("claimed", [HELLO_BYTES_MAX + 1, FRAME_BYTES_MAX, 0])
def test_a_greeting_has_its_own_bound(claimed):
    decoder = FrameDecoder(FRAME_BYTES_MAX, greeting_bytes_max=HELLO_BYTES_MAX)
    with pytest.raises(ProtocolError, match="a frame of"):
        decoder.feed(claimed.to_bytes(4, "big") + b"\x90")


def test_a_large_request_right_behind_hello_is_answered():
    async def test():
        echo = Echo()
        async with running(echo) as reactor:
            caller = await connect(reactor.address)
            await caller.send(client_hello(), put(7, b"v" * 50_000), get(8))
            assert (await caller.receive())[0] == m.HELLO_REPLY
            assert {(await caller.receive())[1] for _ in range(2)} == {7, 8}

    run(test)


def test_a_large_message_right_behind_hello_reply_does_not_break_the_link():
    """A node whose peer has dialled it sends what waited for that peer at once behind its HELLO_REPLY."""

    async def test():
        echo = Echo()
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        async with running(echo, node_id=A, addresses={B: address}) as reactor:
            reactor.peers.want(B, trio.current_time())
            stream = await listener.accept()
            (hello,) = FrameDecoder().feed(bytes(await stream.receive_some(65_536)))
            replicate = (m.REPLICATE, 5, b"default", b"k", b"r" * 20_000, 0, b"", 1000, 1, 1, 0, 3, bytes(16))
            await stream.send_all(encode(message_of(sign(PEER, SECRET, hello[13]), (0, 0))) + encode(replicate))
            await echo.until(lambda: (B, replicate) in echo.received)
            assert echo.events == [("up", B)] and reactor.counters["protocol_errors"] == 0
            await stream.aclose()
            await listener.aclose()

    run(test)


# --- clients, of which nobody but a fake asks before it is asked ------------------------------------------------------------------------


def node_of_one_piece(value):
    """A node that answers a HELLO and the first request, whatever that is, in pieces that have no regard for frames: (address, thread)."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        with server, server.accept()[0] as sock:
            decoder = FrameDecoder()
            hello = encode(message_of(PEER._replace(role=m.ROLE_CLIENT), (0, 0)))
            assert decoder.feed(sock.recv(65_536))[0][0] == m.HELLO
            sock.sendall(hello[:50])
            sock.sendall(hello[50:])
            (request,) = decoder.feed(sock.recv(65_536))
            reply = (
                (m.GET_REPLY, request[1], 1, 1, 1, b"token", ((value, 1, 2, 3),), ()) if request[0] == m.GET else (m.CLUSTER_STATUS_REPLY, request[1], value)
            )
            sock.sendall(encode(reply))
            sock.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    return f"127.0.0.1:{server.getsockname()[1]}", thread


def test_every_client_takes_a_first_answer_of_full_size():
    value = b"v" * (FRAME_BYTES_MAX - 1000)
    address, thread = node_of_one_piece(value)
    with Client(address, timeout=20) as client:
        assert client.get("k").value == value
    thread.join(10)

    async def asynchronous():
        async with AsyncClient(address, timeout=20) as client:
            assert (await client.get("k")).value == value

    address, thread = node_of_one_piece(value)
    trio.run(asynchronous)
    thread.join(10)

    async def node():
        assert (await call(address, Hello(), (m.CLUSTER_STATUS, 1), 20))[1][2] == value

    address, thread = node_of_one_piece(value)
    trio.run(node)
    thread.join(10)


def test_the_load_generator_reads_what_stands_behind_the_greeting():
    talk = DynamoTalk("h:1", b"v", operation_prefix=b"p" * 8)
    talk.encode([(3, "read", 1)])
    answer = encode((m.GET_REPLY, 3, 1, 1, 1, b"token", ((b"v" * 50_000, 1, 2, 3),), ()))
    assert talk.greeted(encode(message_of(PEER._replace(role=m.ROLE_CLIENT), (0, 0))) + answer[:5000])
    assert talk.feed(answer[5000:])[0] == [3]
