"""Both pollers and both wakers, by the rules the reactor relies on."""

from __future__ import annotations

import gc
import os
import select
import socket
import struct
import threading

import pytest
import trio
from rig import run, running

from dynamo.errors import ConfigError
from dynamo.net import polling
from dynamo.net.polling import HUNG_UP, READ, VARIABLE, WRITE, EventWaker, NestedPoller, SocketWaker, make_poller
from dynamo.net.portable import PortablePoller

POLLERS = {"nested": (NestedPoller, EventWaker), "portable": (PortablePoller, SocketWaker)}


class Rig:
    """A poller that runs, and socket pairs that are closed at the end."""

    def __init__(self):
        self.poller, self.waker = make_poller()
        self._sockets = []

    def pair(self):
        pair = socket.socketpair()
        for sock in pair:
            sock.setblocking(False)
        self._sockets += pair
        return pair

    async def events(self, events_max=64):
        """What happens next."""
        while True:
            await self.poller.wait()
            if events := self.poller.poll(events_max):
                return dict(events)

    async def quiet(self):
        """Whether nothing happens while everybody else has nothing to do."""
        with trio.move_on_after(0.05):
            return await self.events()
        return None


def polled(test):
    """Run `test(rig)` with a poller of the kind asked for."""

    async def whole():
        rig = Rig()
        try:
            async with trio.open_nursery() as nursery:
                rig.poller.start(nursery)
                await test(rig)
                nursery.cancel_scope.cancel()
        finally:
            for sock in rig._sockets:
                sock.close()
            rig.poller.close()
            rig.waker.close()

    run(whole)


def test_the_environment_picks(loop, monkeypatch):
    async def test():
        async with running() as reactor:
            assert (type(reactor.links.poll_set), type(reactor._waker)) == POLLERS[loop]

    run(test)
    monkeypatch.setenv(VARIABLE, "fast")
    with pytest.raises(ConfigError, match="DYNAMO_LOOP: 'fast'"):
        make_poller()


@pytest.mark.parametrize("lacking", ["epoll", "eventfd", "nesting"])
def test_without_nested_polling_the_portable_one_is_taken_unasked(lacking, monkeypatch):
    class Flat:
        """An epoll that refuses to be within another."""

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def fileno(self):
            return 0

        def register(self, *_):
            raise OSError(22, "Invalid argument")

    if lacking == "nesting":
        monkeypatch.setattr(select, "epoll", Flat)
    else:
        monkeypatch.delattr(select if lacking == "epoll" else os, lacking)
    monkeypatch.setenv(VARIABLE, "nested")
    with pytest.raises(ConfigError, match="no nested polling"):
        make_poller()
    monkeypatch.delenv(VARIABLE)
    poller, waker = make_poller()
    waker.close()
    assert (type(poller), type(waker)) == POLLERS["portable"]


def test_the_bits_are_those_of_the_kernel():
    assert (READ, WRITE, HUNG_UP) == (select.POLLIN, select.POLLOUT, select.POLLHUP | select.POLLERR)
    if polling.nesting_works():
        assert (READ, WRITE, HUNG_UP) == (select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP | select.EPOLLERR)


def test_what_is_still_ready_is_reported_again_and_what_is_not_is_not():
    async def test(rig):
        here, there = rig.pair()
        rig.poller.register(here.fileno(), READ)
        assert await rig.quiet() is None
        there.send(b"abc")
        for _ in range(3):
            assert await rig.events() == {here.fileno(): READ}
            here.recv(1)
        assert await rig.quiet() is None
        there.send(b"d")
        assert await rig.events() == {here.fileno(): READ}

    polled(test)


def test_only_what_is_watched_for_is_reported():
    async def test(rig):
        here, there = rig.pair()
        there.send(b"abc")
        rig.poller.register(here.fileno(), 0)
        assert await rig.quiet() is None
        rig.poller.modify(here.fileno(), READ | WRITE)
        seen = 0
        while seen != READ | WRITE:
            seen |= (await rig.events())[here.fileno()]
        rig.poller.modify(here.fileno(), WRITE)
        assert await rig.events() == {here.fileno(): WRITE}
        await trio.testing.wait_all_tasks_blocked()  # it is writable, and that may be on its way
        rig.poller.modify(here.fileno(), 0)
        assert rig.poller.poll(64) == []
        assert await rig.quiet() is None
        rig.poller.modify(here.fileno(), READ)
        assert await rig.events() == {here.fileno(): READ}

    polled(test)


@pytest.mark.parametrize("mask", [0, READ, WRITE])
def test_who_hangs_up_is_reported_whatever_is_watched_for(mask):
    async def test(rig):
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as there:
            here, _ = server.accept()
            with here:
                here.setblocking(False)
                while mask == WRITE:  # full, or it would be writable all the time
                    try:
                        here.send(bytes(65_536))
                    except BlockingIOError:
                        break
                rig.poller.register(here.fileno(), mask)
                there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                there.close()  # with a reset
                events = await rig.events()
                assert events[here.fileno()] & (HUNG_UP | mask)
                rig.poller.unregister(here.fileno())
                assert await rig.quiet() is None

    polled(test)


def test_a_number_that_is_used_again_has_no_past():
    async def test(rig):
        for waits, sends in ((False, False), (False, True), (True, False), (True, True)):
            here, there = rig.pair()
            number = here.fileno()
            rig.poller.register(number, READ | WRITE if sends else READ)
            if sends:
                there.send(b"late")
            if waits:
                await trio.testing.wait_all_tasks_blocked()
            rig.poller.unregister(number)
            here.close()
            again, other = rig.pair()
            if again.fileno() != number:
                again, other = other, again
            rig.poller.register(again.fileno(), READ)
            assert await rig.quiet() is None
            other.send(b"new")
            assert await rig.events() == {again.fileno(): READ}
            rig.poller.unregister(again.fileno())

    polled(test)


def test_everybody_gets_a_turn_however_few_events_are_taken_at_once():
    async def test(rig):
        pairs = [rig.pair() for _ in range(40)]
        for here, there in pairs:
            rig.poller.register(here.fileno(), READ)
            there.send(b"x")
        seen = set()
        for _ in range(8):  # nobody receives, so all of them stay ready
            await trio.testing.wait_all_tasks_blocked()
            seen |= set(await rig.events(5))
        assert len(seen) == 40

    polled(test)


def test_any_thread_can_wake_it_and_many_times_are_once():
    async def test(rig):
        rig.poller.register(rig.waker.descriptor, READ)
        threads = [threading.Thread(target=lambda: [rig.waker.wake() for _ in range(1000)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await trio.to_thread.run_sync(thread.join)
        assert await rig.events() == {rig.waker.descriptor: READ}
        rig.waker.clear()
        assert await rig.quiet() is None
        rig.waker.wake()
        assert await rig.events() == {rig.waker.descriptor: READ}

    polled(test)


def test_a_waker_that_is_full_neither_waits_nor_fails():
    waker = SocketWaker()
    for _ in range(100_000):
        waker.wake()
    assert select.select([waker.descriptor], [], [], 0)[0]
    waker.clear()
    assert not select.select([waker.descriptor], [], [], 0)[0]
    waker.close()


def test_nothing_is_left_behind():
    before = set(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else set()

    async def test(rig):
        here, _ = rig.pair()
        rig.poller.register(here.fileno(), READ | WRITE)
        await rig.events()

    polled(test)
    gc.collect()
    assert len(before) == (len(os.listdir("/proc/self/fd")) if before else 0)
