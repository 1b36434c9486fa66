"""The asynchronous client over real sockets, against scripted nodes, on Trio and on asyncio: one connection, any order, cancelled at any time."""

from __future__ import annotations

import asyncio
import gc
import math
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import trio
from fake_node import FakeNode, HangUp, error, get_reply, put_reply, scan_reply, store

import dynamo
from dynamo.client import channel as channels
from dynamo.client import window
from dynamo.client.core import RetryPolicy
from dynamo.errors import ConfigError, ConnectionFailed, ProtocolError, Timeout, Unavailable, ValueTooLarge
from dynamo.model import messages as m
from dynamo.model.messages import Message

Start = Callable[..., FakeNode]
Work = Callable[[], Awaitable[Any]]


class OnTrio:
    """The few things the tests do that differ from loop to loop."""

    Event = trio.Event
    sleep = staticmethod(trio.sleep)

    @staticmethod
    def run(main: Work) -> Any:
        return trio.run(main)

    @staticmethod
    async def together(*works: Work) -> list[Any]:
        results: dict[int, Any] = {}

        async def keep(number: int, work: Work) -> None:
            results[number] = await work()

        async with trio.open_nursery() as nursery:
            for number, work in enumerate(works):
                nursery.start_soon(keep, number, work)
        return [results[number] for number in range(len(works))]

    @staticmethod
    async def cancelled_after(seconds: float, work: Work) -> None:
        with trio.move_on_after(seconds) as scope:
            await work()
        assert scope.cancelled_caught


class OnAsyncio:
    Event = asyncio.Event
    sleep = staticmethod(asyncio.sleep)

    @staticmethod
    def run(main: Work) -> Any:
        return asyncio.run(main())  # type: ignore[arg-type]

    @staticmethod
    async def together(*works: Work) -> list[Any]:
        return list(await asyncio.gather(*[work() for work in works]))

    @staticmethod
    async def cancelled_after(seconds: float, work: Work) -> None:
        task = asyncio.ensure_future(work())
        await asyncio.wait([task], timeout=seconds)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.fixture(params=[OnTrio, OnAsyncio])
def loop(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda script, **options: stack.enter_context(FakeNode(script, **options))


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    """A socket or task that was left open is a warning when it is collected, and warnings are errors."""
    yield
    gc.collect()


def client(*nodes: FakeNode | str, **options: Any) -> dynamo.AsyncClient:
    return dynamo.AsyncClient([node if isinstance(node, str) else node.address for node in nodes], **options)


def in_order(c: dynamo.AsyncClient, *nodes: FakeNode | str) -> None:
    c._nodes.order = lambda now: [node if isinstance(node, str) else node.address for node in nodes]  # type: ignore[method-assign]


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


def reply_to(request: Message, *values: bytes) -> Message:
    return (m.GET_REPLY, request[1], *get_reply(*values)[2:])


# --- one connection, many requests ------------------------------------------------------------------------------------------------------


def test_many_tasks_share_one_connection(start: Start, loop: Any) -> None:
    node = start(store())

    async def main() -> None:
        async with client(node) as c:

            async def work(number: int) -> None:
                for i in range(10):
                    await c.set(f"{number}-{i}", b"%d" % number)
                    assert (await c.get(f"{number}-{i}")).value == b"%d" % number

            await loop.together(*[lambda number=number: work(number) for number in range(20)])

    loop.run(main)
    assert node.connections == 1 and len(node.requests) == 400
    assert len({request[1] for request in node.requests}) == 400, "request ids are never used twice"


def test_replies_in_any_order_find_their_requests(start: Start, loop: Any) -> None:
    held: list[Message] = []

    def script(message: Message) -> list[Message]:
        held.append(message)
        return [reply_to(request, request[3]) for request in reversed(held)] if len(held) == 7 else []

    node = start(script)

    async def main() -> list[Any]:
        async with client(node) as c:
            return await loop.together(*[lambda i=i: c.get(f"k{i}") for i in range(7)])

    assert [result.value for result in loop.run(main)] == [b"k%d" % i for i in range(7)] and node.connections == 1


def test_the_late_reply_to_a_cancelled_request_meets_nobody(start: Start, loop: Any) -> None:
    held: list[Message] = []

    def script(message: Message) -> list[Message]:
        held.append(message)
        return [] if message[3] == b"cancelled" else [reply_to(request, request[3]) for request in held]

    node = start(script)

    async def main() -> None:
        async with client(node) as c:
            await loop.cancelled_after(0.05, lambda: c.get("cancelled"))
            assert (await c.get("second")).value == b"second"
            held.clear()
            assert (await c.get("third")).value == b"third"

    loop.run(main)
    assert [request[3] for request in node.requests] == [b"cancelled", b"second", b"third"] and node.connections == 1


def test_a_request_cancelled_while_it_is_being_sent_leaves_no_half_frame(start: Start, loop: Any) -> None:
    """The node reads nothing until the large request, of which the socket takes a part, was given up."""
    reading = threading.Event()

    def script(message: Message) -> Message:
        assert reading.wait(30)
        return put_reply() if message[0] == m.PUT else get_reply(message[3])

    node = start(script)

    async def main() -> None:
        async with client(node) as c:

            async def give_up() -> None:
                await loop.cancelled_after(0.1, lambda: c.put("large", bytes(7 << 20)))
                reading.set()

            first, second, _ = await loop.together(lambda: c.get("first"), lambda: c.get("second"), give_up)
            assert (first.value, second.value, (await c.get("third")).value) == (b"first", b"second", b"third")

    loop.run(main)
    assert node.connections == 1 and [len(request[4]) for request in node.requests if request[0] == m.PUT] == [7 << 20]


def test_requests_under_way_are_bounded(start: Start, loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "REQUESTS_MAX", 4)
    node = start(lambda message: None)

    async def main() -> None:
        async with client(node) as c:

            async def in_vain() -> None:
                with pytest.raises(Timeout):
                    await c.get("k", timeout=0.2)

            await loop.together(*[in_vain for _ in range(10)])

    loop.run(main)
    assert len(node.requests) == 4


def test_answers_make_room_for_the_requests_that_wait(start: Start, loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "REQUESTS_MAX", 4)
    held: list[Message] = []

    def script(message: Message) -> list[Message]:
        held.append(message)
        if len(held) < 4:
            return []
        replies = [reply_to(request, request[3]) for request in held]
        held.clear()
        return replies

    node = start(script)

    async def main() -> list[Any]:
        async with client(node) as c:
            await loop.together(*[lambda: loop.cancelled_after(0.05, lambda: c.get("cancelled")) for _ in range(2)])  # two of the four places
            return await loop.together(*[lambda i=i: c.get(f"k{i}") for i in range(10)])

    assert [result.value for result in loop.run(main)] == [b"k%d" % i for i in range(10)] and node.connections == 1


def test_what_one_asks_for_never_ends_the_connection_of_the_others(start: Start, loop: Any) -> None:
    node = start(store())

    async def main() -> None:
        async with client(node) as c:
            await c.set("k", b"v")
            for timeout in (math.inf, 1e12, 5_000_000):
                results = await loop.together(*[lambda t=t: c.get("k", timeout=t) for t in (timeout, 5)])
                assert [result.value for result in results] == [b"v", b"v"]

    loop.run(main)
    assert node.connections == 1


def test_a_request_that_fits_into_no_frame_says_nothing_about_the_node(start: Start, loop: Any) -> None:
    node = start(store())

    async def main() -> None:
        async with client(node) as c:
            await c.set("k", b"v")
            with pytest.raises(ValueTooLarge):
                await c.put("k", bytes(9 << 20))
            assert not c._nodes._troubled and (await c.get("k")).value == b"v"

    loop.run(main)
    assert node.connections == 1


def test_a_request_cancelled_while_it_waits_for_room_is_not_sent(start: Start, loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window, "REQUESTS_MAX", 1)
    node = start(lambda message: None)

    async def main() -> None:
        async with client(node) as c:

            async def others() -> None:
                while not node.requests:
                    await loop.sleep(0.01)
                await loop.cancelled_after(0.05, lambda: c.get("k1"))
                with pytest.raises(Timeout) as raised:
                    await c.put("k2", b"v", timeout=0.05)
                assert not raised.value.maybe_applied

            await loop.together(lambda: loop.cancelled_after(0.5, lambda: c.get("k0")), others)

    loop.run(main)
    assert [request[3] for request in node.requests] == [b"k0"]


# --- errors, time and other nodes -------------------------------------------------------------------------------------------------------


def test_nobody_there_is_an_error_and_nothing_was_applied(loop: Any) -> None:
    async def main() -> None:
        async with client(closed_port(), closed_port()) as c:
            with pytest.raises(ConnectionFailed) as raised:
                await c.put("k", b"v")
            assert not raised.value.maybe_applied

    loop.run(main)


def test_a_repeated_write_has_the_same_operation_id_and_another_node(start: Start, loop: Any) -> None:
    def broken(message: Message) -> Message:
        raise HangUp

    nodes = [start(broken), start(lambda message: error(1, required=2, received=1)), start(lambda message: put_reply())]

    async def main() -> None:
        async with client(*nodes) as c:
            in_order(c, *nodes)
            assert (await c.put("k", b"v")).dot == (7, 9)

    loop.run(main)
    assert len({node.requests[0][10] for node in nodes}) == 1 and all(len(node.requests) == 1 for node in nodes)


def test_many_keys_go_on_at_another_node_where_one_cannot_serve_them(start: Start, loop: Any) -> None:
    nodes = [start(lambda message: (m.GET_MANY_REPLY, 0, tuple(error(1) for _ in message[3]))) for _ in range(2)]
    nodes.append(start(lambda message: (m.GET_MANY_REPLY, 0, tuple(get_reply(key) for key in message[3]))))

    async def main() -> None:
        async with client(*nodes) as c:
            in_order(c, *nodes)
            found = await c.get_many(["a", "b"])
            assert [result.value for result in found.values()] == [b"a", b"b"]
            in_order(c, *nodes[:2])
            assert all(isinstance(outcome, Unavailable) for outcome in (await c.get_many(["a", "b"])).values())

    loop.run(main)
    assert [len(node.requests) for node in nodes] == [2, 2, 1]


def test_silence_is_a_timeout_that_may_be_applied_and_ends_the_connection(start: Start, loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "SILENCE_S", 0.15)
    silent = [True]
    node = start(lambda message: None if silent[0] else get_reply(b"v"))

    async def main() -> None:
        async with client(node) as c:
            for timeout, connections in ((0.1, 1), (0.2, 1)):  # shorter than it takes to give the connection up; longer
                with pytest.raises(Timeout) as raised:
                    await c.put("k", b"v", timeout=timeout)
                assert raised.value.maybe_applied and node.connections == connections
            silent[0] = False
            assert (await c.get("k")).value == b"v" and node.connections == 2
            with pytest.raises(ValueTooLarge) as too_large:
                await c.put("k", bytes(9 << 20))
            assert not too_large.value.maybe_applied

    loop.run(main)


def test_a_silent_node_does_not_eat_the_whole_time(start: Start, loop: Any) -> None:
    silent, node = start(lambda message: None), start(store())

    async def main() -> None:
        async with client(silent, node, retry=RetryPolicy(attempt_timeout_s=0.1)) as c:
            in_order(c, silent, node)
            await c.set("k", b"v", timeout=3)

    loop.run(main)
    assert len(silent.requests) == len(node.requests) == 1


def test_a_connection_that_breaks_under_many_requests_is_made_once_more(start: Start, loop: Any) -> None:
    def script(message: Message) -> Message | None:
        if node.connections == 1 and len(node.requests) > 1:
            if len(node.requests) == 6:
                raise HangUp
            return None
        return get_reply(message[3])

    node = start(script)

    async def main() -> list[Any]:
        async with client(node) as c:
            await c.get("first")
            return await loop.together(*[lambda i=i: c.get(f"k{i}") for i in range(5)])

    assert [result.value for result in loop.run(main)] == [b"k%d" % i for i in range(5)] and node.connections == 2


def test_a_restarted_node_is_found_again(start: Start, loop: Any) -> None:
    first = FakeNode(store())

    async def main() -> FakeNode:
        async with client(first) as c:
            await c.set("k", b"v")
            first.stop()
            second = start(store(), port=first.port)
            assert not (await c.get("k")).found
            return second

    assert len(loop.run(main).requests) == 1


def test_the_answer_to_no_request_is_a_protocol_error(start: Start, loop: Any) -> None:
    node = start(lambda message: [(m.GET_REPLY, message[1] + 1, *get_reply(b"wrong")[2:])])
    malformed = start(lambda message: (m.GET_REPLY, 0, "nonsense"))

    async def main() -> None:
        for each in (node, malformed):
            async with client(each) as c:
                with pytest.raises(ProtocolError):
                    await c.get("k")

    loop.run(main)


def test_one_that_is_no_node_is_named(loop: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"

        def speak() -> None:
            for said in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b""):
                with listener.accept()[0] as accepted:
                    accepted.sendall(said)
                    accepted.recv(65536)

        async def main() -> None:
            async with client(address) as c:
                with pytest.raises(ProtocolError, match=f"^{address} does not answer .*is there a dynamo node at that address"):
                    await c.get("k")
                with pytest.raises(ConnectionFailed, match=f"^{address}.* before it had greeted; is there a dynamo node"):
                    await c.get("k")

        thread = threading.Thread(target=speak)
        thread.start()
        loop.run(main)
        thread.join()


@pytest.mark.parametrize("choosy", [True, False])
def test_addresses_of_two_clusters_are_refused(start: Start, choosy: bool, loop: Any) -> None:
    one, other = start(store()), start(store(), cluster_id=b"d" * 16, choosy=choosy)

    async def main() -> None:
        async with client(one, other) as c:
            in_order(c, one)
            await c.get("k")
            in_order(c, other)
            with pytest.raises(ConfigError, match=f"^{other.address}[: ].*cluster"):
                await c.get("k")

    loop.run(main)
    assert not other.requests


# --- the end ----------------------------------------------------------------------------------------------------------------------------


def test_closing_ends_what_is_under_way_and_refuses_what_comes(start: Start, loop: Any) -> None:
    node = start(lambda message: get_reply() if message[0] == m.GET else None)

    async def main() -> None:
        c = client(node)
        await c.get("k")

        async def write() -> None:
            with pytest.raises(ConnectionFailed, match="closed") as raised:
                await c.put("k", b"v")
            assert raised.value.maybe_applied

        async def close() -> None:
            while len(node.requests) < 3:
                await loop.sleep(0.01)
            await c.close()
            await c.close()

        await loop.together(write, write, close)
        with pytest.raises(RuntimeError, match="the client is closed"):
            async with c:
                raise AssertionError("entered")
        with pytest.raises(RuntimeError, match="the client is closed"):
            await c.get("k")

    loop.run(main)
    assert node.connections == 1


def test_a_client_outlives_its_loop_and_works_in_the_next_one(start: Start) -> None:
    node = start(store())
    c = client(node)
    for loop in (OnTrio, OnAsyncio, OnTrio):
        loop.run(lambda: c.set("k", b"v"))
    assert node.connections == 3
    OnTrio.run(c.close)


def test_without_a_loop_it_says_what_to_use() -> None:
    verb = client("h").get("k")
    with pytest.raises(RuntimeError, match=r"dynamo\.Client"):
        verb.send(None)


def test_two_loops_at_once_have_connections_of_their_own(start: Start) -> None:
    node = start(store())

    async def main() -> None:
        async with client(node) as c:
            await c.get("k")

            def elsewhere() -> None:
                asyncio.run(c.get("k"))

            await trio.to_thread.run_sync(elsewhere)
            await c.get("k")
            assert node.connections == 2

    trio.run(main)


def test_a_scan_may_be_left_in_the_middle_and_is_taken_by_one_task(start: Start, loop: Any) -> None:
    node = start(lambda message: scan_reply((b"a", b"1"), (b"b", b"2"), cursor=b"more"))

    async def main() -> None:
        async with client(node) as c:
            async for result in c.scan():
                assert result.key == b"a"
                break
            results = c.scan()

            async def take() -> bytes | str:
                try:
                    return (await anext(results)).key
                except RuntimeError as error:
                    return str(error)

            assert set(await loop.together(take, take)) == {b"a", "one task at a time takes the results of a scan"}

    loop.run(main)


def test_the_asynchronous_client_imports_no_loop_it_does_not_run_on() -> None:
    import os
    import subprocess
    import sys

    code = "import sys, dynamo; dynamo.AsyncClient('h'); sys.exit(bool({'trio', 'asyncio', 'lmdb'} & set(sys.modules)))"
    environ = os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(dynamo.__file__))}
    assert subprocess.run([sys.executable, "-P", "-c", code], env=environ, timeout=30).returncode == 0


def test_a_client_waits_for_busy_nodes_and_holds_nothing_against_them(start: Start, loop: Any) -> None:
    refusals = iter([error(Unavailable.code)] * 5)

    def script(message: Message) -> Message:
        return next(refusals, get_reply(b"v"))

    nodes = [start(script), start(script)]

    async def main() -> None:
        async with client(*nodes) as c:
            assert (await c.get("k")).value == b"v"
            assert not c._nodes._troubled

    loop.run(main)
    assert sorted(len(node.requests) for node in nodes) == [3, 3]
