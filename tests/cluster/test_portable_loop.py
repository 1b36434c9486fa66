"""Three real nodes over the portable loop, and one cluster of both kinds: what waits for sockets is not seen from outside."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import dynamo
from dynamo.testing.cluster import ServedCluster

LOOPS = ("portable", "portable", "portable"), ("portable", "nested", "portable")


@pytest.mark.parametrize("loops", LOOPS, ids="-".join)
def test_three_nodes_take_and_show_writes_and_miss_nobody(loops: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = ServedCluster(tmp_path)
    try:
        for node, loop in zip(cluster.nodes, loops, strict=True):
            monkeypatch.setenv("DYNAMO_LOOP", loop)
            node.start(join=cluster.addresses[:1] if node is not cluster.nodes[0] else ())
        threads = [threading.Thread(target=write, args=(cluster, number)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        check(cluster.addresses)
        cluster.nodes[0].kill()
        with dynamo.Client(cluster.addresses) as client:
            client.set("late", b"while one is away")
        check(cluster.addresses[1:])
        cluster.nodes[0].start()
        with dynamo.Client(cluster.nodes[0].address) as client:
            assert client.get("late").value == b"while one is away"
        assert [node.stop() for node in cluster.nodes] == [0, 0, 0]
    finally:
        cluster.stop()


def write(cluster: ServedCluster, number: int) -> None:
    with dynamo.Client(cluster.addresses[number % 3]) as client:
        for i in range(40):
            client.put(f"{number}-{i}", b"%d" % i * 1000)
        client.put_many({f"{number}-{i}": b"again" for i in range(20)})


def check(addresses: list[str]) -> None:
    for address in addresses:
        with dynamo.Client(address) as client:
            for number in range(6):
                results = client.get_many([f"{number}-{i}" for i in range(40)])
                for i in range(40):
                    expected = {b"%d" % i * 1000} | ({b"again"} if i < 20 else set())
                    result = results[f"{number}-{i}".encode()]
                    assert isinstance(result, dynamo.Result) and set(result.values) == expected
