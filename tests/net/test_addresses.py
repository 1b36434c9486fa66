"""Nodes whose addresses change hands: an address is a hint, and who answers there is believed for who it is."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from uuid import UUID

import pytest
import trio
from rig import Echo, run, running
from test_node import node, status, stored, values
from test_peers import A, B, answers, free_port, read, send

from dynamo.config import NodeConfig
from dynamo.errors import ConfigError, ConnectionFailed
from dynamo.membership import joining
from dynamo.model import messages as m
from dynamo.net import identity, sockets, startup
from dynamo.net.connection import State
from dynamo.net.exchange import call
from dynamo.net.limits import Limits
from dynamo.storage.data_directory import DataDirectory
from dynamo.wire.hello import Hello

Z = b"z" * 16


async def until(condition):
    while not condition():
        await trio.testing.wait_all_tasks_blocked(0.01)


def all_know_each_other(*nodes):
    ids = {each.node_id for each in nodes}
    return all(each._parts.reactor.peers.connected(other) for each in nodes for other in ids - {each.node_id})


# --- links ----------------------------------------------------------------------------------------------------------------------------


def test_another_node_at_an_address_is_linked_as_itself_and_the_one_that_moved_is_found_where_it_says():
    async def test():
        a, b, z = Echo(), Echo(), Echo()
        async with running(b, node_id=B) as to, running(z, node_id=Z) as wrong:
            addresses = {B: wrong.address}
            async with running(a, node_id=A, addresses=addresses) as fro:
                send(fro, B, read(1))
                await a.until(lambda: ("up", Z) in a.events and ("down", B) in a.events)
                assert isinstance(fro.refusals[B], ConfigError) and not z.received
                send(fro, Z, read(2))
                await a.until(lambda: answers(a) == [2])
                addresses[B] = to.address
                fro.call_soon(lambda now: fro.peers.want(B, now))
                await a.until(lambda: ("up", B) in a.events)
                assert B not in fro.refusals

    run(test)


@pytest.mark.parametrize("there", ["this node", "nobody", "another cluster", "a web server", "silence"])
def test_an_address_that_is_asked_and_leads_nowhere_does_no_harm(there, caplog):
    async def test():
        async with AsyncExitStack() as stack:
            nursery = await stack.enter_async_context(trio.open_nursery())
            a = Echo()
            fro = await stack.enter_async_context(running(a, node_id=A, limits=Limits(connect_timeout_s=0.2)))
            address = fro.address
            if there == "nobody":
                address = f"127.0.0.1:{free_port()}"
            elif there == "another cluster":
                address = (await stack.enter_async_context(running(node_id=B, cluster_id=b"d" * 16))).address
            elif there in ("a web server", "silence"):

                async def serve(stream):
                    async with stream:
                        await stream.receive_some(1000)
                        if there == "silence":
                            await stream.receive_some(1000)
                        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

                listeners = await nursery.start(trio.serve_tcp, serve, 0)
                address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
            dialled, dial = [], fro.doors.dial
            fro.doors.dial = lambda *where: dialled.append(dial(*where)) or dialled[-1]
            for times in (1, 2):
                fro.call_soon(lambda now: fro.peers.ask(address, now))
                await until(lambda times=times: len(dialled) == times and all(link is None or link.state is State.CLOSED for link in dialled))
            b = Echo()
            to = await stack.enter_async_context(running(b, node_id=B))
            fro.call_soon(lambda now: fro.peers.ask(to.address, now))
            await a.until(lambda: a.events == [("up", B)])
            assert b.events == [("up", A)] and not fro.refusals
            nursery.cancel_scope.cancel()

    run(test)
    told = [record.getMessage() for record in caplog.records if "no node to join at" in record.getMessage()]
    assert len(told) == (0 if there in ("nobody", "silence") else 1)


# --- nodes ----------------------------------------------------------------------------------------------------------------------------


def test_a_wiped_node_at_its_old_address_becomes_a_new_member_and_the_old_one_is_not_doubled(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(startup, "DOUBLE_TIMEOUT_S", 1.0)

    async def test():
        async with node(tmp_path / "1") as one:
            await one.ready()
            async with node(tmp_path / "2", join=[one.address]) as two:
                await two.ready()
                old, address = two.node_id, two.address
            for attempt in range(2):  # started, stopped, started again with what it stored
                async with node(tmp_path / "new", listen=address, join=[one.address]) as two:
                    await two.ready()
                    assert two.node_id != old
                    await until(lambda: all_know_each_other(one, two))
                    ids = {member["id"] for member in (await status(one.address))["nodes"]}
                    assert ids == {one.node_id.hex(), old.hex(), two.node_id.hex()}
                    await stored(two.address, b"k", b"%d" % attempt, w=2)
                    assert two._parts.reactor.peers._peers[old].astray  # it does not dial itself for ever

    run(test)
    assert any("which was the address of" in record.getMessage() for record in caplog.records)


def test_two_nodes_that_swapped_their_addresses_find_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(startup, "DOUBLE_TIMEOUT_S", 1.0)

    async def test():
        addresses = [f"127.0.0.1:{free_port()}" for _ in range(3)]
        names = ["1", "2", "3"]
        for places in ([0, 1, 2], [1, 0, 2], [1, 2, 0]):
            async with AsyncExitStack() as stack:
                nodes = []
                for name, place in zip(names, places, strict=True):
                    join = [addresses[0]] if name != "1" and not (tmp_path / name).exists() else []
                    nodes.append(await stack.enter_async_context(node(tmp_path / name, listen=addresses[place], join=join)))
                    await nodes[-1].ready()
                await until(lambda nodes=nodes: all_know_each_other(*nodes))
                for each in nodes:
                    await stored(each.address, b"k", b"v", w=3)
                assert len((await status(nodes[0].address))["nodes"]) == 3

    run(test)


def test_nodes_that_all_return_at_new_addresses_find_each_other_through_join_in_any_order(tmp_path):
    async def test():
        async with node(tmp_path / "1") as one, node(tmp_path / "2", join=[one.address]) as two, node(tmp_path / "3", join=[one.address]) as three:
            for each in (one, two, three):
                await each.ready()
            await until(lambda: all_know_each_other(one, two, three))
        meeting = f"127.0.0.1:{free_port()}"
        async with AsyncExitStack() as stack:
            nodes = [await stack.enter_async_context(node(tmp_path / name, join=[meeting])) for name in ("2", "3")]
            for each in nodes:
                await each.ready()  # alone, and long before the one that all of them are told of
            nodes.append(await stack.enter_async_context(node(tmp_path / "1", listen=meeting)))
            await until(lambda: all_know_each_other(*nodes))
            await stored(nodes[1].address, b"k", b"v", w=3)

    run(test)


def test_a_node_says_which_members_it_misses_at_a_level_that_is_shown(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(joining, "COMPLAIN_AFTER_S", 0.1)

    async def test():
        async with node(tmp_path / "1") as one, node(tmp_path / "2", join=[one.address]) as two:
            await two.ready()
        async with node(tmp_path / "2"):
            await until(lambda: any(f"({one.node_id.hex()}) at {one.address}" in record.getMessage() for record in caplog.records))

    run(test)
    assert [record.levelname for record in caplog.records if "cannot reach 1 of 2 members" in record.getMessage()] == ["WARNING"]


def test_a_member_whose_address_a_node_of_another_cluster_has_is_no_reason_to_end(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(startup, "DOUBLE_TIMEOUT_S", 0.5)

    async def test():
        async with node(tmp_path / "founder") as founder:
            await founder.ready()
            address = founder.address
            async with node(tmp_path / "2", join=[address]) as two:
                await two.ready()
        async with node(tmp_path / "empty", listen=address) as second:  # the founder's disk was lost
            await second.ready()
            async with node(tmp_path / "2") as two:
                await two.ready()
                await until(lambda: founder.node_id in two._parts.reactor.refusals)
                assert two.cluster_id == founder.cluster_id != second.cluster_id
                assert len((await status(second.address))["nodes"]) == 1
                with pytest.raises(ConfigError) as raised:  # both are there: a newcomer is not let in by chance
                    async with node(tmp_path / "3", join=[second.address, two.address]):
                        pass
                assert all(str(UUID(bytes=each.cluster_id)) in str(raised.value) for each in (second, two))
                assert _stored(tmp_path / "3") is None
            assert (await values(second.address, b"k")) == []

    run(test)
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert any("cannot be a peer: this is cluster" in text for text in said) and any("turned away a caller from 127.0.0.1" in text for text in said)


def test_a_start_that_fails_or_is_cancelled_while_joining_leaves_no_trace(tmp_path):
    async def test():
        async with node(tmp_path / "1", partitions=64) as one:
            await one.ready()
            with pytest.raises(ConfigError, match="partitions"):
                async with node(tmp_path / "2", join=[one.address], partitions=128):
                    pass
            with trio.move_on_after(0.2):
                async with node(tmp_path / "2", join=[f"127.0.0.1:{free_port()}"]):
                    pass
            with pytest.raises(ConnectionFailed):
                async with node(tmp_path / "2", join=[f"127.0.0.1:{free_port()}"], join_timeout_s=0.1):
                    pass
            assert _stored(tmp_path / "2") is None and len((await status(one.address))["nodes"]) == 1

    run(test)


def test_a_crash_after_being_accepted_goes_on_under_the_same_id(tmp_path, monkeypatch):
    async def test():
        async with node(tmp_path / "1") as one:
            await one.ready()
            with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
                patch.setattr("dynamo.node.Assembly", lambda *arguments: 1 / 0)
                async with node(tmp_path / "2", join=[one.address]):
                    pass
            accepted = _stored(tmp_path / "2").node_id
            assert len((await status(one.address))["nodes"]) == 1
            async with node(tmp_path / "2", join=[one.address]) as two:
                await two.ready()
                assert two.node_id == accepted and len((await status(one.address))["nodes"]) == 2

    run(test)


def _stored(path):
    directory = DataDirectory(path, "relaxed")
    try:
        return identity.load(directory.engine)
    finally:
        directory.close(directory.clean)


# --- what others are told -------------------------------------------------------------------------------------------------------------


def test_others_are_told_what_is_advertised(tmp_path):
    async def test():
        port = free_port()
        async with node(tmp_path / "1", listen="0.0.0.0:0", advertise="127.0.0.1:0") as one:
            await one.ready()
            assert one.address.startswith("127.0.0.1:") and not one.address.endswith(":0")
            assert (await status(one.address))["nodes"][0]["address"] == one.address
            hello, _ = await call(one.address, Hello(), (m.CLUSTER_STATUS, 1), 5.0)
            assert hello.address == one.address
        async with node(tmp_path / "1", listen=f"127.0.0.1:{port}", advertise="node.example:17379") as one:
            assert one.address == "node.example:17379"

    run(test)


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "0:0", "[::]:0", "[::0]:0", "[::ffff:0.0.0.0]:0"])
@pytest.mark.parametrize("route", [None, "127.0.0.1", "::1", "0.0.0.0", "fe80::1"])
def test_every_interface_without_a_route_is_an_error_and_no_loopback_address(tmp_path, monkeypatch, listen, route):
    class Probe:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def connect(self, target):
            if route is None:
                raise OSError("no route")

        def getsockname(self):
            return route, 1

    try:
        listener = sockets.listen(listen)
    except ConfigError:
        pytest.skip("no such addresses here")
    with listener:
        monkeypatch.setattr(sockets.socket, "socket", Probe)
        with pytest.raises(ConfigError, match=r"listen: .* no route .*--advertise"):
            sockets.advertised(listen, listener)
        assert sockets.advertised(listen, listener, "10.0.0.1:7379") == "10.0.0.1:7379"
        for good in ("10.0.0.1", "2001:db8::1"):
            route = good
            assert good in sockets.advertised(listen, listener)


@pytest.mark.parametrize("bad", ["0.0.0.0:7379", "[::]:7379", "[::ffff:0.0.0.0]:1", "a b:1", ":7379", "h:70000"])
def test_what_nobody_can_dial_is_not_advertised(bad):
    with pytest.raises(ConfigError, match="advertise"):
        NodeConfig(data="d", advertise=bad)


def test_a_loopback_address_told_to_another_machine_is_warned_of(tmp_path, caplog):
    async def test():
        async with node(tmp_path / "1", advertise="10.11.12.13:7379") as one:
            address = f"127.0.0.1:{one._parts.reactor.listener.sock.getsockname()[1]}"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(startup, "DOUBLE_TIMEOUT_S", 0.2)
                async with node(tmp_path / "2", join=[address]):
                    pass

    run(test)
    assert any("such as 10.11.12.13:7379" in record.getMessage() for record in caplog.records)
