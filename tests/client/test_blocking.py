"""The blocking client over real sockets, against scripted nodes: verbs, retries, time-outs, pooling, threads and forks."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from fake_node import FakeNode, HangUp, error, get_reply, put_reply, store

import dynamo
from dynamo.client.core import Request, RetryPolicy
from dynamo.client.pool import PROBE_S_MIN, Pool
from dynamo.errors import (
    ConfigError,
    ConnectionFailed,
    InvalidContext,
    KeyTooLong,
    ProtocolError,
    Timeout,
    Unavailable,
    ValueTooLarge,
)
from dynamo.model import messages as m
from dynamo.model.messages import Message

Start = Callable[..., FakeNode]


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda script, **options: stack.enter_context(FakeNode(script, **options))


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def client(*nodes: FakeNode | str, **options: Any) -> dynamo.Client:
    return dynamo.Client([node if isinstance(node, str) else node.address for node in nodes], **options)


class Text:
    def encode(self, value: str) -> bytes:
        return value.encode()

    def decode(self, data: bytes) -> str:
        return data.decode()


# --- verbs --------------------------------------------------------------------------------------------------------------------------


def test_get_reads_siblings_context_and_owners(start: Start) -> None:
    node = start(lambda message: get_reply(b"a", b"b", owners=2))
    with client(node) as c:
        result = c.get("k", r=2, pr=1)
    assert (result.key, result.values, bytes(result.context), result.owners_answered) == (b"k", (b"a", b"b"), b"token", 2)
    assert result.siblings[1].dot == (7, 2) and result.siblings[1].time == 1.0
    assert node.requests[0][2:6] == (b"default", b"k", 2, 1) and 4000 < node.requests[0][6] <= 5000


def test_put_sends_context_and_quorums_and_returns_the_new_context(start: Start) -> None:
    node = start(lambda message: put_reply(unseen=4))
    with client(node) as c:
        context = c.bucket("b").put(b"k", b"v", context="dG9rZW4", w=3, pw=2)
        c.set("k", bytearray(b"w"))
    assert (bytes(context), context.dot, context.unseen_siblings) == (b"put-token", (7, 9), 4)
    put, set_ = node.requests
    assert put[2:9] == (b"b", b"k", b"v", b"token", m.MODE_PUT, 3, 2) and len(put[10]) == 16
    assert set_[2:7] == (b"default", b"k", b"w", None, m.MODE_SET) and set_[10] != put[10]


def test_delete_wants_a_context_or_to_be_blind(start: Start) -> None:
    node = start(lambda message: get_reply(b"v") if message[0] == m.GET else put_reply())
    with client(node) as c:
        for wrong in ({}, {"context": b"t", "blind": True}):
            with pytest.raises(TypeError, match="blind=True"):
                c.delete("k", **wrong)
        assert not node.requests
        c.delete("k", context=b"mine")
        c.delete("k", blind=True)
    assert [message[0] for message in node.requests] == [m.PUT, m.GET, m.PUT]
    assert [message[4:6] for message in node.requests if message[0] == m.PUT] == [(None, b"mine"), (None, b"token")]


def test_update_reads_changes_and_writes_under_the_context_read(start: Start) -> None:
    seen = []
    node = start(lambda message: get_reply(b"a", b"b") if message[0] == m.GET else put_reply())
    with client(node) as c:
        c.bucket("b", codec=Text()).update("k", lambda values: seen.append(values) or "+".join(values))  # type: ignore[func-returns-value]
        c.update("k", lambda values: dynamo.DELETE)
    assert seen == [["a", "b"]]
    assert [message[4:6] for message in node.requests if message[0] == m.PUT] == [(b"a+b", b"token"), (None, b"token")]


def test_update_of_an_absent_key_gets_the_default(start: Start) -> None:
    node = start(store())
    with client(node) as c:
        c.update("k", lambda values: values[0] + b"1", default=b"0")
        c.update("k", lambda values: values[0] + b"2", default=b"0")
        assert c.get("k").value == b"012"


def test_what_a_change_raises_reaches_the_caller_and_nothing_is_written(start: Start) -> None:
    node = start(store())
    with client(node) as c, pytest.raises(ZeroDivisionError):
        c.update("k", lambda values: 1 / 0)
    assert [message[0] for message in node.requests] == [m.GET]


def test_get_many_keeps_errors_beside_results_and_asks_in_parts(start: Start) -> None:
    def script(message: Message) -> Message:
        if b"k0" in message[3]:
            return (m.GET_MANY_REPLY, 0, tuple(error(8) if key == b"k1" else get_reply(key) for key in message[3]))
        return error(3)

    node = start(script)
    keys = [f"k{i}" for i in range(200)] + ["k0"]
    with client(node) as c:
        found = c.get_many(keys)
    assert len(found) == 200 and len(node.requests) == 2
    assert found[b"k0"].value == b"k0" and isinstance(found[b"k1"], dynamo.CorruptRecord)  # type: ignore[union-attr]
    assert isinstance(found[b"k199"], InvalidContext)
    with client(node) as c, pytest.raises(TypeError):
        c.get_many("key")


def test_a_bucket_resolves_siblings_and_decodes_values(start: Start) -> None:
    node = start(lambda message: get_reply(b"a", b"b"))
    with client(node) as c:
        bucket = c.bucket("b", resolver=lambda siblings: max(s.value for s in siblings), codec=Text())
        assert bucket.get("k").value == "b"
        assert bucket.get("k", resolver=lambda siblings: "mine").value == "mine"
        with pytest.raises(dynamo.ConflictError):
            _ = c.get("k").value


def test_a_wrong_call_raises_and_sends_nothing(start: Start) -> None:
    node = start(store())
    with client(node) as c:
        for wrong, kind in [
            (lambda: c.put("k", "text"), TypeError),
            (lambda: c.get("k" * 1025), KeyTooLong),
            (lambda: c.get(5), TypeError),  # type: ignore[arg-type]
            (lambda: c.put("k", b"v", context="!"), InvalidContext),
            (lambda: c.get("k", r=-1), ValueError),
            (lambda: c.get("k", timeout=0), ValueError),
            (lambda: c.put("k", bytes(9 << 20)), ValueTooLarge),
        ]:
            with pytest.raises(kind):
                wrong()
    assert not node.requests
    with pytest.raises(RuntimeError):
        c.get("k")


# --- finding a node that answers ----------------------------------------------------------------------------------------------------


def test_a_refused_connection_is_passed_over(start: Start) -> None:
    node = start(store())
    with client(f"127.0.0.1:{closed_port()}", node) as c:
        for _ in range(20):
            assert not c.get("k").found
    assert len(node.requests) == 20


def test_nobody_there_is_an_error_at_once_and_nothing_was_applied() -> None:
    began = time.monotonic()
    with client(f"127.0.0.1:{closed_port()}", f"127.0.0.1:{closed_port()}") as c, pytest.raises(ConnectionFailed) as raised:
        c.put("k", b"v")
    assert not raised.value.maybe_applied and time.monotonic() - began < 2


def test_a_repeated_write_has_the_same_operation_id_and_another_node(start: Start) -> None:
    def broken(message: Message) -> Message:
        raise HangUp

    nodes = [start(broken), start(lambda message: error(1, required=2, received=1)), start(lambda message: put_reply())]
    with client(*nodes) as c:
        c._pool.order = lambda: [node.address for node in nodes]  # type: ignore[method-assign]
        c.put("k", b"v")
    assert len({node.requests[0][10] for node in nodes}) == 1 and all(len(node.requests) == 1 for node in nodes)


def test_a_silent_node_does_not_eat_the_whole_time(start: Start) -> None:
    silent, node = start(lambda message: None), start(store())
    with client(silent, node, retry=RetryPolicy(attempt_timeout_s=0.1)) as c:
        c._pool.order = lambda: [silent.address, node.address]  # type: ignore[method-assign]
        began = time.monotonic()
        c.set("k", b"v")
        assert time.monotonic() - began < 2
    assert len(silent.requests) == 1


def test_a_node_that_failed_is_sent_a_request_once_it_has_greeted(start: Start) -> None:
    first, other = start(store()), start(store())
    with client(first, other) as c:
        c._pool.order = lambda: [first.address, other.address]  # type: ignore[method-assign]
        c.set("k", b"v")
        first.stop()
        c._pool.forget(first.address)
        c._pool.failed(first.address)
        c._pool._greeted_s[first.address] = 0.001
        with socket.create_server(("127.0.0.1", first.port)):  # a stopped process: its kernel accepts
            for _ in range(3):
                began = time.monotonic()
                c.set("k", b"v")
                assert time.monotonic() - began < 0.8  # of the second that an attempt may take
        assert len(other.requests) == 3
        again = start(store(), port=first.port)
        c.set("k", b"v")
        assert len(again.requests) == 1 and not c._pool._nodes.failing(first.address)


def test_a_write_that_only_a_probe_tried_is_not_applied(start: Start) -> None:
    other = start(lambda message: error(1, required=2, received=1))
    with socket.create_server(("127.0.0.1", 0)) as stopped:
        address = f"127.0.0.1:{stopped.getsockname()[1]}"
        with client(address, other, retry=RetryPolicy(attempts_max=2)) as c:
            c._pool.order = lambda: [address, other.address]  # type: ignore[method-assign]
            c._pool.failed(address)
            c._pool._greeted_s[address] = 0.001
            with pytest.raises(Unavailable) as raised:
                c.put("k", b"v")
            assert not raised.value.maybe_applied


def test_a_probe_waits_longer_the_slower_a_node_used_to_be_and_the_more_often_it_failed_and_never_longer_than_an_attempt() -> None:
    pool = Pool(["a", "b", "c"], RetryPolicy())
    assert pool.probe_s(["a", "b"]) is None  # nothing is wrong
    pool.failed("a")
    assert pool.probe_s(["b", "a"]) is None
    assert pool.probe_s(["a", "b"]) is None  # nobody knows how long it takes
    pool._greeted_s["a"] = 0.001
    assert pool.probe_s(["a", "b"]) == PROBE_S_MIN
    assert pool.probe_s(["a"]) is None
    pool._greeted_s["a"] = 0.1
    assert pool.probe_s(["a", "b"]) == pytest.approx(0.4)
    pool._probes["a"] = pool._probes.get("a", 0) + 1
    assert pool.probe_s(["a", "b"]) == pytest.approx(0.8)
    pool._probes["a"] = pool._probes.get("a", 0) + 1
    assert pool.probe_s(["a", "b"]) == 1.0  # as long as an attempt
    pool.failed("b")
    assert pool.probe_s(["a", "b"]) is None  # there is no better one to go to
    assert pool.probe_s(["a", "b", "c"]) == 1.0
    pool.served("a")
    assert pool.probe_s(["a", "c"]) is None


def test_silence_everywhere_is_a_timeout_that_may_be_applied_within_the_time_given(start: Start) -> None:
    silent = start(lambda message: None)
    with client(silent) as c:
        began = time.monotonic()
        with pytest.raises(Timeout) as raised:
            c.put("k", b"v", timeout=0.3)
        assert 0.25 < time.monotonic() - began < 2 and raised.value.maybe_applied
        with pytest.raises(TimeoutError) as raised:
            c.get("k", timeout=0.1)
        assert not raised.value.maybe_applied


def test_unavailable_everywhere_says_what_was_needed(start: Start) -> None:
    nodes = [start(lambda message: error(1, required=2, received=1)) for _ in range(2)]
    with client(*nodes) as c, pytest.raises(Unavailable) as raised:
        c.get("k")
    assert (raised.value.required, raised.value.received) == (2, 1) and all(len(node.requests) == 1 for node in nodes)


def test_a_port_that_speaks_something_else_is_a_protocol_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def speak() -> None:
            with listener.accept()[0] as accepted:
                accepted.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                accepted.recv(65536)

        thread = threading.Thread(target=speak)
        thread.start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with client(address) as c, pytest.raises(ProtocolError, match=f"^{address} does not answer .*is there a dynamo node at that address") as raised:
            c.get("k")
        thread.join()
    assert str(raised.value).count(address) == 1


def test_one_that_hangs_up_on_a_greeting_is_perhaps_no_node() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=lambda: listener.accept()[0].close())
        thread.start()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with client(address) as c, pytest.raises(ConnectionFailed, match=f"^{address}.* before it had greeted; is there a dynamo node"):
            c.get("k")
        thread.join()


@pytest.mark.parametrize("choosy", [True, False])
def test_addresses_of_two_clusters_are_refused(start: Start, choosy: bool) -> None:
    one, other = start(store()), start(store(), cluster_id=b"d" * 16, choosy=choosy)
    with client(one, other) as c:
        c._pool.order = lambda: [one.address]  # type: ignore[method-assign]
        c.get("k")
        c._pool.order = lambda: [other.address]  # type: ignore[method-assign]
        with pytest.raises(ConfigError, match=f"^{other.address}[: ].*cluster" if choosy else "64646464-6464-6464-6464-646464646464.*63636363-6363-"):
            c.get("k")
    assert not other.requests


def test_the_answer_to_another_request_is_not_taken(start: Start) -> None:
    node = start(lambda message: (m.GET_REPLY, message[1] + 1, *get_reply(b"wrong")[2:]))
    with client(node) as c, pytest.raises(ProtocolError):
        c.get("k")


@pytest.mark.parametrize("text", ["dynamo://h:1,[::1]:2", "h:1, [::1]:2", "dynamo://h:1,[::1]:2/", "h:1,[::1]:2,h:1"])
def test_addresses_of_a_url_or_a_list(text: str) -> None:
    assert dynamo.Client(text)._addresses == ("h:1", "[::1]:2")
    assert dynamo.Client("h")._addresses == ("h:7379",)
    for wrong in ("", "dynamo://", "h:port"):
        with pytest.raises(ConfigError):
            dynamo.Client(wrong)


# --- connections --------------------------------------------------------------------------------------------------------------------


def test_a_connection_is_used_again_and_a_timed_out_one_is_not(start: Start) -> None:
    replies: Iterator[Message | None] = iter([get_reply(b"1"), get_reply(b"2"), None, get_reply(b"4")])
    node = start(lambda message: next(replies))
    with client(node) as c:
        assert [c.get("k").value for _ in range(2)] == [b"1", b"2"] and node.connections == 1
        with pytest.raises(Timeout):
            c.get("k", timeout=0.1)
        assert c.get("k").value == b"4" and node.connections == 2


def test_a_restarted_node_is_found_again_on_a_fresh_connection(start: Start) -> None:
    first = FakeNode(store())
    with client(first) as c:
        c.set("k", b"v")
        first.stop()
        second = start(store(), port=first.port)
        assert not c.get("k").found and len(second.requests) == 1


def test_a_connection_that_dies_under_a_request_is_tried_anew_at_the_same_node(start: Start) -> None:
    calls = 0

    def script(message: Message) -> Message:
        nonlocal calls
        calls += 1
        if calls == 2:  # an idle connection that looked alive, and was not
            raise HangUp
        return put_reply()

    node = start(script)
    with client(node) as c:
        c.put("k", b"1")
        c.put("k", b"2")
    assert calls == 3 and node.requests[1][10] == node.requests[2][10]


def test_a_write_to_a_node_that_has_gone_is_not_sent_into_a_dead_connection() -> None:
    node = FakeNode(store())
    with client(node) as c:
        c.set("k", b"v")
        node.stop()
        with pytest.raises(ConnectionFailed) as raised:
            c.set("k", b"w")
    assert not raised.value.maybe_applied


def test_one_dead_idle_connection_tells_of_the_others(start: Start) -> None:
    def script(message: Message) -> Message:
        if len(node.requests) == 3:
            raise HangUp
        return get_reply()

    node = start(script)
    with client(node) as c:
        held = [c._pool.take(node.address, time.monotonic() + 5) for _ in range(2)]
        for connection in held:
            connection.exchange(Request(m.GET, (b"b", b"k", 0, 0), m.GET_REPLY), 1000, time.monotonic() + 5)
            c._pool.give(connection)
        c.get("k")
    assert node.connections == 3 and len(node.requests) == 4


def test_threads_share_a_client(start: Start) -> None:
    nodes = [start(store()) for _ in range(2)]
    with client(*nodes) as c:
        c._pool.order = lambda: [node.address for node in nodes]  # type: ignore[method-assign]
        wrong: list[Any] = []

        def work(number: int) -> None:
            for i in range(50):
                key, value = f"{number}-{i}", f"{number}:{i}".encode()
                c.set(key, value)
                if c.get(key).value != value:
                    wrong.append(key)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong and len(nodes[0].requests) == 800 and nodes[0].connections <= 8


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # the fake node is a thread; the child does not touch it
def test_a_forked_child_opens_its_own_connections(start: Start) -> None:
    node = start(store())
    with client(node) as c:
        c.set("k", b"v")
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.write(write, c.get("k", timeout=10).value)
                status = 0
            finally:
                os._exit(status)
        assert os.read(read, 10) == b"v" and os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        os.close(read), os.close(write)
        assert node.connections == 2
        assert c.get("k").value == b"v" and node.connections == 2  # the parent's connection is as it was


def test_a_request_that_fits_into_no_frame_says_nothing_about_the_nodes(start: Start) -> None:
    node, other = start(store()), start(store())
    with client(node, other) as c:
        for _ in range(3):
            with pytest.raises(ValueTooLarge) as raised:
                c.put("k", bytes(9 << 20))
            assert not raised.value.maybe_applied
        assert not node.requests and not other.requests and not c._pool._nodes._troubled


def test_a_closed_client_says_so(start: Start) -> None:
    node = start(store())
    c = client(node)
    results, bucket = c.scan(), c.bucket("b")
    c.close()
    c.close()
    for verb in (lambda: c.get("k"), lambda: bucket.set("k", b"v"), lambda: next(results), c.stats, c.cluster_status, c.__enter__):
        with pytest.raises(RuntimeError, match="the client is closed"):
            verb()
    assert not node.connections


def test_the_client_imports_no_trio() -> None:
    import subprocess
    import sys

    code = "import sys, dynamo; dynamo.Client('h'); sys.exit('trio' in sys.modules or 'lmdb' in sys.modules)"
    environ = os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(dynamo.__file__))}
    assert subprocess.run([sys.executable, "-P", "-c", code], env=environ, timeout=30).returncode == 0


def test_a_client_waits_for_busy_nodes_and_holds_nothing_against_them(start: Start) -> None:
    refusals = iter([error(Unavailable.code)] * 5)

    def script(message: Message) -> Message:
        return next(refusals, get_reply(b"v"))

    nodes = [start(script), start(script)]
    with client(*nodes) as c:
        assert c.get("k").value == b"v"
        assert not c._pool._nodes._troubled
    assert sorted(len(node.requests) for node in nodes) == [3, 3]
