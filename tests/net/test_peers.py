"""Links between reactors: dialling, losing, coming back, and who is not let in."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest
import trio
from rig import CLUSTER, SECRET, Echo, connect, greeted, run, running

from dynamo.errors import ConfigError, ProtocolError
from dynamo.model import messages as m
from dynamo.net.limits import Limits
from dynamo.net.sockets import listen
from dynamo.wire.frames import encode
from dynamo.wire.hello import Hello, message_of, sign

A, B = b"a" * 16, b"b" * 16


def read(request_id, key=b"key"):
    return (m.READ, request_id, b"default", key, b"", 1000, 1, 1, 0)


def jumping():
    return trio.testing.MockClock(autojump_threshold=0.03)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def answers(echo):
    return [message[1] for source, message in echo.received if message[0] == m.READ_REPLY]


def send(reactor, destination, *messages):
    for message in messages:
        reactor.replica.send(destination, message)
    reactor.wake()


def test_a_message_to_a_node_dials_it_and_the_answer_comes_back_over_the_same_connection():
    async def test():
        a, b = Echo(), Echo()
        async with running(b, node_id=B) as to, running(a, node_id=A, addresses={B: to.address}) as fro:
            send(fro, B, read(1), read(2))
            await a.until(lambda: answers(a) == [1, 2])
            assert a.events == [("up", B)] and b.events == [("up", A)]
            assert [source for source, _ in b.received] == [A, A] and a.received[0][0] == B
            send(to, A, read(3))  # the other way, over the same connection: B has no address of A
            await b.until(lambda: answers(b) == [3])
            assert fro.counters["connections"] == to.counters["connections"] == 1

    run(test)


def test_a_peer_that_cannot_be_reached_is_down_until_it_can():
    async def test():
        a, b, port = Echo(), Echo(), free_port()
        async with running(a, node_id=A, addresses={B: f"127.0.0.1:{port}"}) as fro:
            began = trio.current_time()
            send(fro, B, read(1))
            await a.until(lambda: a.events.count(("down", B)) == 8)
            waited = trio.current_time() - began
            # Pauses of 0.05 s doubling to 2 s, each jittered by half either way.
            assert 0.5 * (0.05 + 0.1 + 0.2 + 0.4 + 0.8 + 1.6 + 2) < waited < 1.6 * (0.05 + 0.1 + 0.2 + 0.4 + 0.8 + 1.6 + 2)
            assert ("up", B) not in a.events
            async with running(b, node_id=B, port=port):
                await a.until(lambda: ("up", B) in a.events)
                send(fro, B, read(2))
                await a.until(lambda: answers(a) == [2])  # the first message was lost, as in a network

    run(test, jumping())


def test_a_peer_that_restarts_goes_down_and_comes_back_unasked():
    async def test():
        a, port = Echo(), free_port()
        async with running(a, node_id=A, addresses={B: f"127.0.0.1:{port}"}) as fro:
            for life in range(3):
                async with running(Echo(), node_id=B, port=port, nonce=bytes([life]) * 16):
                    if life == 0:
                        send(fro, B, read(1))
                    await a.until(lambda life=life: a.events.count(("up", B)) == life + 1)
                await a.until(lambda: a.events[-1] == ("down", B))

    run(test, jumping())


def test_two_that_dial_each_other_at_once_are_up_once_and_lose_nothing():
    async def test():
        doubles = 0
        for _ in range(20):
            a, b, addresses = Echo(), Echo(), {}
            async with running(a, node_id=A, addresses=addresses) as one, running(b, node_id=B, addresses=addresses) as two:
                addresses |= {A: one.address, B: two.address}
                send(one, B, read(1))
                send(two, A, read(2))
                await a.until(lambda a=a: 1 in answers(a))
                await b.until(lambda b=b: 2 in answers(b))
                assert a.events == [("up", B)] and b.events == [("up", A)]
                links = list(one.links.by_descriptor.values())
                doubles += len(links) == 2
                if len(links) == 2:  # losing one of two is no loss
                    one.links.finish(links[0], "test")
                    send(one, B, read(3))
                    for reactor, echo in ((one, a), (two, b)):
                        await echo.until(lambda reactor=reactor: len(reactor.links.by_descriptor) == 1)
                    send(one, B, read(4))
                    await a.until(lambda a=a: 4 in answers(a))
                    assert 3 in [message[1] for _, message in b.received]
                    assert a.events == [("up", B)] and b.events == [("up", A)]
        assert doubles > 0

    run(test)


def test_a_peer_that_accepts_and_says_nothing_counts_as_failed_after_a_second():
    async def test():
        a = Echo()
        with listen("127.0.0.1:0") as silent:
            address = f"127.0.0.1:{silent.getsockname()[1]}"
            async with running(a, node_id=A, addresses={B: address}) as fro:
                began = trio.current_time()
                send(fro, B, read(1))
                await a.until(lambda: ("down", B) in a.events)
                assert 0.9 < trio.current_time() - began < 1.5

    run(test, jumping())


def test_a_loss_that_is_made_good_in_the_same_step_is_none():
    async def test():
        a, b = Echo(), Echo()
        async with running(b, node_id=B) as to, running(a, node_id=A, addresses={B: to.address}) as fro:
            send(fro, B, read(1))
            await a.until(lambda: answers(a) == [1])
            fro.call_soon(lambda now: fro._note_loss(B, now))
            send(fro, B, read(2))
            await a.until(lambda: answers(a) == [1, 2])
            assert a.events == [("up", B)]

    run(test)


def test_names_are_looked_up_and_unknown_ones_are_failures():
    async def test():
        a, b = Echo(), Echo()
        async with running(b, node_id=B) as to:
            addresses = {B: to.address.replace("127.0.0.1", "localhost"), b"c" * 16: "no-such-host.invalid:1"}
            async with running(a, node_id=A, addresses=addresses) as fro:
                send(fro, B, read(1))
                send(fro, b"c" * 16, read(2))
                await a.until(lambda: ("down", b"c" * 16) in a.events)
                await a.until(lambda: answers(a) == [1])

    run(test)


def test_dead_addresses_of_a_name_do_not_keep_a_peer_from_the_good_one(monkeypatch):
    async def test():
        a, b = Echo(), Echo()
        async with running(b, node_id=B) as to:
            port = int(to.address.rpartition(":")[2])
            hosts = [*(f"127.0.0.{last}" for last in (2, 3, 4)), "127.0.0.1"]
            system = socket.getaddrinfo

            def getaddrinfo(host, *rest, **options):
                if host != "peer.test" or options.get("flags"):
                    return system(host, *rest, **options)
                return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in hosts]

            monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
            with ExitStack() as stack:
                for host in hosts[:2]:  # they let everybody in and say nothing; the third refuses
                    stack.enter_context(socket.create_server((host, port)))
                async with running(a, node_id=A, addresses={B: f"peer.test:{port}"}) as fro:
                    send(fro, B, read(1))
                    await a.until(lambda: answers(a) == [1])
                    assert a.events == [("up", B)] and not fro.peers._peers[B].under_way

    run(test)


def test_what_is_no_name_at_all_is_a_failure_too():
    async def test():
        a = Echo()
        async with running(a, node_id=A, addresses={B: "a..b:1"}) as fro:
            send(fro, B, read(1))
            await a.until(lambda: ("down", B) in a.events)

    run(test)


def test_a_node_without_an_address_is_not_dialled():
    async def test():
        a = Echo()
        async with running(a, node_id=A) as fro:
            send(fro, B, read(1))
            await (await greeted(fro.address)).ask((m.CLUSTER_STATUS, 1))
            assert fro.counters["peer_messages_dropped"] == 1 and not a.events and not fro.peers._peers

    run(test)


def test_of_several_messages_for_a_peer_one_that_is_too_large_is_left_out():
    async def test():
        a, b = Echo(), Echo()
        async with running(b, node_id=B) as to, running(a, node_id=A, addresses={B: to.address}, limits=Limits(frame_bytes_max=20_000)) as fro:
            for many in ([0], [1, 2, 3]):  # without a link, and over one
                send(fro, B, *[read(i, b"k" * (30_000 if i == 2 else 900)) for i in many])
                await a.until(lambda: answers(a) and answers(a)[-1] == many[-1])  # noqa: B023
            assert answers(a) == [0, 1, 3] and fro.counters["messages_too_large"] == 1

    run(test)


def test_a_peer_that_left_is_forgotten_with_its_last_link():
    """And not before: something for it may come up in the step in which that breaks."""

    async def test():
        a, b, addresses = Echo(), Echo(), {}
        async with running(b, node_id=B) as to, running(a, node_id=A, addresses=addresses) as fro:
            addresses[B] = to.address
            send(fro, B, read(0))
            await a.until(lambda: answers(a) == [0])
            (link,) = fro.peers.links_of(B)
            addresses.clear()
            fro.links.finish(link, "broken")
            send(fro, B, read(1))
            await a.until(lambda: ("down", B) in a.events)
            assert fro.counters["peer_messages_dropped"] == 1

    run(test)


def test_what_waits_for_a_connection_is_bounded():
    async def test():
        a, b = Echo(), Echo()
        async with running(b, node_id=B) as to, running(a, node_id=A, addresses={B: to.address}, limits=Limits(queue_bytes_max=5000)) as fro:
            send(fro, B, *[read(i, b"k" * 900) for i in range(10)])
            await a.until(lambda: answers(a) == [0, 1, 2, 3, 4])
            assert fro.counters["peer_messages_dropped"] == 5

    run(test)


def test_a_peer_that_does_not_read_is_given_up():
    async def test():
        a = Echo()
        async with running(a, node_id=A, limits=Limits(output_bytes_max=1 << 20)) as reactor:
            peer = await connect(reactor.address)
            await peer.send(message_of(sign(Hello(cluster_id=CLUSTER, partitions=256, tree_shape=1, role=1, node_id=B, boot_nonce=B), SECRET)))
            await a.until(lambda: ("up", B) in a.events)
            for i in range(100):
                send(reactor, B, read(i, b"k" * 1024 * 200))
                await trio.testing.wait_all_tasks_blocked()
                if ("down", B) in a.events:
                    break
            assert a.events == [("up", B), ("down", B)]
            assert reactor.counters["connections_cut_off"] == 1

    run(test)


def test_a_peer_that_breaks_the_protocol_is_cut_off():
    async def test():
        for bad in (encode((m.GET, 1, b"default", b"k", 0, 0, 1)), encode((m.GOSSIP, 1)), b"\0\0\0\0"):
            a = Echo()
            async with running(a, node_id=A) as reactor:
                peer = await connect(reactor.address)
                await peer.send(message_of(sign(Hello(cluster_id=CLUSTER, partitions=256, tree_shape=1, role=1, node_id=B, boot_nonce=B), SECRET)))
                assert (await peer.receive())[0] == m.HELLO_REPLY
                await peer.stream.send_all(bad)
                assert await peer.receive() is None
                await a.until(lambda a=a: a.events == [("up", B), ("down", B)])

    run(test)


# --- who is not let in ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        pytest.param({"secret": b"x" * 32}, "secret", id="another secret"),
        pytest.param({"cluster_id": b"d" * 16}, "this is cluster", id="another cluster"),
        pytest.param({"node_id": b"z" * 16}, "answers at the address", id="another node at this address"),
        pytest.param({"node_id": A}, "own", id="this node's own id"),
    ],
)
def test_the_wrong_node_is_no_peer(other, reason):
    async def test():
        a, b = Echo(), Echo()
        async with running(b, **({"node_id": B} | other)) as to, running(a, node_id=A, addresses={B: to.address}) as fro:
            send(fro, B, read(1))
            await a.until(lambda: a.events.count(("down", B)) >= 2)
            assert ("up", B) not in a.events and not b.received
            assert isinstance(fro.refusals[B], ConfigError) and reason in str(fro.refusals[B])

    run(test)


def test_a_second_live_process_with_one_node_id_is_refused():
    async def test():
        a = Echo()
        async with running(a, node_id=A) as one:
            addresses = {A: one.address}
            async with running(Echo(), node_id=B, nonce=b"1" * 16, addresses=addresses) as first:
                send(first, A, read(1))
                await first.replica.until(lambda: answers(first.replica) == [1])
                async with running(Echo(), node_id=B, nonce=b"2" * 16, addresses=addresses) as second:
                    send(second, A, read(2))
                    await second.replica.until(lambda: second.replica.events)
                    assert second.replica.events[0] == ("down", A) and "another live process" in str(second.refusals[A])
                    assert a.events == [("up", B)]
                    assert (await (await greeted(one.address)).ask((m.CLUSTER_STATUS, 1)))[1] == 1
            await a.until(lambda: ("down", B) in a.events)
            async with running(Echo(), node_id=B, nonce=b"3" * 16, addresses=addresses) as later:  # the first is gone: it may return
                send(later, A, read(3))
                await later.replica.until(lambda: answers(later.replica) == [3])
                assert A not in later.refusals

    run(test)


def test_a_node_learns_what_others_know_of_its_actor():
    async def test():
        heard = []
        async with running(Echo(), node_id=B, known_lease=lambda node: (7, 99) if node == A else (0, 0)) as to:
            a = Echo()
            async with running(a, node_id=A, addresses={B: to.address}, lease_heard=lambda *lease: heard.append(lease)) as fro:
                send(fro, B, read(1))
                await a.until(lambda: answers(a) == [1])
        assert heard == [(7, 99)]

    run(test)


def test_a_dialled_stranger_that_speaks_another_protocol_is_no_peer():
    async def test():
        async def http(stream):
            async with stream:
                await stream.receive_some(1000)
                await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, http, 0)
            a, port = Echo(), listeners[0].socket.getsockname()[1]
            async with running(a, node_id=A, addresses={B: f"127.0.0.1:{port}"}) as fro:
                send(fro, B, read(1))
                await a.until(lambda: ("down", B) in a.events)
                assert isinstance(fro.refusals[B], ProtocolError)
            nursery.cancel_scope.cancel()

    run(test)
