"""A node whose storage is in trouble: it starts where it can, says what is wrong where it cannot write, and acknowledges nothing that would be lost."""

from __future__ import annotations

import shutil

import pytest
import trio

import dynamo
from dynamo.config import NodeConfig
from dynamo.errors import CorruptRecord, StorageFailed, StorageFull, Timeout
from dynamo.model.group import Group
from dynamo.node import Node
from dynamo.storage.lmdb import LmdbEngine

DURABILITIES = ["synced", "relaxed", "buffered"]
KEYS = [b"%d" % number for number in range(30)]


def node(path, durability="synced"):
    return Node(NodeConfig(data=path, listen="127.0.0.1:0", durability=durability))


@pytest.mark.parametrize(
    ("durability", "harm"), [("synced", "removed"), ("synced", "renamed"), ("synced", "replaced"), ("relaxed", "removed"), ("buffered", "removed")]
)
def test_a_lost_directory_is_noticed_before_the_next_acknowledgement(tmp_path, durability, harm):
    path = tmp_path / "n"

    checked = []  # an error of a test within the block would be hidden by the one of leaving it

    async def test():
        with pytest.raises(StorageFailed, match=r"data\.mdb"):
            async with node(path, durability) as one:
                await one.ready()
                await one.set("k", b"v", w=1)
                if harm == "removed":
                    shutil.rmtree(path)
                else:
                    path.rename(tmp_path / "elsewhere")
                if harm == "replaced":
                    shutil.copytree(tmp_path / "elsewhere", path)
                with pytest.raises(StorageFailed, match=r"data\.mdb") as caught:
                    await one.set("k", b"w")
                assert caught.value.maybe_applied
                for outcome in (await one.set_many({"a": b"1", "b": b"2"}, timeout=0.2)).values():
                    assert isinstance(outcome, (StorageFailed, Timeout))
                assert (await one.get("k")).value == b"v"
                checked.append(True)

    trio.run(test)
    assert checked


@pytest.mark.parametrize("durability", ["synced", "buffered"])
def test_a_full_disk_is_named_by_every_verb(tmp_path, durability, monkeypatch):
    async def test():
        async with node(tmp_path / "n", durability) as one:
            await one.ready()
            await one.set("k", b"v")
            context = (await one.get("k")).context
            commit = LmdbEngine.commit

            def full(*_):
                raise StorageFull("the disk under /n is full; free space there")

            with monkeypatch.context() as patch:
                patch.setattr(LmdbEngine, "commit", full)
                if durability == "buffered":  # the buffer takes what comes until a flush has failed
                    with pytest.raises(StorageFull):
                        one._directory.engine.flush()
                for write in (
                    lambda: one.set("k", b"2"),
                    lambda: one.delete("k", context=context),
                    lambda: one.delete("k", blind=True),
                    lambda: one.update("k", lambda values: b"3"),
                ):
                    with pytest.raises(StorageFull, match="free space"):
                        await write()
                for outcome in (await one.set_many({"a": b"1", "b": b"2"})).values():
                    assert isinstance(outcome, StorageFull)
                assert (await one.get("k")).value == b"v"
            assert LmdbEngine.commit is commit

    trio.run(test)


@pytest.mark.parametrize("durability", DURABILITIES)
def test_a_lone_node_overwrites_and_deletes_damaged_rows_and_starts_with_rows_that_cannot_be(tmp_path, durability):
    async def first():
        async with node(tmp_path / "n", durability) as one:
            await one.ready()
            await one.set_many(dict.fromkeys(KEYS, b"v"))
            return [one._parts.replica.core.locate(b"default", key)[1] for key in KEYS]

    rows = trio.run(first)
    engine = LmdbEngine(str(tmp_path / "n"), True)
    row = engine.read(rows[0])
    assert isinstance(row, bytes)
    damaged = {row_key: (data := engine.read(row_key))[:-1] + bytes([data[-1] ^ 1]) for row_key in rows[:4]}
    misplaced = {b"\xff\xffdefault\0k": row, b"\xff\xff": row, b"\x01\x00default\0k": b"", b"\0\0default\0": row, b"\0": b"", b"\0\7default\0moved": row}
    hints = {b"short": b"", b"x" * 16 + b"\xff\xffdefault\0k": bytes(4), one_hint(rows[0]): b"\0\0\0\1"}
    engine.commit(Group(1, {**damaged, **misplaced}, hints))
    engine.close()

    async def second():
        async with node(tmp_path / "n", durability) as one:
            await one.ready()
            with pytest.raises(CorruptRecord, match="b'0'"):
                await one.get(KEYS[0])
            found = {result.key: result async for result in one.scan()}
            assert set(found) == set(KEYS)
            assert {key for key, result in found.items() if result.error} == set(KEYS[:4])
            await one.set(KEYS[0], b"w")
            await one.delete(KEYS[1], blind=True)
            await one.delete(KEYS[2], blind=True)
            async with dynamo.AsyncClient(one.address) as client:
                many = await client.get_many(KEYS)
                assert isinstance(many[KEYS[3]], CorruptRecord)
                await client.set(KEYS[3], b"w")
            assert {result.key: result.value async for result in one.scan()} == {KEYS[0]: b"w", KEYS[3]: b"w", **dict.fromkeys(KEYS[4:], b"v")}

    trio.run(second)


def one_hint(row_key: bytes) -> bytes:
    """Of a target that is no member."""
    return b"y" * 16 + row_key


def test_an_idle_node_says_that_its_directory_is_gone_and_that_it_is_back(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("dynamo.net.watch.watch.__defaults__", (0.01,))

    async def said(text):
        with trio.fail_after(10):
            while text not in caplog.text:
                await trio.sleep(0.01)

    async def test():
        async with node(tmp_path / "n") as one:
            await one.ready()
            (tmp_path / "n").rename(tmp_path / "elsewhere")
            await said("was removed or renamed")
            (tmp_path / "elsewhere").rename(tmp_path / "n")
            await said("is back")

    trio.run(test)
    assert caplog.text.count("was removed or renamed") == 1
