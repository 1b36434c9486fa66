"""SIGKILL one of three nodes in the middle of 10,000 writes by 20 clients: nothing acknowledged is lost, and writing goes on."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import dynamo
from dynamo.testing.cluster import ServedCluster

CLIENTS = 20


def key_of(client: int, number: int) -> str:
    return f"client-{client}-write-{number}"


@pytest.mark.parametrize(("victim", "writes_each"), [(0, 500), (1, 150), (2, 150)])
def test_every_acknowledged_write_survives_the_kill(victim: int, writes_each: int, tmp_path: Path) -> None:
    with ServedCluster(tmp_path, nodes=3) as cluster:
        written = threading.Semaphore(0)
        failed: list[tuple[str, dynamo.DynamoError]] = []

        def write_all(client_number: int) -> list[str]:
            acknowledged = []
            addresses = cluster.addresses[client_number % 3 :] + cluster.addresses[: client_number % 3]
            with dynamo.Client(",".join(addresses)) as client:
                for number in range(writes_each):
                    key = key_of(client_number, number)
                    try:
                        client.set(key, key.encode())
                        acknowledged.append(key)
                    except dynamo.DynamoError as error:
                        failed.append((key, error))
                    written.release()
            return acknowledged

        with ThreadPoolExecutor(CLIENTS) as pool:
            work = [pool.submit(write_all, number) for number in range(CLIENTS)]
            for _ in range(CLIENTS * writes_each * 2 // 5):
                assert written.acquire(timeout=60)
            cluster.nodes[victim].kill()
            acknowledged = [key for future in work for key in future.result(timeout=120)]

        assert failed == [], "clients that fail over see no failed request"
        assert len(acknowledged) == CLIENTS * writes_each
        survivors = [node.address for node in cluster.nodes if node.running]
        assert_all_readable(survivors[:1], acknowledged)
        cluster.nodes[victim].start()
        assert_all_readable([cluster.nodes[victim].address], acknowledged)


def assert_all_readable(addresses: list[str], keys: list[str]) -> None:
    """Each key has its value, and that alone, read through the node."""
    with dynamo.Client(",".join(addresses)) as client:
        for first in range(0, len(keys), 500):
            results = client.get_many(keys[first : first + 500], timeout=30)
            for key in keys[first : first + 500]:
                result = results[key.encode()]
                assert isinstance(result, dynamo.Result), f"{key}: {result!r}"
                assert result.values == (key.encode(),), key
