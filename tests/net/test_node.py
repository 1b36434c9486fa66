"""Nodes as a program has them: founding, joining, returning, stopping, and every way in which starting must fail with a word why."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import uuid

import pytest
import trio
from rig import connect, greeted, recovering, run

from dynamo.config import NodeConfig
from dynamo.errors import ConfigError, ConnectionFailed, StorageFailed
from dynamo.model import messages as m
from dynamo.net import startup
from dynamo.node import Node
from dynamo.wire.documents import decode_document
from dynamo.wire.hello import client_hello


def node(path, **settings):
    return Node(NodeConfig(data=path, **({"listen": "127.0.0.1:0", "durability": "relaxed"} | settings)))


def put(key, value, w=0, context=None):
    return (m.PUT, 1, b"default", key, value, context, m.MODE_PUT, w, 0, 5000, os.urandom(16))


def get(key, r=0):
    return (m.GET, 1, b"default", key, r, 0, 5000)


async def values(address, key, r=0):
    reply = await (await greeted(address)).ask(get(key, r))
    assert reply[0] == m.GET_REPLY, reply
    return [sibling[0] for sibling in reply[6]]


async def stored(address, key, value, w=0):
    reply = await (await greeted(address)).ask(put(key, value, w))
    assert reply[0] == m.PUT_REPLY, reply
    return reply


async def status(address):
    reply = await (await greeted(address)).ask((m.CLUSTER_STATUS, 1))
    return decode_document(reply[2])


@pytest.mark.parametrize("durability", ["synced", "relaxed", "buffered", "memory"])
def test_a_lone_node_serves_and_says_what_it_gave(tmp_path, durability):
    async def test():
        async with node(tmp_path / "n", name="alone", durability=durability) as one:
            await one.ready()
            reply = await stored(one.address, b"k", b"v")
            assert reply[8:10] == (1, m.DURABILITIES[durability])
            assert await values(one.address, b"k") == [b"v"]
            assert one.name == "alone" and len(one.cluster_id) == len(one.node_id) == 16
            assert one.metrics()["messages_in"] == 2 and one.metrics()["commits"] == 1

    run(test)


def test_a_thousand_tasks_of_the_same_process_wait_for_each_other(tmp_path):
    async def test():
        async with node(tmp_path / "n") as one:
            await one.ready()
            async with trio.open_nursery() as nursery:
                for number in range(1000):
                    nursery.start_soon(one.set, f"key-{number}", b"v")
            assert one.metrics()["requests_refused_busy"] == 0 and one.metrics()["rows"] == 1000
            with trio.CancelScope() as scope:  # whoever goes away leaves its place to others
                scope.cancel()
                await one.get("key-1")
            assert (await one.get("key-1")).value == b"v"

    run(test)


def test_what_was_stored_is_there_after_a_restart_under_the_same_identity(tmp_path):
    async def test():
        known = actor = None
        for life in range(3):
            async with node(tmp_path / "n") as one:
                await one.ready()
                identity = (one.node_id, one.cluster_id)
                assert known in (None, identity)
                known = identity
                assert one._membership.local.incarnation == life + 1
                reply = await stored(one.address, b"k%d" % life, b"v")
                if life:  # the stop was clean, so the actor goes on, behind its lease
                    assert reply[5] == actor
                actor = reply[5]
                for before in range(life + 1):
                    assert await values(one.address, b"k%d" % before) == [b"v"]

    run(test)


def test_three_nodes_know_each_other_when_they_are_ready_and_replicate(tmp_path):
    async def test():
        async with node(tmp_path / "1", name="n1") as one:
            await one.ready()
            async with node(tmp_path / "2", name="n2", join=[one.address]) as two:
                await two.ready()
                assert two.cluster_id == one.cluster_id
                async with node(tmp_path / "3", name="n3", join=["127.0.0.1:1", two.address], zone="rack", capacity=2.0) as three:
                    await three.ready()
                    for each in (one, two, three):
                        document = await status(each.address)
                        assert [(n["name"], n["status"]) for n in document["nodes"]] == [(f"n{i}", "normal") for i in (1, 2, 3)]
                        assert document["nodes"][2]["zone"] == "rack" and document["nodes"][2]["capacity"] == 2.0
                        assert (document["n"], document["w"], document["ring"]) == (3, 2, 3)
                        assert all(n["partitions"] == 256 for n in document["nodes"])
                    reply = await stored(three.address, b"k", b"v", w=3)
                    assert reply[8] == 3
                    assert await values(one.address, b"k", r=3) == [b"v"]
                    caller = await greeted(two.address)
                    listed = decode_document((await caller.ask((m.PREFERENCE_LIST, 1, b"default", b"k")))[2])
                    assert len(listed["owners"]) == 3 and not listed["fallbacks"]
                    assert listed["partition"] == listed["position"] >> 56
                    refused = await caller.ask((m.PREFERENCE_LIST, 2, b"bad bucket", b"k"))
                    assert refused[:2] == (m.ERROR, 2)
                    assert all(n["reachable"] for n in (await status(one.address))["nodes"])
                # One is gone: two of three go on, and see it.
                await stored(one.address, b"after", b"v", w=2)
                assert await values(two.address, b"after", r=2) == [b"v"]
                assert [n["reachable"] for n in (await status(one.address))["nodes"]] == [True, True, False]

    run(test)


def test_a_node_returns_at_another_address_without_being_told_where_the_others_are(tmp_path):
    async def test():
        async with node(tmp_path / "1") as one:
            await one.ready()
            async with node(tmp_path / "2", join=[one.address]) as two:
                await two.ready()
                await stored(two.address, b"k", b"v", w=2)
                first = two.address
            async with node(tmp_path / "2") as two:
                await two.ready()
                assert two.address != first
                assert two.address in [n["address"] for n in (await status(one.address))["nodes"]]
                await stored(one.address, b"k2", b"v2", w=2)
                assert await values(two.address, b"k2", r=1) == [b"v2"]

    run(test)


def test_buckets_and_settings_are_made_once_and_come_with_joining(tmp_path):
    async def test():
        buckets = {"counters": {"kind": "last_write_wins", "n": 1}}
        async with node(tmp_path / "1", n=2, w=1, partitions=64, buckets=buckets) as one:
            await one.ready()
            async with node(tmp_path / "2", join=[one.address], n=2, buckets=buckets) as two:
                await two.ready()
                assert two._cluster == one._cluster
                assert two._cluster.bucket(b"counters").kind == "last_write_wins" and two._cluster.partitions == 64
            for wrong in ({"n": 3, "explicit": frozenset({"n"})}, {"partitions": 128}, {"w": 2}, {"buckets": {"other": {}}}):
                with pytest.raises(ConfigError, match="leave it out"):
                    async with node(tmp_path / "3", join=[one.address], **wrong):
                        pass
        with pytest.raises(ConfigError, match="partitions"):
            async with node(tmp_path / "1", partitions=512):
                pass

    run(test)


# --- starting that fails --------------------------------------------------------------------------------------------------------------


def test_nobody_to_join(tmp_path):
    async def test():
        with pytest.raises(ConnectionFailed, match="no node to join"):
            async with node(tmp_path / "1", join=["127.0.0.1:1"], join_timeout_s=0.3):
                pass
        async with node(tmp_path / "1") as one:  # the directory is still good
            await one.ready()

    run(test)


def test_a_node_waits_for_one_that_starts_later(tmp_path):
    async def test():
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        async with trio.open_nursery() as nursery:
            joined = trio.Event()

            async def join():
                async with node(tmp_path / "2", join=[f"127.0.0.1:{port}"], join_timeout_s=15) as two:
                    await two.ready()
                    joined.set()

            nursery.start_soon(join)
            await trio.testing.wait_all_tasks_blocked()
            async with node(tmp_path / "1", listen=f"127.0.0.1:{port}") as one:
                await one.ready()
                await joined.wait()

    run(test)


def test_the_data_of_another_cluster_is_refused(tmp_path):
    async def test():
        async with node(tmp_path / "other") as other:
            await other.ready()
        async with node(tmp_path / "1") as one:
            await one.ready()
            with pytest.raises(ConfigError) as raised:
                async with node(tmp_path / "other", join=[one.address]):
                    pass
            here, there = uuid.UUID(bytes=one.cluster_id), uuid.UUID(bytes=other.cluster_id)
            expected = f"the data in {tmp_path / 'other'} cannot go on with `join`: {one.address}: this is cluster {here}, not {there}"
            assert str(raised.value) == expected

    run(test)


def test_a_copy_of_a_directory_is_refused_while_the_original_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(startup, "DOUBLE_TIMEOUT_S", 0.5)

    async def test():
        async with node(tmp_path / "1") as one:
            await one.ready()
            async with node(tmp_path / "2", join=[one.address]) as two:
                await two.ready()
            shutil.copytree(tmp_path / "2", tmp_path / "copy")
            async with node(tmp_path / "2") as two:
                await two.ready()
                await one_sees(one, two)
                for settings in ({}, {"join": [one.address]}):
                    with pytest.raises(ConfigError, match="another live process"):
                        async with node(tmp_path / "copy", **settings) as copy:
                            await copy.ready()
                await stored(one.address, b"k", b"v", w=2)

    async def one_sees(one, two):
        while not one._parts.reactor.peers.connected(two.node_id):
            await trio.testing.wait_all_tasks_blocked(0.01)

    run(test)


def test_port_or_directory_in_use(tmp_path):
    async def test():
        async with node(tmp_path / "1") as one:
            await one.ready()
            with pytest.raises(ConfigError, match="in use"):
                async with node(tmp_path / "2", listen=one.address):
                    pass
            with pytest.raises(ConfigError, match="in use"):
                async with node(tmp_path / "1"):
                    pass
        async with node(tmp_path / "2"):  # neither failure left anything locked
            pass

    run(test)


# --- ending ---------------------------------------------------------------------------------------------------------------------------


def test_an_error_of_the_program_arrives_as_it_is_and_the_stop_is_clean(tmp_path):
    async def test():
        with pytest.raises(KeyError, match="mine"):
            async with node(tmp_path / "1") as one:
                await one.ready()
                await stored(one.address, b"k", b"v")
                raise KeyError("mine")
        async with node(tmp_path / "1") as one:
            assert one._directory.clean

    run(test)


def test_a_cancelled_program_stops_its_node_cleanly(tmp_path):
    async def test():
        with trio.CancelScope() as scope:
            async with node(tmp_path / "1") as one:
                await one.ready()
                await stored(one.address, b"k", b"v")
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        async with node(tmp_path / "1") as one:
            assert one._directory.clean
            await one.ready()
            assert await values(one.address, b"k") == [b"v"]

    run(test)


def test_a_defect_in_the_reactor_ends_the_node_with_its_error_and_not_cleanly(tmp_path):
    async def test():
        with pytest.raises(ZeroDivisionError):
            async with node(tmp_path / "1") as one:
                await one.ready()
                actor = (await stored(one.address, b"k", b"v"))[5]
                one._parts.reactor.call_soon(lambda now: 1 // 0)
                await trio.sleep_forever()
        async with node(tmp_path / "1") as one:
            assert not one._directory.clean
            await one.ready()
            assert await values(one.address, b"k") == [b"v"]
            assert (await stored(one.address, b"k2", b"v"))[5] != actor

    run(test)


def test_a_start_that_fails_does_not_make_an_unclean_directory_clean(tmp_path):
    async def test():
        with pytest.raises(ZeroDivisionError):
            async with node(tmp_path / "1") as one:
                one._parts.reactor.call_soon(lambda now: 1 // 0)
                await trio.sleep_forever()
        with pytest.raises(ConfigError, match="partitions"):
            async with node(tmp_path / "1", partitions=512):
                pass
        async with node(tmp_path / "1") as one:
            assert not one._directory.clean
        with pytest.raises(ConfigError, match="partitions"):
            async with node(tmp_path / "1", partitions=512):
                pass
        async with node(tmp_path / "1") as one:  # and it leaves a clean one clean
            assert one._directory.clean

    run(test)


def test_a_node_whose_peers_know_a_longer_lease_starts_a_new_actor(tmp_path):
    async def test():
        async with node(tmp_path / "1") as one:
            await one.ready()
            actor = (await stored(one.address, b"k", b"v"))[5]
            parts = one._parts
            lease_end = parts.replica.core.actor.lease_end
            for known, same in (((actor, lease_end), True), ((actor + 1, lease_end + 9), True), ((actor, lease_end + 1), False)):
                parts.reactor.call_soon(lambda now, known=known: parts._lease_heard(*known))
                assert ((await stored(one.address, b"k", b"v"))[5] == actor) is same

    run(test)


def test_a_returning_node_mints_under_its_actor_once_a_peer_has_answered_and_under_a_new_one_if_none_does(tmp_path):
    async def test():
        async with node(tmp_path / "1") as one:
            async with node(tmp_path / "2", join=(one.address,)) as two:
                await two.ready()
                actor = two._parts.replica.core.actor.actor
            async with node(tmp_path / "2") as two:
                await two.ready()
                await two.set("k", b"v")
                assert two._parts.replica.core.actor.actor == actor
        async with node(tmp_path / "2") as two:
            await two.ready()
            await two.put("k", b"v", w=1)
            assert two._parts.replica.core.actor.actor != actor

    run(test)


def test_a_failed_commit_is_an_error_to_its_clients_and_a_new_actor(tmp_path):
    async def test():
        async with node(tmp_path / "1", durability="synced") as one:
            await one.ready()
            actor = (await stored(one.address, b"k", b"v"))[5]
            engine = one._directory.engine
            real, failing = engine.commit, [True]

            def commit(group, entering=None):
                if failing:
                    failing.clear()
                    raise StorageFailed("the disk says no")
                real(group, entering)

            engine.commit = commit
            reply = await (await greeted(one.address)).ask(put(b"k", b"lost"))
            assert reply[0] == m.ERROR and reply[4] is True
            assert await values(one.address, b"k") == [b"v"]
            assert (await stored(one.address, b"k2", b"v"))[5] != actor

    run(test)


def test_requests_in_flight_are_answered_before_the_node_stops(tmp_path):
    async def test():
        async with node(tmp_path / "1", durability="synced") as one:
            await one.ready()
            callers = [await greeted(one.address) for _ in range(20)]
            for i, caller in enumerate(callers):
                await caller.send(put(b"k%d" % i, b"v"))
            while one.metrics()["messages_in"] < 20:
                await trio.testing.wait_all_tasks_blocked()
        for caller in callers:
            assert (await caller.receive())[0] == m.PUT_REPLY
            assert await caller.receive() is None
        with pytest.raises(OSError):
            await connect(one.address)

    run(test)


@pytest.mark.parametrize("how", ["leaving", "cancelled"])
def test_a_put_that_waits_for_another_node_is_answered_before_the_node_stops(tmp_path, how):
    async def test():
        async with node(tmp_path / "2", durability="synced") as two:
            await two.ready()
            engine, allowed = two._directory.engine, threading.Event()
            real = engine.commit

            def slow(group, entering=None):
                if group.objects:
                    entering()  # the reactor goes on; the disk does not
                    allowed.wait(10)
                real(group)

            async def release(one):
                while not one._parts.reactor.links.draining:
                    await trio.testing.wait_all_tasks_blocked()
                allowed.set()

            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:
                    async with node(tmp_path / "1", join=[two.address], durability="relaxed") as one:
                        await one.ready()
                        while recovering(one):
                            await trio.sleep(0.002)
                        engine.commit = slow
                        caller = await greeted(one.address)
                        await caller.send(put(b"k", b"v", w=2))
                        while not one._parts.replica.core.pending:
                            await trio.testing.wait_all_tasks_blocked()
                        nursery.start_soon(release, one)
                        if how == "cancelled":
                            scope.cancel()
                            await trio.sleep_forever()
            assert (await caller.receive())[0] == m.PUT_REPLY

    run(test)


def test_a_client_of_another_cluster_is_told(tmp_path):
    async def test():
        async with node(tmp_path / "1") as one:
            await one.ready()
            assert (await (await connect(one.address)).ask(client_hello(one.cluster_id)))[0] == m.HELLO_REPLY
            assert (await (await connect(one.address)).ask(client_hello(b"x" * 16)))[:3] == (m.ERROR, 0, ConfigError.code)

    run(test)
