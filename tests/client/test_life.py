"""The life of clients: threads, loops, forks, signals, the end of each, and what is left behind, which is nothing."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from fake_node import FakeNode, store
from interrupting import codes_of, interrupted_at_each_line

import dynamo
from dynamo.client.channel import Channel
from dynamo.client.connection import Connection
from dynamo.client.core import RetryPolicy
from dynamo.client.pool import Pool
from dynamo.client.window import Window
from dynamo.errors import ConnectionFailed

Start = Callable[..., FakeNode]
RUNS: list[Callable[[Callable[[], Awaitable[Any]]], Any]] = [trio.run, lambda main: asyncio.run(main())]  # type: ignore[arg-type]


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda script, **options: stack.enter_context(FakeNode(script, **options))


@pytest.fixture(params=RUNS, ids=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    yield
    gc.collect()


def sockets() -> int:
    """Open sockets of this process, of the fake nodes too."""
    return sum("socket:" in os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.exists() or path.is_symlink())


def in_child(deed: Callable[[], object]) -> int:
    """The exit code of a forked child that does this; one that hangs is ended."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(10)
            deed()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def silent_port() -> socket.socket:
    """One whose kernel accepts, and nobody else."""
    return socket.create_server(("127.0.0.1", 0))


# --- loops ------------------------------------------------------------------------------------------------------------------------------


def test_loops_that_were_closed_without_a_word_leave_nothing_and_the_next_one_works(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    node = start(store())
    c = dynamo.AsyncClient(node.address)
    for number in range(3):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(c.set("k", b"%d" % number))
        loop.close()
    asyncio.run(c.close())
    gc.collect()
    assert node.connections == 3 and "pending" not in caplog.text
    with pytest.raises(RuntimeError, match="the client is closed"):
        asyncio.run(c.get("k"))


def test_a_loop_that_rests_keeps_its_connection_and_another_loop_may_close_it(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    node = start(store())
    c = dynamo.AsyncClient(node.address)
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    for loop in (first, second, first, second):
        loop.run_until_complete(c.set("k", b"v"))
    assert node.connections == 2
    channels = [channel for home in c._homes for channel in home.channels.values()]
    second.run_until_complete(c.close())
    assert [channel._sock.fileno() for channel in channels] == [-1, -1]
    with pytest.raises(RuntimeError, match="the client is closed"):
        first.run_until_complete(c.get("k"))
    first.close()
    second.close()
    gc.collect()
    assert "pending" not in caplog.text


@pytest.mark.parametrize("other", RUNS, ids=["trio", "asyncio"])
def test_first_use_in_loops_of_several_threads_at_once(start: Start, run: Any, other: Any) -> None:
    node = start(store())
    c = dynamo.AsyncClient(node.address)
    together, wrong = threading.Barrier(3), list[BaseException]()

    def work(run: Any, number: int) -> None:
        async def main() -> None:
            for i in range(20):
                await c.set(f"{number}", b"%d" % i)
                assert (await c.get(f"{number}")).value == b"%d" % i

        try:
            together.wait(10)
            run(main)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(each, number)) for number, each in enumerate((run, other, run))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong and node.connections == 3
    run(c.close)


@pytest.mark.parametrize("other", RUNS, ids=["trio", "asyncio"])
def test_closing_from_another_loop_ends_the_calls_of_a_loop_that_runs(start: Start, run: Any, other: Any) -> None:
    node, sent, outcome = start(lambda message: sent.set()), threading.Event(), list[BaseException]()
    c = dynamo.AsyncClient(node.address, timeout=60)

    async def wait() -> None:
        try:
            await c.set("k", b"v")
        except ConnectionFailed as error:
            outcome.append(error)

    thread = threading.Thread(target=run, args=(wait,))
    thread.start()
    assert sent.wait(10)
    other(c.close)
    other(c.close)
    thread.join(10)
    assert not thread.is_alive() and "closed" in str(outcome[0]) and outcome[0].maybe_applied  # type: ignore[attr-defined]


def test_closing_during_a_dial_tells_all_who_wait_for_it_at_once(run: Any) -> None:
    with silent_port() as listener:
        c = dynamo.AsyncClient(f"127.0.0.1:{listener.getsockname()[1]}", timeout=60)

        async def wait() -> None:
            with pytest.raises(ConnectionFailed, match="the client was closed") as raised:
                await c.set("k", b"v")
            assert not raised.value.maybe_applied

        async def main() -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
                await c.close()

        async def main_asyncio() -> None:
            waiting = [asyncio.ensure_future(wait()) for _ in range(3)]
            while not any(home.hurry for home in c._homes):
                await asyncio.sleep(0)
            await c.close()
            await asyncio.gather(*waiting)

        began = time.monotonic()
        run(main if run is trio.run else main_asyncio)
        assert time.monotonic() - began < 20


# --- forks ------------------------------------------------------------------------------------------------------------------------------


def test_a_forked_child_closes_or_uses_an_asynchronous_client_and_the_parents_connection_lives(start: Start) -> None:
    node = start(store())
    c = dynamo.AsyncClient(node.address)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(c.set("k", b"v"))

    def use() -> None:
        async def main() -> None:
            assert (await c.get("k")).value == b"v"
            await c.close()

        asyncio.run(main())

    assert in_child(lambda: asyncio.run(c.close())) == 0
    assert in_child(lambda: trio.run(c.close)) == 0
    assert in_child(use) == 0
    assert node.connections == 2
    assert loop.run_until_complete(c.get("k")).value == b"v" and node.connections == 2
    loop.run_until_complete(c.close())
    loop.close()


def test_a_fork_within_a_loop_may_close_the_client_and_leaves_the_loop_of_the_parent_alone(start: Start, run: Any) -> None:
    node = start(store())

    def goes(coroutine: Any) -> bool:
        try:
            coroutine.send(None)
        except StopIteration:
            return True
        return False

    async def main() -> None:
        def refused() -> None:
            with pytest.raises(RuntimeError, match=r"a copy, by a fork|within a running event loop"):
                goes(c.get("k"))

        async with dynamo.AsyncClient(node.address) as c:
            await c.set("k", b"v")
            assert in_child(refused) == 0
            assert in_child(lambda: goes(c.close()) or 1 / 0) == 0
            assert (await c.get("k")).value == b"v" and node.connections == 1

    run(main)


def test_a_forked_child_closes_a_client_whatever_a_thread_of_the_parent_was_doing(start: Start) -> None:
    node, stop = start(store()), threading.Event()
    with dynamo.Client(node.address) as c:

        def work() -> None:
            while not stop.is_set():
                c.set("k", b"v")

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(10):
                assert in_child(c.close) == 0
                assert in_child(lambda: c.get("k")) == 0
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert c.get("k").value == b"v"


def test_a_child_that_closes_the_client_leaves_the_connection_to_a_call_of_the_parent(start: Start) -> None:
    answer, ended = store(), list[int]()

    def script(message: Any) -> Any:
        ended.append(in_child(c.close))
        return answer(message)

    node = start(script)
    with dynamo.Client(node.address) as c:
        c.set("k", b"v")
    assert ended == [0] and node.connections == 1


# --- the blocking client ----------------------------------------------------------------------------------------------------------------


def test_closing_ends_the_calls_of_other_threads_at_once(start: Start) -> None:
    node, sent = start(lambda message: sent.set()), threading.Event()
    c = dynamo.Client(node.address, timeout=60)
    outcome = list[Any]()

    def work() -> None:
        try:
            c.set("k", b"v")
        except ConnectionFailed as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    assert sent.wait(10)
    c.close()
    thread.join(20)
    assert str(outcome[0]) == "the client was closed" and outcome[0].maybe_applied


def test_closing_ends_the_dials_of_other_threads_at_once() -> None:
    outcome = list[Any]()
    with silent_port() as listener:
        retry = RetryPolicy(attempt_timeout_s=60, dial_timeout_s=60)
        c = dynamo.Client(f"127.0.0.1:{listener.getsockname()[1]}", timeout=60, retry=retry)

        def work() -> None:
            try:
                c.set("k", b"v")
            except ConnectionFailed as error:
                outcome.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        accepted, _ = listener.accept()
        c.close()
        thread.join(20)
        assert not thread.is_alive()
        accepted.close()
    assert str(outcome[0]) == "the client was closed" and not outcome[0].maybe_applied


def test_a_client_is_used_within_an_update_a_codec_and_a_resolver_of_its_own(start: Start) -> None:
    node = start(store())
    with dynamo.Client(node.address) as c:
        c.set("other", b"1")

        class Reading:
            def encode(self, value: bytes) -> bytes:
                return value + (c.get("other").value or b"")

            def decode(self, data: bytes) -> bytes:
                return data + (c.get("other").value or b"")

        bucket = c.bucket("b", codec=Reading())
        bucket.update("k", lambda values: c.get("other").value)
        assert bucket.get("k").value == b"111"


def test_a_signal_handler_uses_the_client_wherever_it_interrupts_it(start: Start) -> None:
    node = start(store())
    with dynamo.Client(node.address) as c:
        c.set("k", b"v")
        inside, found = [False], list[bytes]()
        codes = codes_of(Pool)

        def trace(frame: Any, event: str, _: Any) -> Any:
            if event == "line" and frame.f_code in codes and not inside[0]:
                inside[0] = True
                found.append(c.get("k").value)
                inside[0] = False
            return trace

        sys.settrace(trace)
        try:
            for _ in range(3):
                assert c.get("k").value == b"v"
        finally:
            sys.settrace(None)
        assert len(found) > 20 and set(found) == {b"v"}


def test_an_interruption_at_any_line_leaves_the_client_usable_and_no_socket(start: Start) -> None:
    node = start(store())
    before = sockets()
    with dynamo.Client(node.address) as c:
        c.set("k", b"v")
        c._pool.forget(node.address)
        places = 0
        for _ in interrupted_at_each_line(lambda: c.get("k"), codes_of(Pool, Connection, dynamo.Client)):
            places += 1
            assert not any(each() for each in c._pool._busy.values())
            if places % 3 == 0:
                c._pool.forget(node.address)
        assert places > 20 and c.get("k").value == b"v"
    node.stop()
    gc.collect()
    assert sockets() <= before - 3


def test_an_interruption_at_any_line_takes_no_place_in_the_window(start: Start) -> None:
    node = start(store())

    async def main() -> None:
        async with dynamo.AsyncClient(node.address) as c:
            await c.set("k", b"v")
            (channel,) = c._homes[0].channels.values()
            codes = {Channel._exchange.__code__, Window.enter.__code__}

            def step() -> None:
                coroutine = c.get("k")
                try:
                    coroutine.send(None)
                finally:
                    coroutine.close()

            for _ in interrupted_at_each_line(step, codes):
                assert set(channel._window._inside) == set(channel._calls)

    asyncio.run(main())


# --- what is left open, copied, patched -------------------------------------------------------------------------------------------------


def test_an_unclosed_client_is_one_warning_with_its_addresses_and_the_line(start: Start, run: Any) -> None:
    node = start(store())

    def blocking() -> None:
        c = dynamo.Client(node.address)
        c.set("k", b"v")

    async def on_a_loop() -> None:
        c = dynamo.AsyncClient(node.address)
        await c.set("k", b"v")

    for kind, deed in (("Client", blocking), ("AsyncClient", lambda: run(on_a_loop))):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            deed()
            gc.collect()
        texts = [str(each.message) for each in caught if each.category is ResourceWarning]
        assert len(texts) == 1 and f"unclosed {kind}('{node.address}')" in texts[0] and f"{__file__}:" in texts[0]


def test_an_unclosed_client_is_warned_of_though_the_loop_that_used_it_is_over(start: Start, run: Any) -> None:
    node = start(store())

    def use() -> None:
        c = dynamo.AsyncClient(node.address)
        run(lambda: c.set("k", b"v"))
        run(c.__aenter__)  # in another loop, where it asks nothing

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        use()
        gc.collect()
    assert [each.category for each in caught] == [ResourceWarning]


def test_no_warning_of_a_client_that_was_closed_never_used_or_is_the_parents(start: Start, run: Any) -> None:
    node = start(store())
    program = """if True:
        import gc, os, sys, dynamo
        c = dynamo.Client(sys.argv[1])
        c.set("k", b"v")
        if os.fork() == 0:
            del c
            gc.collect()
            sys.exit()
        assert os.wait()[1] == 0
        c.close()
        dynamo.Client("h"), dynamo.AsyncClient("h")
    """
    environ = os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(dynamo.__file__))}
    done = subprocess.run([sys.executable, "-W", "always", "-c", program, node.address], env=environ, timeout=30, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_cannot_be_copied_says_what_to_do() -> None:
    blocking, on_a_loop = dynamo.Client("h"), dynamo.AsyncClient("h")
    for each in (blocking, on_a_loop, blocking.bucket("b"), on_a_loop.bucket("b"), blocking.scan(), on_a_loop.scan()):
        for deed in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match=r"cannot be pickled or copied.*addresses.*in each process"):
                deed(each)


def test_a_client_does_without_poll() -> None:
    program = """if True:
        import sys, select
        for name in ("poll", "epoll", "kqueue", "devpoll"):
            if hasattr(select, name):
                delattr(select, name)
        import dynamo
        with dynamo.Client(sys.argv[1]) as c:
            c.set("k", b"v")
            assert c.get("k").value == b"v"
    """
    environ = os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(dynamo.__file__))}
    with FakeNode(store()) as node:
        done = subprocess.run([sys.executable, "-c", program, node.address], env=environ, timeout=30, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert node.connections == 1
