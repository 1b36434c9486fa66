"""Three served nodes in durability buffered: killed, stopped, and killed all at once."""

from __future__ import annotations

from pathlib import Path
from time import monotonic, sleep

import pytest

import dynamo
from dynamo.testing.cluster import ServedCluster

KEYS = [f"key-{number}" for number in range(300)]


@pytest.fixture
def cluster(tmp_path: Path):
    with ServedCluster(tmp_path, nodes=3, flags=("--durability", "buffered")) as cluster:
        yield cluster


def write(cluster: ServedCluster, **wanted: int) -> set[int]:
    """Write all keys; the actors that minted the writes."""
    with dynamo.Client(cluster.addresses) as client:
        return {client.set(key, key.encode(), **wanted).dot.actor for key in KEYS}


def missing(cluster: ServedCluster, address: str) -> list[str]:
    with dynamo.Client(address) as client:
        found = client.get_many(KEYS, timeout=30)
        return [key for key in KEYS if found[key.encode()].values != (key.encode(),)]


def test_the_kill_of_one_node_loses_nothing_that_was_acknowledged(cluster: ServedCluster) -> None:
    actors = write(cluster)
    cluster.nodes[1].kill()
    assert missing(cluster, cluster.nodes[0].address) == []
    cluster.nodes[1].start()
    assert missing(cluster, cluster.nodes[1].address) == []
    assert len(write(cluster) - actors) == 1, "the one that was killed has another actor, the others have theirs"


def test_an_orderly_stop_of_all_loses_nothing_and_keeps_the_actors(cluster: ServedCluster) -> None:
    actors = write(cluster, w=3)
    for node in cluster.nodes:
        node.stop()
    for node in cluster.nodes:
        node.start()
    assert missing(cluster, cluster.nodes[0].address) == []
    assert write(cluster) & actors, "the first one finds nobody to confirm its actor and begins another, the others go on"


def test_the_kill_of_all_loses_nothing_that_was_flushed(cluster: ServedCluster) -> None:
    write(cluster)
    deadline = monotonic() + 30
    clients = [dynamo.Client(node.address) for node in cluster.nodes]
    before = [client.stats()["flushes"] for client in clients]
    for client, was in zip(clients, before, strict=True):
        with client:
            while client.stats()["flushes"] < was + 2:  # the first one may have begun before the last write
                assert monotonic() < deadline
                client.set("last", b"")
                sleep(0.01)
    for node in cluster.nodes:
        node.kill()
    for node in cluster.nodes:
        node.start()
    assert missing(cluster, cluster.nodes[0].address) == []
