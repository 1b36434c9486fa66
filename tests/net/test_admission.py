"""What a node takes in at a time: requests in flight, and how long a step may go on before timers have their turn."""

from __future__ import annotations

import socket

import pytest
import trio
from rig import Echo, get, greeted, put, run, running
from test_reactor import SlowCommits

from dynamo.errors import Unavailable
from dynamo.model import messages as m
from dynamo.net import reactor as reactor_module
from dynamo.net.admission import Admission, busy, expired
from dynamo.net.limits import Limits


@pytest.mark.parametrize(("connections", "share"), [(1, 256), (3, 128), (50, 10)])
def test_greedy_connections_share_and_leave_as_much_for_one_more(connections: int, share: int) -> None:
    admission, own = Admission(512), [0] * connections
    for _ in range(600):
        for at in range(connections):
            own[at] += admission.enter(own[at])
    assert min(own) >= share and max(own) - min(own) <= 1
    assert admission.in_flight == sum(own) <= 512 - share
    assert admission.enter(0)
    for _ in range(admission.in_flight):
        admission.leave()
    assert admission.in_flight == 0


@pytest.mark.parametrize("asked", [1, 2, 7, 600])
@pytest.mark.parametrize(("own", "others"), [(0, 0), (3, 10), (100, 301), (0, 511), (0, 512)])
def test_many_that_enter_at_once_are_as_many_as_would_one_by_one(own: int, others: int, asked: int) -> None:
    admission = Admission(512)
    admission.in_flight = own + others
    entered = 0
    while entered < asked and own + entered < 512 - (own + others + entered):  # fewer of its own than are free
        entered += 1
    assert admission.enter(own, asked) == entered and admission.in_flight == own + others + entered
    admission.leave(entered)
    assert admission.in_flight == own + others


def test_there_is_a_last_one() -> None:
    admission = Admission(512)
    assert sum(admission.enter(0) for _ in range(10_000)) == 512


@pytest.mark.parametrize(
    "message",
    [
        get(1),
        put(1),
        (m.GET_MANY, 1, b"default", (b"key",), 0, 0, 5000),
        (m.PUT_MANY, 1, b"default", ((b"key", b"", None, b"o" * 16),), 0, 0, 0, 5000),
        (m.SCAN, 1, b"default", b"", b"", 10, 5000),
    ],
)
def test_a_request_has_expired_when_it_waited_for_its_whole_time(message: m.Message) -> None:
    assert not expired(message, 4.9) and expired(message, 5.0)
    assert busy(message)[:3] == (m.ERROR, 1, Unavailable.code) and busy(message)[4:] == (False, 0, 0)


def test_a_full_node_refuses_at_once_and_takes_again_what_has_room() -> None:
    async def test() -> None:
        echo, made = Echo(), []

        def commits(notify):
            made.append(SlowCommits(notify, echo.events))
            return made[0]

        async with running(echo, commits=commits, limits=Limits(requests_in_flight_max=8)) as reactor:
            greedy, modest, gone = [await greeted(reactor.address) for _ in range(3)]
            await greedy.send(*[put(i) for i in range(10)])
            assert [(await greedy.receive())[1] for _ in range(6)] == [4, 5, 6, 7, 8, 9]  # while the others wait for their commit
            assert (await modest.ask(get(1)))[0] == m.GET_REPLY
            await gone.send(put(1))
            await echo.until(lambda: reactor.counters["requests_in_flight"] == 5)
            await gone.stream.aclose()
            await echo.until(lambda: reactor.counters["connections"] == 2)
            assert reactor.counters["requests_in_flight"] == 5  # its request is still carried out
            for _ in range(2):
                await echo.until(lambda: made[0].group is not None or reactor.counters["requests_in_flight"] == 0)
                if made[0].group is not None:
                    made[0].end()
            await echo.until(lambda: reactor.counters["requests_in_flight"] == 0)
            assert sorted([(await greedy.receive())[1] for _ in range(4)]) == [0, 1, 2, 3]
            assert reactor.counters["requests_refused_busy"] == 6

    run(test)


def test_requests_from_within_the_process_are_bounded_too() -> None:
    async def test() -> None:
        echo, replies = Echo(), []
        made: list[SlowCommits] = []

        def commits(notify):
            made.append(SlowCommits(notify, echo.events))
            return made[0]

        async with running(echo, commits=commits, limits=Limits(requests_in_flight_max=8)) as reactor:
            port = reactor.open_local(replies.append)
            for i in range(10):
                port.send(put(i))
            await echo.until(lambda: len(replies) == 2)
            assert [(reply[0], reply[1], reply[4]) for reply in replies] == [(m.ERROR, 8, False), (m.ERROR, 9, False)]
            made[0].end()
            await echo.until(lambda: len(replies) == 10)

    run(test)


def test_what_waited_behind_its_own_unread_answers_for_longer_than_its_time_is_not_carried_out() -> None:
    """The clock is the test's own, so that the client is slow without anybody waiting."""

    async def test() -> None:
        echo, now = Echo(), [trio.current_time()]
        echo.copies = 100_000
        async with running(echo, limits=Limits(output_pause_bytes=1000), clock=lambda: now[0]) as reactor:
            caller = await greeted(reactor.address)
            await caller.send(*[get(i) for i in range(60)])
            await trio.testing.wait_all_tasks_blocked()
            (link,) = reactor.links.by_descriptor.values()
            carried_out = len(echo.received)
            assert link.backlog and carried_out + len(link.backlog) == 60
            now[0] += 5.0
            replies = [await caller.receive() for _ in range(60)]
            assert sorted(reply[1] for reply in replies) == list(range(60))
            late = [reply for reply in replies if reply[0] == m.ERROR]
            assert late and {(reply[2], reply[4]) for reply in late} == {(Unavailable.code, False)}
            assert len(echo.received) == 60 - len(late)
            assert (await caller.ask(get(99)))[0] == m.GET_REPLY

    run(test)


class Slow(Echo):
    """An echo for which time passes with each message, by a clock that it turns itself."""

    def __init__(self) -> None:
        super().__init__()
        self.time = trio.current_time()
        self.ticks: list[tuple[float, int]] = []

    def receive(self, batch, now):
        super().receive(batch, now)
        self.time += 100e-6 * len(batch)

    def tick(self, now):
        self.ticks.append((now, len(self.received)))
        self.next_deadline = now + 1e-3


def test_a_step_gives_the_replica_two_milliseconds_of_work_and_timers_have_their_turn() -> None:
    async def test() -> None:
        slow, count = Slow(), 250
        async with running(slow, clock=lambda: slow.time) as reactor:
            first, second = await greeted(reactor.address), await greeted(reactor.address)
            assert (await first.ask(get(0)))[1] == 0  # a small answer: from here on the window is wide
            slow.next_deadline = slow.time
            first.stream.socket._sock.send(b"".join(reactor_module.encode(get(i)) for i in range(count)))
            second.stream.socket._sock.send(reactor_module.encode(get(1000)))
            await slow.until(lambda: len(slow.received) == count + 2)
            assert max(slow.batches) <= reactor_module.SLICE
            lateness = [after - before for (before, _), (after, _) in zip(slow.ticks, slow.ticks[1:], strict=False)]
            worked = [after - before for (_, before), (_, after) in zip(slow.ticks, slow.ticks[1:], strict=False)]
            assert len(slow.ticks) >= 6  # 25 ms of work in all
            most = reactor_module.STEP_S + reactor_module.SLICE * 100e-6
            assert max(lateness) <= most + 1e-9 and max(worked) * 100e-6 <= most + 1e-9
            assert [(await first.receive())[1] for _ in range(count)] == list(range(count))  # in their order
            assert (await second.receive())[1] == 1000
            assert 0 < reactor.counters["tick_late_us_max"] <= 1e6 * most * 1.05

    run(test)


def test_a_client_that_stops_reading_is_cut_off_after_a_while_and_one_that_reads_is_not() -> None:
    async def test() -> None:
        echo, now = Echo(), [trio.current_time()]
        echo.copies = 1_000_000
        async with running(echo, clock=lambda: now[0]) as reactor:
            stopped, slow = await greeted(reactor.address), await greeted(reactor.address)

            async def look() -> None:
                now[0] += reactor.limits.output_stall_s
                reactor.call_soon(lambda _: None)
                await trio.testing.wait_all_tasks_blocked()

            for caller in (stopped, slow):
                await caller.send(*[get(i) for i in range(4)])  # 3 MB each, more than the sockets hold
            await trio.testing.wait_all_tasks_blocked()
            assert all(link.waiting_bytes for link in reactor.links.by_descriptor.values())
            await look()
            assert not reactor.counters["connections_cut_off"]
            taken = 0
            while not reactor.counters["connections_cut_off"] and taken < 3:  # what was on its way to the stopped one may be acknowledged late
                assert (await slow.receive())[1] in range(4)
                taken += 1
                await trio.testing.wait_all_tasks_blocked()
                await look()
            assert reactor.counters["connections_cut_off"] == 1 and reactor.counters["connections"] == 1
            for _ in range(4 - taken):
                assert (await slow.receive())[1] in range(4)
            await look()
            await look()
            assert reactor.counters["connections_cut_off"] == 1  # who has nothing to take takes nothing

    run(test)


def test_a_client_that_reads_slowly_has_not_stopped() -> None:
    """What it takes is less than makes room in this side's socket: the kernel asks for more only when a third of its buffer is free."""

    async def test() -> None:
        echo, now = Echo(), [trio.current_time()]
        echo.copies = 1_000_000
        async with running(echo, clock=lambda: now[0]) as reactor:
            slow = await greeted(reactor.address)
            slow.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
            await slow.send(*[get(i) for i in range(4)])
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(6):
                left = 200_000
                while left:
                    left -= len(await slow.stream.receive_some(left))
                await trio.testing.wait_all_tasks_blocked()
                now[0] += reactor.limits.output_stall_s
                reactor.call_soon(lambda _: None)
                await trio.testing.wait_all_tasks_blocked()
                assert not reactor.counters["connections_cut_off"]

    run(test)


def test_a_stop_answers_what_came_from_within_while_a_step_was_not_done() -> None:
    async def test() -> None:
        replies: list[m.Message] = []
        answered_at_the_end: list[int] = []

        def idle() -> bool:
            answered_at_the_end.append(len(replies))
            return True

        class Asked(Slow):
            def receive(self, batch, now):
                super().receive(batch, now)
                if batch[0][1][1] == 0:  # in the first of several steps
                    port.send(get(7))
                    nursery.start_soon(reactor.drain, 10.0)

        asked = Asked()
        limits = Limits(output_bytes_max=1 << 34)  # a wide window from the start
        async with running(asked, clock=lambda: asked.time, idle=idle, limits=limits) as reactor, trio.open_nursery() as nursery:
            port = reactor.open_local(replies.append)
            caller = await greeted(reactor.address)
            caller.stream.socket._sock.send(b"".join(reactor_module.encode(get(i)) for i in range(7 * 32)))
            await asked.until(lambda: answered_at_the_end)
            assert answered_at_the_end[0] == 1

    run(test)
