"""Nodes over a write buffer: groups end in memory, flushes on the commit thread, and what a failing disk and a stop make of it."""

from __future__ import annotations

import threading

import pytest
import trio
from rig import greeted, recovering, run
from test_node import get, node, put, stored, values

from dynamo.errors import StorageFailed
from dynamo.model import messages as m
from dynamo.storage import flushing


class Gate:
    """Stands before the commits of a node's disk: they wait while it is shut, and fail while there is an error."""

    def __init__(self, one) -> None:
        self.disk = one._directory.engine.engine
        self.open, self.error, self.tried = threading.Event(), None, 0
        self.open.set()
        self._commit = self.disk.commit
        self.disk.commit = self.commit

    def commit(self, group, entering=None):
        self.tried += 1
        if not self.open.is_set():
            entering()  # as a disk that hangs does: all rows are in, and it does not say that it has them
            entering = lambda: None  # noqa: E731
            self.open.wait()
        if self.error is not None:
            raise self.error
        self._commit(group, entering)

    def rows(self) -> int:
        self.disk.refresh()
        return self.disk.count("objects")


async def until(condition) -> None:
    with trio.fail_after(30):
        while not condition():
            await trio.sleep(0.002)


def test_puts_are_acknowledged_and_read_while_the_disk_hangs(tmp_path):
    async def test():
        async with node(tmp_path / "n", durability="buffered") as one:
            await one.ready()
            gate = Gate(one)
            gate.open.clear()
            for number in range(20):
                assert (await stored(one.address, b"k%d" % number, b"v"))[9] == m.DURABILITY_BUFFERED
            await until(lambda: gate.tried)
            await stored(one.address, b"during", b"v")
            assert await values(one.address, b"k7") == await values(one.address, b"during") == [b"v"]
            assert gate.rows() == 0
            gate.open.set()
            await until(lambda: gate.rows() == 21)

    run(test)


def test_a_clean_stop_flushes_and_keeps_the_actor(tmp_path, monkeypatch):
    monkeypatch.setattr(flushing, "FLUSH_AFTER_S", 1e6)

    async def test():
        async with node(tmp_path / "n", durability="buffered") as one:
            await one.ready()
            gate = Gate(one)
            actor = (await stored(one.address, b"k", b"v"))[5]
            assert gate.rows() == 0
        async with node(tmp_path / "n", durability="synced") as one:
            await one.ready()
            assert await values(one.address, b"k") == [b"v"]
            assert (await stored(one.address, b"k2", b"v"))[5] == actor

    run(test)


def test_after_a_failed_flush_puts_are_errors_reads_go_on_and_nothing_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(flushing, "RETRY_AFTER_S", 0.05)

    async def test():
        async with node(tmp_path / "n", durability="buffered") as one:
            await one.ready()
            gate = Gate(one)
            gate.error = StorageFailed("the disk says no")
            actor = (await stored(one.address, b"k", b"v"))[5]  # it is in the buffer, which is all that was promised
            await until(lambda: one.metrics().get("flushes_failed"))
            reply = await (await greeted(one.address)).ask(put(b"other", b"v"))
            assert reply[0] == m.ERROR and reply[2] == StorageFailed.code
            assert await values(one.address, b"k") == [b"v"]
            assert (await (await greeted(one.address)).ask(get(b"other")))[6] == ()
            gate.error = None
            await until(lambda: gate.rows() == 1)
            assert (await stored(one.address, b"other", b"v"))[5] != actor

    run(test)


def test_a_stop_whose_last_flush_fails_says_so_and_is_not_clean(tmp_path, monkeypatch):
    monkeypatch.setattr(flushing, "FLUSH_AFTER_S", 1e6)
    actors = []

    async def failing():
        async with node(tmp_path / "n", durability="buffered") as one:
            await one.ready()
            actors.append((await stored(one.address, b"k", b"v"))[5])
            Gate(one).error = StorageFailed("the disk says no")

    async def again():
        async with node(tmp_path / "n", durability="buffered") as one:
            await one.ready()
            assert await values(one.address, b"k") == []
            assert (await stored(one.address, b"k", b"v"))[5] not in actors

    with pytest.raises(StorageFailed):
        run(failing)
    run(again)


def test_one_replica_acknowledges_from_its_disk_and_the_client_does_not_wait_for_it(tmp_path):
    async def test():
        async with node(tmp_path / "1", durability="buffered") as first:
            join = {"join": (first.address,), "durability": "buffered"}
            async with node(tmp_path / "2", **join) as second, node(tmp_path / "3", **join) as third:
                nodes = (first, second, third)
                for one in nodes:
                    await one.ready()
                await until(lambda: not any(recovering(one) or one.metrics()["requests_pending"] for one in nodes))
                gates = [Gate(one) for one in nodes]
                for gate in gates:
                    gate.open.clear()
                reply = await stored(first.address, b"k", b"v")
                assert reply[8:10] == (2, m.DURABILITY_BUFFERED)
                pending = [one for one in nodes if one.metrics()["requests_pending"]]
                assert len(pending) == 1, "its coordinator still waits for the synced copy"
                for gate in gates:
                    gate.open.set()
                await until(lambda: not pending[0].metrics()["requests_pending"])
                assert sum(gate.rows() for gate in gates)

    run(test)
