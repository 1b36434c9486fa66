"""One request to another node, for starting and joining: in the time it was given, whatever its name leads to."""

from __future__ import annotations

import socket
import threading
from contextlib import ExitStack

import pytest
import trio
from rig import CLUSTER, Echo, run, running

from dynamo.errors import ConnectionFailed, DynamoError
from dynamo.model import messages as m
from dynamo.net.exchange import call
from dynamo.wire.hello import Hello

B = b"b" * 16
GREETING = Hello(role=m.ROLE_CLIENT, cluster_id=CLUSTER)


@pytest.fixture
def resolve(monkeypatch):
    """Names to lists of hosts, or to an event until which the look-up hangs."""
    known, system = {}, socket.getaddrinfo

    def getaddrinfo(host, port, *rest, **options):
        found = known.get(host)
        if found is None or options.get("flags"):
            return system(host, port, *rest, **options)
        if isinstance(found, threading.Event):
            found.wait(30)
            return []
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in found]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield known
    for event in known.values():
        if isinstance(event, threading.Event):
            event.set()


def test_dead_addresses_of_a_name_do_not_keep_from_the_good_one(resolve):
    async def test():
        async with running(Echo(), node_id=B) as to:
            port = int(to.address.rpartition(":")[2])
            resolve["nodes.test"] = ["127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.1"]
            with ExitStack() as stack:
                for host in resolve["nodes.test"][:2]:
                    stack.enter_context(socket.create_server((host, port)))
                theirs, reply = await call(f"nodes.test:{port}", GREETING, (m.CLUSTER_STATUS, 1), 2.0)
                assert theirs.node_id == B and reply[0] == m.CLUSTER_STATUS_REPLY

    run(test)


@pytest.mark.parametrize("silent", ["name", "addresses"])
def test_silence_ends_in_time(resolve, silent):
    async def test():
        with ExitStack() as stack:
            resolve["nodes.test"] = threading.Event() if silent == "name" else ["127.0.0.2", "127.0.0.3"]
            port = stack.enter_context(socket.create_server(("127.0.0.2", 0))).getsockname()[1]
            stack.enter_context(socket.create_server(("127.0.0.3", port)))
            with trio.fail_after(3), pytest.raises(ConnectionFailed):
                await call(f"nodes.test:{port}", GREETING, (m.CLUSTER_STATUS, 1), 0.3)

    run(test)


def test_look_ups_that_hang_take_no_thread_from_the_program(resolve):
    async def test():
        limiter = trio.to_thread.current_default_thread_limiter()
        for number in range(3):
            resolve[f"nodes{number}.test"] = threading.Event()
            with pytest.raises(ConnectionFailed):
                await call(f"nodes{number}.test:1", GREETING, (m.CLUSTER_STATUS, 1), 0.05)
        assert limiter.borrowed_tokens == 0

    run(test)


@pytest.mark.parametrize("address", ["a..b:1", "no-such-host.invalid:1", "127.0.0.1:1"])
def test_nobody_there_is_a_typed_error(address):
    async def test():
        with pytest.raises(DynamoError, match=address.partition(":")[0]):
            await call(address, GREETING, (m.CLUSTER_STATUS, 1), 2.0)

    run(test)
