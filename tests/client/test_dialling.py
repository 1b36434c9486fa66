"""The way to a node, in the time that there is: names with several addresses, dead ones among them, name services that hang, flows that die unseen,
and nodes of another cluster."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import colours
import pytest
from fake_node import FakeNode, get_reply, put_reply, store

import dynamo
from dynamo.client import channel, connection
from dynamo.client.connection import Connection
from dynamo.client.core import RetryPolicy
from dynamo.dialling import names
from dynamo.errors import ConfigError, ConnectionFailed, DynamoError, Timeout
from dynamo.model.messages import Message

QUICK = RetryPolicy(dial_timeout_s=0.2)
SLACK_S = 1.5  # a busy machine; what is tested takes several times as long where it is wrong


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def start(stack: ExitStack) -> Callable[..., FakeNode]:
    return lambda script=None, **options: stack.enter_context(FakeNode(script or store(), **options))


@pytest.fixture(params=colours.ALL)
def client(request: pytest.FixtureRequest, stack: ExitStack) -> Callable[..., Any]:
    def make(*addresses: str, **options: Any) -> Any:
        made = request.param(addresses, **options)
        stack.callback(made.close)
        return made

    return make


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch, stack: ExitStack) -> dict[str, Any]:
    """Names to lists of addresses, or to an event until which the look-up hangs."""
    known: dict[str, Any] = {}
    system = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        found = known.get(host)
        if found is None:
            return system(host, port, *arguments, **options)
        if isinstance(found, threading.Event):
            found.wait(30)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [(socket.AF_INET6 if ":" in each else socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    stack.callback(lambda: [event.set() for event in known.values() if isinstance(event, threading.Event)])
    return known


def blackhole(stack: ExitStack, host: str, port: int) -> str:
    """An address that lets nobody in and says nothing: its backlog is full."""
    listener = stack.enter_context(socket.socket())
    listener.bind((host, port))
    listener.listen(0)
    for _ in range(4):
        filler = stack.enter_context(socket.socket())
        filler.setblocking(False)
        with suppress(BlockingIOError):
            filler.connect((host, port))
    return host


def mute(stack: ExitStack, host: str, port: int) -> str:
    """An address that lets everybody in and says nothing, as a stopped process does."""
    stack.enter_context(socket.create_server((host, port)))
    return host


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    began = time.monotonic()
    return call(), time.monotonic() - began


# --- names with several addresses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dead", [blackhole, mute])
def test_a_good_address_behind_dead_ones_of_the_same_name_is_found(dead: Any, start: Any, client: Any, resolve: Any, stack: ExitStack) -> None:
    node = start()
    resolve["cluster.test"] = [*(dead(stack, f"127.0.0.{last}", node.port) for last in (2, 3, 4)), "127.0.0.1"]
    (context,), took = timed(lambda: client(f"cluster.test:{node.port}", timeout=3).run(("set", "k", b"v")))
    assert isinstance(context, dynamo.Context) and took < 2 and node.connections == 1


@pytest.mark.parametrize("dead", [blackhole, mute])
def test_dead_addresses_of_one_name_share_one_deadline(dead: Any, start: Any, client: Any, resolve: Any, stack: ExitStack) -> None:
    port = start().port
    resolve["cluster.test"] = [dead(stack, f"127.0.0.{last}", port) for last in (2, 3, 4)]
    (error,), took = timed(lambda: client(f"cluster.test:{port}", timeout=0.5).run(("set", "k", b"v")))
    assert isinstance(error, Timeout) and not error.maybe_applied and 0.4 < took < 0.5 + SLACK_S


@pytest.mark.parametrize("dead", [blackhole, mute])
def test_dead_addresses_given_beside_a_good_one_leave_time_for_it(dead: Any, start: Any, client: Any, resolve: Any, stack: ExitStack) -> None:
    node = start()
    resolve["gone.test"] = [dead(stack, f"127.0.0.{last}", node.port) for last in (2, 3, 4)]
    several = [f"gone.test:{node.port}", *(f"{dead(stack, f'127.0.0.{last}', node.port)}:{node.port}" for last in (5, 6)), node.address]
    (context,), took = timed(lambda: client(*several, timeout=3, retry=QUICK).run(("set", "k", b"v")))
    assert isinstance(context, dynamo.Context) and took < 3


def test_however_many_are_dead_all_are_tried(start: Any, client: Any, resolve: Any, stack: ExitStack) -> None:
    node = start()
    resolve["cluster.test"] = [*(mute(stack, f"127.0.0.{last}", node.port) for last in range(2, 14)), "127.0.0.1"]
    assert client(f"cluster.test:{node.port}", timeout=1).run(("get", "k"))[0].found is False


def test_refused_addresses_cost_no_time_and_each_is_named(start: Any, client: Any, resolve: Any) -> None:
    node = start()
    resolve["cluster.test"] = [*(f"127.0.0.{last}" for last in range(2, 12)), "127.0.0.1"]
    resolve["gone.test"] = ["127.0.0.2", "127.0.0.3"]
    (result,), took = timed(lambda: client(f"cluster.test:{node.port}", timeout=3).run(("get", "k")))
    assert not result.found and took < 1.5
    error = client(f"gone.test:{node.port}", timeout=3).run(("get", "k"))[0]
    assert isinstance(error, ConnectionFailed) and all(f"({host}): Connection refused" in str(error) for host in resolve["gone.test"])


def test_a_family_that_leads_nowhere_is_passed_over(start: Any, client: Any, resolve: Any) -> None:
    node = start()
    resolve["cluster.test"] = ["2001:db8::1", "2001:db8::2", "127.0.0.1"]
    assert client(f"cluster.test:{node.port}", timeout=3).run(("get", "k"))[0].found is False


def test_families_take_turns() -> None:
    six, four = [(socket.AF_INET6, (f"::{i}", 1, 0, 0)) for i in range(3)], [(socket.AF_INET, (f"127.0.0.{i}", 1)) for i in range(2)]
    assert names.in_turn([*six, six[0], *four]) == [six[0], four[0], six[1], four[1], six[2]]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_addresses_in_numbers_are_not_looked_up(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", None)
    assert names.look_up(host, 7, 1.0)[0][1][:2] == (host, 7)


# --- name services ------------------------------------------------------------------------------------------------------------------


def test_a_look_up_that_hangs_is_bounded_and_holds_up_no_other_address(start: Any, client: Any, resolve: Any) -> None:
    node, resolve["hangs.test"] = start(), threading.Event()
    (error,), took = timed(lambda: client("hangs.test:1", timeout=0.3).run(("set", "k", b"v")))
    assert isinstance(error, DynamoError) and not error.maybe_applied and took < 0.3 + SLACK_S
    both = client("hangs.test:1", node.address, timeout=2, retry=QUICK)
    assert all(isinstance(context, dynamo.Context) for context in both.run(*[("set", "k", b"v")] * 5))


def test_look_ups_that_hang_are_bounded_in_number(client: Any, resolve: Any) -> None:
    before = threading.active_count()
    for number in range(names.LOOK_UPS_MAX + 8):
        resolve[f"hangs{number}.test"] = resolve.get("hangs0.test") or threading.Event()
    found = [client(f"hangs{number}.test:1", timeout=0.01).run(("get", "k"), ("get", "k")) for number in range(names.LOOK_UPS_MAX + 8)]
    assert all(isinstance(error, Timeout | ConnectionFailed) for errors in found for error in errors)
    assert threading.active_count() - before <= names.LOOK_UPS_MAX + 4  # and what a loop may have of its own


def test_a_name_is_found_again_after_look_ups_hung(start: Any, client: Any, resolve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "HUNG_S", 0.05)
    node, resolve["cluster.test"] = start(), threading.Event()
    one = client(f"cluster.test:{node.port}", timeout=0.2)
    assert isinstance(one.run(("get", "k"))[0], DynamoError)
    resolve["hung"], resolve["cluster.test"] = resolve["cluster.test"], ["127.0.0.1"]
    assert one.run(("get", "k"))[0].found is False


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a..b", "x" * 300, "\ud800"])
def test_what_is_no_name_is_a_failed_connection(host: str, client: Any) -> None:
    error = client(f"{host}:1", timeout=2).run(("get", "k"))[0]
    assert isinstance(error, ConnectionFailed | Timeout)


def test_a_forked_child_does_not_wait_for_a_look_up_of_its_parent(start: Any, resolve: Any) -> None:
    node, hangs = start(), threading.Event()
    resolve["cluster.test"] = hangs
    with dynamo.Client(f"cluster.test:{node.port}", timeout=0.1) as c, pytest.raises(Timeout):
        c.get("k")
    child = os.fork()
    if not child:
        try:
            resolve["cluster.test"] = ["127.0.0.1"]
            with dynamo.Client(f"cluster.test:{node.port}", timeout=2) as c:
                os._exit(0 if c.get("k").found is False else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- flows that die unseen ----------------------------------------------------------------------------------------------------------


def test_a_time_out_puts_every_idle_connection_of_the_node_in_doubt(start: Any) -> None:
    dead: list[int] = []
    node = start(lambda message: None if dead and node.connections <= dead[0] else get_reply(b"v"))
    with dynamo.Client(node.address, timeout=5) as c:
        several = [c._pool.take(node.address, time.monotonic() + 5) for _ in range(20)]
        for each in several:
            c._pool.give(each)
        dead.append(20)
        with pytest.raises(Timeout):
            c.get("k", timeout=0.1)
        assert [c.get("k").value for _ in range(20)] == [b"v"] * 20 and node.connections == 21


def test_a_dead_flow_costs_an_asynchronous_client_one_time_out(start: Any, client: Any) -> None:
    dead: list[int] = []

    def script(message: Message) -> Message | None:
        if message[3] == b"last":
            dead.append(node.connections)
        return None if dead and node.connections <= dead[0] else get_reply(b"v")

    node = start(script)
    one = client(node.address, timeout=0.4)
    first, last, *others = one.run(("get", "k"), ("get", "last"), *[("get", "k")] * 5)
    assert first.value == b"v" and isinstance(last, Timeout) and [each.value for each in others] == [b"v"] * 5 and node.connections == 2


def test_what_was_at_rest_for_long_is_dialled_anew(start: Any, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    node = start(lambda message: put_reply())
    one = client(node.address)
    one.run(("set", "k", b"v"), ("set", "k", b"v"))
    assert node.connections == 1
    for module in (connection, channel):
        monkeypatch.setattr(module, "IDLE_S_MAX", -1.0)
    assert all(isinstance(context, dynamo.Context) for context in one.run(*[("set", "k", b"v")] * 3)) and node.connections == 4


def test_the_kernel_is_told_to_notice_a_dead_way(start: Any) -> None:
    made = Connection(start().address, time.monotonic() + 5)
    assert made._socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        assert 1_000 <= made._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 5_000
    made.close()


# --- one cluster for life -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choosy", [True, False])
def test_nodes_of_another_cluster_cost_an_attempt_and_get_nothing(choosy: bool, start: Any, client: Any) -> None:
    ours, theirs = start(choosy=choosy), start(cluster_id=b"d" * 16, choosy=choosy)
    one = client(ours.address, timeout=5)
    assert isinstance(one.run(("set", "k", b"v"))[0], dynamo.Context)
    several = client(ours.address, theirs.address, timeout=5)
    found = several.run(*[("set", "k", b"v")] * 40)
    assert all(isinstance(context, dynamo.Context) for context in found)
    assert (len(ours.requests) - 1, len(theirs.requests)) in ((40, 0), (0, 40))
    met, other = (ours, theirs) if not theirs.requests else (theirs, ours)
    met.stop()
    errors = several.run(*[("set", "k", b"v")] * 5, ("get", "k"))
    assert {type(error) for error in errors} == {ConfigError} and not any(error.maybe_applied for error in errors)
    for text in ("63636363-6363-6363-6363-636363636363", "64646464-6464-6464-6464-646464646464", other.address):
        assert all(text in str(error) for error in errors)
    assert len(other.requests) == (1 if other is ours else 0)


def test_an_address_taken_over_by_another_cluster_is_refused(start: Any, client: Any) -> None:
    first = FakeNode(store())
    one = client(first.address, timeout=2)
    assert isinstance(one.run(("set", "k", b"v"))[0], dynamo.Context)
    first.stop()
    second = start(port=first.port, cluster_id=b"d" * 16)
    assert isinstance(one.run(("set", "k", b"v"))[0], ConfigError) and not second.requests


def test_of_a_name_that_leads_to_two_clusters_the_nodes_of_ours_are_used(start: Any, client: Any, resolve: Any, stack: ExitStack) -> None:
    ours = start()
    resolve["cluster.test"] = ["127.0.0.1"]
    one = client(f"cluster.test:{ours.port}", timeout=3)
    assert isinstance(one.run(("set", "k", b"v"))[0], dynamo.Context)
    theirs = start(port=ours.port, cluster_id=b"d" * 16, host="127.0.0.2")
    resolve["cluster.test"] = ["127.0.0.2", "127.0.0.1"]
    for module in (connection, channel):
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(module, "IDLE_S_MAX", -1.0)
    found = one.run(*[("set", "k", b"v")] * 3)
    assert all(isinstance(context, dynamo.Context) for context in found) and theirs.connections and not theirs.requests


def test_a_forked_child_remembers_the_cluster(start: Any) -> None:
    ours, theirs = start(), start(cluster_id=b"d" * 16)
    with dynamo.Client([ours.address, theirs.address]) as c:
        c._pool.order = lambda: [ours.address]  # type: ignore[method-assign]
        c.get("k")
        child = os.fork()
        if not child:
            try:
                pool = c._here()
                pool.order = lambda: [theirs.address]  # type: ignore[method-assign]
                c.get("k")
            except ConfigError:
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not theirs.requests
