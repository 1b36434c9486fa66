"""The life of a Node object: entered once, under Trio, closed by leaving the block or before; and nothing is held by one that did not start."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest
import trio
from rig import run

from dynamo.config import NodeConfig
from dynamo.errors import ConfigError
from dynamo.net import assembly
from dynamo.net.reactor import Reactor
from dynamo.node import Node
from dynamo.storage.data_directory import DataDirectory


def node(path, **settings):
    return Node(NodeConfig(data=path, **({"listen": "127.0.0.1:0", "durability": "synced"} | settings)))


def is_free(path):
    """Nobody holds the directory, and it was left in order."""
    directory = DataDirectory(path)
    clean = directory.clean
    directory.close(clean)
    return clean


def test_a_node_is_made_of_a_configuration():
    for wrong in ("x", None, {"data": "x"}):
        with pytest.raises(TypeError, match="NodeConfig"):
            Node(wrong)


def test_on_another_loop_it_says_so_before_it_holds_anything(tmp_path):
    async def test():
        with pytest.raises(RuntimeError, match=r"runs on Trio.*AsyncClient"):
            async with node(tmp_path / "n"):
                raise AssertionError("entered")

    asyncio.run(test())
    assert not (tmp_path / "n").exists()


def test_it_is_entered_once(tmp_path):
    one = node(tmp_path / "n")

    async def test():
        async with one:
            await one.ready()
            with pytest.raises(RuntimeError, match="entered already"):
                async with one:
                    raise AssertionError("entered twice")
            await one.set("k", b"v")
            assert (await one.get("k")).value == b"v"
        with pytest.raises(RuntimeError, match="the node is closed; make another"):
            await one.__aenter__()

    run(test)
    assert is_free(tmp_path / "n")


FAILURES = [(Reactor, "__init__"), (assembly.Replica, "__init__"), (Reactor, "open_local"), (trio, "open_nursery")]


@pytest.mark.parametrize(("owner", "name"), FAILURES, ids=[name for _, name in FAILURES])
@pytest.mark.parametrize("error", [OSError("no more descriptors"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_one_that_does_not_start_holds_nothing_and_may_try_again(tmp_path, monkeypatch, owner, name, error):
    def fail(*arguments, **named):
        raise error

    async def test():
        async with node(tmp_path / "n"):
            pass
        descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
        one = node(tmp_path / "n")
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, fail)
            with pytest.raises(type(error)):
                await one.__aenter__()
        assert is_free(tmp_path / "n")
        if name != "__init__":
            assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (descriptors, threads)
        async with one:
            await one.ready()
            await one.set("k", b"v")

    run(test)


def test_before_and_after_its_life_it_says_what_it_is(tmp_path):
    one = node(tmp_path / "n")

    async def test():
        for early in (lambda: one.get("k"), one.ready):
            with pytest.raises(RuntimeError, match="the node is not running"):
                await early()
        with pytest.raises(RuntimeError, match="the node is not running"):
            one.metrics()
        async with one:
            await one.ready()
            results, bucket = one.scan(), one.bucket("b")
        for late in (lambda: one.get("k"), one.ready, lambda: bucket.set("k", b"v"), lambda: anext(results)):
            with pytest.raises(RuntimeError, match="the node is closed"):
                await late()
        with pytest.raises(RuntimeError, match="the node is closed"):
            one.metrics()

    run(test)


@pytest.mark.parametrize("where", ["its own task", "another task", "two tasks"])
def test_close_is_leaving_the_block_before_its_end(tmp_path, where):
    async def test():
        async with node(tmp_path / "n") as one:
            await one.ready()
            await one.set("k", b"v")
            async with trio.open_nursery() as nursery:
                if where != "its own task":
                    nursery.start_soon(one.close)
                if where != "another task":
                    await one.close()
            await one.close()
            await trio.sleep(0)  # the program around it was not cancelled
            with pytest.raises(RuntimeError, match="the node is closed"):
                await one.get("k")
            assert is_free(tmp_path / "n")
            async with node(tmp_path / "n") as again:
                assert (await again.get("k")).value == b"v"
        await one.close()

    run(test)
    assert is_free(tmp_path / "n")


def test_close_answers_what_is_under_way_first(tmp_path):
    async def test():
        async with node(tmp_path / "n") as one:
            await one.ready()
            written = []

            async def write(number):
                written.append((await one.set(f"k{number}", b"v")).dot)

            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(write, number)
                await trio.sleep(0)
                nursery.start_soon(one.close)
        assert len(set(written)) == 20

    run(test)


def test_ready_ends_when_the_node_is_closed(tmp_path):
    async def test():
        async with node(tmp_path / "1") as one, node(tmp_path / "2", join=[one.address]) as two:

            async def wait():
                with pytest.raises(RuntimeError, match="the node is closed"):
                    await two.ready()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.sleep(0)
                await two.close()

    run(test)


def test_close_before_it_was_entered_is_the_end_of_it(tmp_path):
    one = node(tmp_path / "n")

    async def test():
        await one.close()
        with pytest.raises(RuntimeError, match="the node is closed"):
            await one.__aenter__()
        with pytest.raises(RuntimeError, match="the node is closed"):
            await one.get("k")

    run(test)
    assert not (tmp_path / "n").exists()


def test_close_while_it_starts_says_what_to_do(tmp_path):
    one = node(tmp_path / "n", join=["127.0.0.1:1"])

    async def test():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.__aenter__)
            await trio.sleep(0.01)
            with pytest.raises(RuntimeError, match=r"the node is starting; .* cancel"):
                await one.close()
            nursery.cancel_scope.cancel()
        await one.close()

    run(test)
    is_free(tmp_path / "n")


@pytest.mark.parametrize(("listen", "name"), [("127.0.0.1:0", "127.0.0.1-"), ("[::1]:0", "1-"), ("localhost:0", "localhost-")])
def test_the_name_of_one_that_was_given_none_is_that_of_its_address(tmp_path, listen, name):
    async def test():
        async with node(tmp_path / "n", listen=listen) as one:
            assert one.name == name + one.address.rpartition(":")[2]

    run(test)


def test_a_cancelled_close_closes(tmp_path):
    async def test():
        async with node(tmp_path / "n") as one:
            await one.ready()
            with trio.CancelScope() as scope:
                scope.cancel()
                await one.close()
            with pytest.raises(RuntimeError, match="the node is closed"):
                await one.get("k")
            is_free(tmp_path / "n")

    run(test)


def test_a_directory_that_is_refused_leaves_the_node_to_be_entered_later(tmp_path):
    one = node(tmp_path / "n")

    async def test():
        directory = DataDirectory(tmp_path / "n")
        with pytest.raises(ConfigError):
            await one.__aenter__()
        directory.close(clean=True)
        async with one:
            await one.ready()

    run(test)
