"""Real nodes, and a key whose siblings are more than a frame holds at each of them."""

from __future__ import annotations

from rig import run

from dynamo import AsyncClient, Node, NodeConfig
from dynamo._core import record as records
from dynamo.model import messages as m
from dynamo.replication.local import merge_in

SIZE = 1_900_000


def wrote_apart(node, first):
    """The node is given what five sides of a partition wrote to one key, each as much as it may."""
    core = node._parts.replica.core
    _, row_key, _ = core.place(b"default", b"k")
    for actor in range(first, first + 5):
        record = records.put(b"", b"", actor, 1, 1, actor, actor.to_bytes(16, "big"), bytes([actor]) * SIZE, False)
        merge_in(core, row_key, b"default", b"k", m.OWNER, record)
    node._parts.reactor.wake()


async def both(path, verb):
    settings = {"listen": "127.0.0.1:0", "durability": "memory", "n": 2, "partitions": 8}
    async with Node(NodeConfig(data=path / "a", **settings)) as a:
        await a.ready()
        async with Node(NodeConfig(data=path / "b", join=[a.address], listen="127.0.0.1:0", durability="memory")) as b:
            await b.ready()
            wrote_apart(a, 65)
            wrote_apart(b, 70)
            async with AsyncClient(a.address, timeout=20) as client:
                await verb(client)
            for node in (a, b):
                counters = node.metrics()
                assert not any(counters[name] for name in ("messages_too_large", "connections_cut_off", "protocol_errors"))


def test_it_is_read_and_updated_until_one_value_is_left(tmp_path):
    async def verb(client):
        result = await client.get("k", r=2)
        assert len(result.values) == 3 and result.context.unseen_siblings == 7
        while (await client.update("k", lambda values: b"".join(sorted(value[:1] if len(value) == SIZE else value for value in values)))).unseen_siblings:
            pass
        assert (await client.get("k", r=2)).value == b"ABCDEFGHIJ"

    run(lambda: both(tmp_path, verb))


def test_it_is_deleted_blind(tmp_path):
    async def verb(client):
        await client.delete("k", blind=True)
        assert not (await client.get("k", r=2)).found

    run(lambda: both(tmp_path, verb))
