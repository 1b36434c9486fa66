"""The reactor over real sockets: what comes back, in which order things happen, and what becomes of clients that misbehave."""

from __future__ import annotations

import errno
import socket
import ssl
import struct
from uuid import UUID

import pytest
import trio
from rig import CLUSTER, SECRET, Echo, connect, get, greeted, put, run, running

from dynamo.errors import ConfigError, ConnectionFailed, ProtocolError, StorageFull, Unavailable, ValueTooLarge
from dynamo.model import messages as m
from dynamo.net import connection as connection_module
from dynamo.net import reactor as reactor_module
from dynamo.net.limits import Limits
from dynamo.net.sockets import listen
from dynamo.wire.frames import encode
from dynamo.wire.hello import Hello, client_hello, message_of, sign


def test_echo_round_trip():
    async def test():
        async with running() as reactor:
            caller = await greeted(reactor.address)
            assert await caller.ask(get(7)) == (m.GET_REPLY, 7, 1, 1, 1, b"token", ((b"key", 1, 2, 3),), ())
            assert await caller.ask((m.CLUSTER_STATUS, 8)) == (m.CLUSTER_STATUS_REPLY, 8, b"document")

    run(test)


def test_hello_and_requests_split_at_every_byte():
    async def test():
        async with running() as reactor:
            caller = await connect(reactor.address)
            for byte in encode(client_hello()):
                await caller.stream.send_all(bytes([byte]))
            assert (await caller.receive())[0] == m.HELLO_REPLY
            frame = encode(get(1)) + encode(put(2))
            for cut in range(len(frame) + 1):
                await caller.stream.send_all(frame[:cut])
                await trio.testing.wait_all_tasks_blocked()  # the reactor has taken the first piece
                await caller.stream.send_all(frame[cut:])
                assert {(await caller.receive())[1], (await caller.receive())[1]} == {1, 2}
            assert not reactor.counters["protocol_errors"]

    run(test)


def test_pipelined_requests_are_all_answered_in_few_batches():
    async def test():
        echo, count = Echo(), 5000
        async with running(echo) as reactor:
            caller = await greeted(reactor.address)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(caller.send, *[get(i) for i in range(count)])
                answered = [(await caller.receive())[1] for _ in range(count)]
            assert sorted(answered) == list(range(count))
            assert reactor.counters["steps"] < count / 20

    run(test)


def test_a_connection_that_always_has_more_does_not_starve_the_others(monkeypatch):
    monkeypatch.setattr(reactor_module, "BATCH_MAX", 1)  # each step has time for one connection,
    monkeypatch.setattr(connection_module, "RECEIVE_BYTES", 1000)  # and takes a piece from it

    async def test():
        echo = Echo()
        async with running(echo) as reactor:
            flood, others = await connect(reactor.address), [await greeted(reactor.address) for _ in range(5)]
            peer = Hello(cluster_id=CLUSTER, partitions=256, tree_shape=1, role=m.ROLE_PEER, node_id=b"p" * 16, boot_nonce=b"p" * 16)
            assert (await flood.ask(message_of(sign(peer, SECRET))))[0] == m.HELLO_REPLY
            # All of it is there before the reactor looks, and the flood stays first in the kernel's list. (Clients have a window; peers have none.)
            sent = flood.stream.socket._sock.send(encode((m.GOSSIP_PUSH, 0, ())) * 20_000)
            assert sent > 50_000
            for i, caller in enumerate(others):
                caller.stream.socket._sock.send(encode(get(100_000 + i)))
            await echo.until(lambda: sum(message[1] >= 100_000 for _, message in echo.received) == 5)
            assert len(echo.received) < 10_000  # not all of the flood's pieces, of which there are fifty, came before

    run(test)


# --- order ----------------------------------------------------------------------------------------------------------------------------


class SlowCommits:
    """Commits end when the test says so, as on the commit thread."""

    def __init__(self, notify, order):
        self.notify, self.order = notify, order
        self.group = None
        self.done = []

    def submit(self, group):
        assert self.group is None
        self.group = group
        self.order.append(("submitted", group.number))

    def end(self, error=None):
        self.done.append((self.group, error))
        self.group = None
        self.notify()

    def completed(self):
        done, self.done = self.done, []
        return done

    def close(self):
        pass


@pytest.mark.parametrize("error", [None, StorageFull("full")])
def test_an_answer_waits_for_its_commit_and_fails_with_it(error):
    async def test():
        echo, made = Echo(), []

        def commits(notify):
            made.append(SlowCommits(notify, echo.events))
            return made[0]

        async with running(echo, commits=commits, refresh=lambda: echo.events.append("refreshed")) as reactor:
            caller = await greeted(reactor.address)
            await caller.send(put(1))
            await echo.until(lambda: ("submitted", 1) in echo.events)
            assert (await caller.ask(get(2)))[1] == 2  # reads go on meanwhile
            await caller.send(put(3))  # and the next group gathers, but is not given before this one is reported
            await echo.until(lambda: len(echo.received) == 3)
            await trio.testing.wait_all_tasks_blocked()
            assert [event for event in echo.events if event[0] == "submitted"] == [("submitted", 1)]
            made[0].end(error)
            await echo.until(lambda: ("submitted", 2) in echo.events)
            outcome = ("committed", 1) if error is None else ("commit_failed", 1, StorageFull)
            assert echo.events == [("submitted", 1), "refreshed", outcome, ("submitted", 2)]
            made[0].end()
            assert [(await caller.receive())[1] for _ in range(2 if error is None else 1)] == ([1, 3] if error is None else [3])

    run(test)


def test_inline_commits_are_answered_at_once_and_their_errors_reported():
    class Broken:
        def commit(self, group):
            if group.number == 1:
                raise StorageFull("full")

    async def test():
        from dynamo.net.commits import InlineCommits

        echo = Echo()
        async with running(echo, commits=lambda notify: InlineCommits(Broken())) as reactor:
            caller = await greeted(reactor.address)
            await caller.send(put(1))
            await echo.until(lambda: echo.events)
            assert (await caller.ask(put(2)))[:2] == (m.PUT_REPLY, 2)
            assert echo.events == [("commit_failed", 1, StorageFull), ("committed", 2)]
            assert reactor.counters["commits_failed"] == 1

    run(test)


def test_the_ticker_wakes_the_reactor_at_the_replicas_deadline():
    async def test():
        echo = Echo()
        echo.next_deadline = trio.current_time() + 1000
        async with running(echo) as reactor:
            caller = await greeted(reactor.address)
            echo.next_deadline = earlier = trio.current_time() + 30  # an earlier one appears in a step, long after the alarm was set
            await caller.ask(get(1))
            await echo.until(lambda: echo.events)
            assert earlier <= echo.events[0][1] < earlier + 1

    run(test, trio.testing.MockClock(autojump_threshold=0.05))


# --- who misbehaves -------------------------------------------------------------------------------------------------------------------


def tls_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="node").do_handshake()
    return outgoing.read()


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n", id="http"),
        pytest.param(tls_hello(), id="tls"),
        pytest.param(bytes(64), id="zeros"),
        pytest.param(b"\x00\x00\x00\x03abc", id="noise"),
        pytest.param(encode(get(1)), id="a request before HELLO"),
        pytest.param(encode((m.HELLO, 0, b"\x8aother\r\n", *Hello())), id="wrong magic"),
        pytest.param(encode(message_of(Hello(protocol_min=9, protocol_max=9))), id="later protocol"),
        pytest.param((8192).to_bytes(4, "big"), id="frame too large for a HELLO"),
    ],
)
def test_who_does_not_greet_properly_is_told_and_cut_off(first):
    async def test():
        echo = Echo()
        async with running(echo) as reactor:
            caller = await connect(reactor.address)
            await caller.stream.send_all(first)
            reply = await caller.receive()
            assert reply[:3] == (m.ERROR, 0, ProtocolError.code)
            assert await caller.receive() is None
            await caller.stream.aclose()
            await echo.until(lambda: not reactor.links.by_descriptor)
            assert not echo.received
            assert (await (await greeted(reactor.address)).ask(get(1)))[1] == 1

    run(test)


def test_another_cluster_is_refused_by_name():
    async def test():
        async with running() as reactor:
            reply = await (await connect(reactor.address)).ask(client_hello(b"d" * 16))
            assert reply[:3] == (m.ERROR, 0, ConfigError.code) and str(UUID(bytes=b"c" * 16)) in reply[3]

    run(test)


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(encode((m.GET, 2, b"default", b"k")), id="fields missing"),
        pytest.param(encode((77, 2)), id="unknown type"),
        pytest.param(encode((m.READ, 2, b"default", b"k", b"", 1, 1, 1, 0)), id="a message between nodes"),
        pytest.param(encode(client_hello()), id="a second HELLO"),
        pytest.param(b"\x00\x00\x00\x01\xc1", id="no msgpack"),
    ],
)
def test_a_malformed_request_closes_the_connection(bad):
    async def test():
        echo = Echo()
        async with running(echo) as reactor:
            caller, other = await greeted(reactor.address), await greeted(reactor.address)
            assert (await caller.ask(get(1)))[1] == 1
            await caller.stream.send_all(bad)
            assert (await caller.receive())[:3] == (m.ERROR, 0, ProtocolError.code)
            assert await caller.receive() is None
            assert (await other.ask(get(3)))[1] == 3
            assert len(echo.received) == 2

    run(test)


def test_the_hello_deadline_is_absolute():
    async def test():
        echo = Echo()
        async with running(echo, limits=Limits(hello_timeout_s=5.0)) as reactor:
            silent, dripping = await connect(reactor.address), await connect(reactor.address)
            patient = await greeted(reactor.address)
            began = trio.current_time()
            for byte in encode(client_hello())[:8]:
                await dripping.stream.send_all(bytes([byte]))
                await trio.sleep(0.5)
            assert await silent.receive() is None
            assert await dripping.receive() is None
            assert 4.9 < trio.current_time() - began < 6
            await trio.sleep(20)
            assert (await patient.ask(get(1)))[1] == 1  # who has greeted may be silent as long as it likes

    run(test, trio.testing.MockClock(autojump_threshold=0.05))


def test_a_reader_that_never_reads_is_cut_off_at_the_bound():
    async def test():
        echo = Echo()
        echo.copies = 300_000
        limits = Limits(output_bytes_max=4 << 20, output_pause_bytes=1 << 40)
        async with running(echo, limits=limits) as reactor:
            caller, other = await greeted(reactor.address), await greeted(reactor.address)
            peak = 0
            for i in range(200):
                try:
                    await caller.send(get(i))
                except trio.BrokenResourceError:
                    break
                await trio.testing.wait_all_tasks_blocked()
                peak = max(peak, *(link.output_bytes for link in reactor.links.by_descriptor.values()))
                if reactor.counters["connections_cut_off"]:
                    break
            assert reactor.counters["connections_cut_off"] == 1
            assert (1 << 20) < peak <= limits.output_bytes_max
            echo.copies = 1
            assert (await other.ask(get(1)))[1] == 1

    run(test)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_client_that_asks_for_far_more_than_the_bound_gets_all_of_it(at_once):
    async def test():
        echo, count = Echo(), 600
        echo.copies = 70_000
        async with running(echo, limits=Limits(output_bytes_max=4 << 20, output_pause_bytes=1 << 20)) as reactor:
            caller, other = await greeted(reactor.address), await greeted(reactor.address)
            requests = [get(i) for i in range(count)]  # 120 MB of answers
            if at_once:
                await caller.send(*requests)
            else:
                for request in requests:
                    await caller.send(request)
                    await trio.testing.wait_all_tasks_blocked()
            await trio.testing.wait_all_tasks_blocked()
            assert len(echo.received) < 60  # the rest waits, here or in the kernel
            assert (await other.ask(get(1000)))[1] == 1000
            assert sorted([(await caller.receive())[1] for _ in range(count)]) == list(range(count))
            assert not reactor.counters["connections_cut_off"]

    run(test)


def test_what_a_client_has_asked_for_and_not_taken_is_bounded():
    async def test():
        echo = Echo()
        echo.copies = 100_000
        async with running(echo) as reactor:
            caller, other = await greeted(reactor.address), await greeted(reactor.address)
            flood = encode(get(1)) * 2000
            with trio.move_on_after(30):
                while reactor.counters["steps"] < 500:
                    with trio.move_on_after(0.02) as blocked:
                        await caller.stream.send_all(flood)
                    if blocked.cancelled_caught:
                        break
            link = max(reactor.links.by_descriptor.values(), key=lambda link: link.output_bytes)
            assert link.backlog and len(link.backlog) <= connection_module.RECEIVE_BYTES // len(encode(get(1))) + 1
            assert link.output_bytes < reactor.limits.output_bytes_max and not reactor.counters["connections_cut_off"]
            echo.copies = 1
            assert (await other.ask(get(2)))[1] == 2

    run(test)


def test_small_answers_open_the_window():
    async def test():
        echo, made = Echo(), []

        def commits(notify):
            made.append(SlowCommits(notify, echo.events))
            return made[0]

        async with running(echo, commits=commits) as reactor:
            caller = await greeted(reactor.address)
            await caller.send(*[get(i) for i in range(200)])
            for _ in range(200):
                await caller.receive()
            await caller.send(*[put(i) for i in range(3000)])
            await echo.until(lambda: ("submitted", 1) in echo.events)
            await trio.testing.wait_all_tasks_blocked()
            taken = reactor.limits.requests_in_flight_max // 2  # half of the node's, for it is alone
            assert len(echo.received) == 200 + taken
            refused = [await caller.receive() for _ in range(3000 - taken)]  # at once, for no answer was given meanwhile
            assert {(reply[0], reply[2], reply[4]) for reply in refused} == {(m.ERROR, Unavailable.code, False)}
            async with trio.open_nursery() as nursery:

                async def commit():
                    while True:
                        await echo.until(lambda: made[0].group is not None)
                        made[0].end()

                nursery.start_soon(commit)
                answered = [(await caller.receive())[1] for _ in range(taken)]
                assert sorted([*answered, *(reply[1] for reply in refused)]) == list(range(3000))
                nursery.cancel_scope.cancel()

    run(test)


def test_unfinished_frames_are_bounded_over_all_connections():
    async def test():
        async with running(limits=Limits(input_total_bytes_max=100_000)) as reactor:
            callers = [await greeted(reactor.address) for _ in range(3)]
            for caller in callers:
                await caller.stream.send_all((1 << 20).to_bytes(4, "big") + bytes(49_000))
                await trio.testing.wait_all_tasks_blocked()
            assert await callers[2].receive() is None
            assert reactor.counters["connections_cut_off"] == 1
            assert sum(link.held_bytes for link in reactor.links.by_descriptor.values()) == 2 * 49_004

    run(test)


def test_waiting_output_is_bounded_over_all_connections():
    async def test():
        echo = Echo()
        echo.copies = 1_000_000
        async with running(echo, limits=Limits(output_total_bytes_max=20 << 20)) as reactor:
            callers = [await greeted(reactor.address) for _ in range(6)]
            for caller in callers:
                await caller.send(get(1), get(2), get(3))
            await echo.until(lambda: reactor.counters["connections_cut_off"])
            await trio.testing.wait_all_tasks_blocked()
            assert sum(link.output_bytes for link in reactor.links.by_descriptor.values()) <= 20 << 20

    run(test)


def test_one_connection_too_many_is_closed():
    async def test():
        async with running(limits=Limits(connections_max=2)) as reactor:
            first, second = await greeted(reactor.address), await greeted(reactor.address)
            third = await connect(reactor.address)
            assert await third.receive() is None
            await first.stream.aclose()
            assert (await second.ask(get(1)))[1] == 1
            assert (await (await greeted(reactor.address)).ask(get(1)))[1] == 1
            assert reactor.counters["connections_refused_full"] == 1

    run(test)


def test_without_descriptors_the_listener_pauses():
    class Exhausted:
        def __init__(self, sock):
            self._sock = sock

        def __getattr__(self, name):
            return getattr(self._sock, name)

        def accept(self):
            raise OSError(errno.EMFILE, "too many open files")

    async def test():
        async with running() as reactor:
            earlier = await greeted(reactor.address)
            real, reactor.listener.sock = reactor.listener.sock, Exhausted(reactor.listener.sock)
            caller = await connect(reactor.address)
            await earlier.ask(get(1))
            steps = reactor.counters["steps"]
            assert reactor.counters["accept_pauses"] == 1
            assert (await earlier.ask(get(2)))[1] == 2
            assert reactor.counters["steps"] == steps + 1  # it does not spin on the caller that waits
            reactor.listener.sock = real
            assert (await caller.ask(client_hello()))[0] == m.HELLO_REPLY

    run(test, trio.testing.MockClock(autojump_threshold=0.05))


def test_connections_closed_in_mid_batch_leave_nothing_behind():
    async def test():
        echo = Echo()
        async with running(echo) as reactor:
            stays = await greeted(reactor.address)
            for i in range(50):
                # Requests, ends and new connections arrive in one batch, and descriptors' numbers are used again at once.
                callers = [await greeted(reactor.address) for _ in range(6)]
                for caller in callers[:3]:
                    await caller.send(get(i), put(i))
                for caller in callers:
                    caller.stream.socket.close()
                assert (await stays.ask(get(i)))[1] == i
            await echo.until(lambda: len(reactor.links.by_descriptor) == 1)
            assert (await stays.ask(get(1000)))[1] == 1000

    run(test)


def test_an_answer_that_fits_no_frame_becomes_an_error():
    async def test():
        echo = Echo()
        echo.copies = 10_000
        async with running(echo, limits=Limits(frame_bytes_max=20_000)) as reactor:
            caller = await greeted(reactor.address)
            reply = await caller.ask(get(5))
            assert reply[:3] == (m.ERROR, 5, ValueTooLarge.code) and reply[4] is False

    run(test)


# --- starting and stopping ------------------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_a_configuration_error():
    with listen("127.0.0.1:0") as taken, pytest.raises(ConfigError, match="in use"):
        listen(f"127.0.0.1:{taken.getsockname()[1]}")
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        listen("192.0.2.1:0")
    with pytest.raises(ConfigError):
        listen("no-such-host.invalid:0")


def test_draining_answers_what_was_taken_and_takes_no_more():
    async def test():
        echo, made = Echo(), []

        def commits(notify):
            made.append(SlowCommits(notify, echo.events))
            return made[0]

        async with running(echo, commits=commits) as reactor:
            caller = await greeted(reactor.address)
            await caller.send(put(1))
            await echo.until(lambda: ("submitted", 1) in echo.events)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reactor.drain, 10)
                await trio.testing.wait_all_tasks_blocked()
                await caller.send(get(2))
                with pytest.raises(OSError):
                    await connect(reactor.address)
                assert nursery.child_tasks
                made[0].end()
            assert (await caller.receive())[:2] == (m.PUT_REPLY, 1)
            assert len(echo.received) == 1

    run(test)


def test_a_client_that_goes_away_while_it_is_not_read_is_noticed_and_does_not_spin():
    async def test():
        echo, made = Echo(), []

        def commits(notify):
            made.append(SlowCommits(notify, echo.events))
            return made[0]

        async with running(echo, commits=commits) as reactor:
            goes, stays = await greeted(reactor.address), await greeted(reactor.address)
            await stays.send(put(1))
            await echo.until(lambda: ("submitted", 1) in echo.events)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reactor.drain, 10)
                await trio.testing.wait_all_tasks_blocked()
                goes.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                goes.stream.socket.close()  # with a reset
                await echo.until(lambda: len(reactor.links.by_descriptor) == 1)
                steps = reactor.counters["steps"]
                await trio.testing.wait_all_tasks_blocked()
                assert reactor.counters["steps"] == steps
                made[0].end()
            assert (await stays.receive())[1] == 1

    run(test)


def test_closing_says_whether_all_is_on_disk():
    async def test(error, clean):
        echo, made = Echo(), []

        class Ending(SlowCommits):
            def close(self):
                self.done.append((self.group, error))

        def commits(notify):
            made.append(Ending(notify, echo.events))
            return made[0]

        closed = []
        async with running(echo, commits=commits) as reactor:
            real = reactor.close
            reactor.close = lambda: closed.append(real())
            caller = await greeted(reactor.address)
            await caller.send(put(1))
            await echo.until(lambda: ("submitted", 1) in echo.events)
        assert closed == [clean]

    for error, clean in ((None, True), (StorageFull("full"), False)):
        run(lambda error=error, clean=clean: test(error, clean))


def test_a_port_within_the_process():
    async def test():
        echo, replies = Echo(), []

        def deliver(message):
            replies.append(message)
            echo.note("delivered")

        async with running(echo) as reactor:
            port = reactor.open_local(deliver)
            port.send(get(1))
            port.send((m.CLUSTER_STATUS, 2))
            port.send(put(3))
            await echo.until(lambda: len(replies) == 3)
            assert sorted(reply[1] for reply in replies) == [1, 2, 3]
            with pytest.raises(ProtocolError):
                port.send((m.READ, 4))
            port.send(get(5))
            port.close()
            await echo.until(lambda: len(echo.received) == 3)
            assert len(replies) == 3
            await reactor.drain(1)
            with pytest.raises(ConnectionFailed):
                port.send(get(6))

    run(test)
