"""Real processes under load: killed, stopped, restarted one after the other, and robbed of their rows. What the clients did and were shown is
judged by the checkers the simulator uses, together with what the disks hold in the end."""

from __future__ import annotations

from pathlib import Path
from time import monotonic

import pytest

import dynamo
from dynamo.model.group import Group
from dynamo.storage.lmdb import LmdbEngine
from dynamo.testing.cluster import ServedCluster
from dynamo.testing.history import LostCopies
from dynamo.testing.recorder import RecordingClient

from .load import judged_load, stopped


@pytest.mark.parametrize(("durability", "orderly"), [("synced", True), ("relaxed", False)], ids=["orderly", "killed"])
def test_rolling_restart_of_all_nodes_under_load(durability: str, orderly: bool, tmp_path: Path) -> None:
    with ServedCluster(tmp_path, flags=("--durability", durability)) as cluster:
        with judged_load(cluster) as work:
            for node in cluster.nodes:
                if orderly:
                    assert node.stop() == 0
                else:
                    node.kill()
                work.wait(200)
                node.start()
                work.wait(100)
        assert work.failures == []


def test_nodes_stopped_for_30_and_5_seconds_and_one_killed_meanwhile(tmp_path: Path) -> None:
    """Five nodes: at any time at most two of a key's three owners are away, and others stand in for them."""
    with ServedCluster(tmp_path, nodes=5) as cluster:
        with judged_load(cluster) as work:
            began = monotonic()
            with stopped(cluster, 4):
                with stopped(cluster, 1):
                    work.work_until(began + 5)
                for victim in (0, 2):
                    cluster.nodes[victim].kill()
                    work.wait(300)
                    cluster.nodes[victim].start()
                    work.wait(100)
                work.work_until(began + 30)
        assert work.failures == []


def test_a_node_that_lost_its_rows_gets_them_back_without_any_reader(tmp_path: Path) -> None:
    keys = [f"unread-{number}" for number in range(2000)]
    with ServedCluster(tmp_path, flags=("--durability", "relaxed")) as cluster:
        with judged_load(cluster) as work:
            with RecordingClient(cluster.addresses, work.history, "loader") as client:
                for first in range(0, len(keys), 100):
                    outcomes = client.set_many(dict.fromkeys(keys[first : first + 100], b"v"))
                    assert not [outcome for outcome in outcomes.values() if isinstance(outcome, dynamo.DynamoError)]
            victim = cluster.nodes[2]
            victim.kill()
            lost = rob(victim.data)
            assert lost > 1000  # W of N have acknowledged, and this one may have lagged
            work.history.add(LostCopies(victim.name, None, monotonic()))
            victim.start()
        assert work.failures == []


def rob(data: Path) -> int:
    """Take all rows out of a stopped node's directory, which keeps its identity; returns how many there were."""
    engine = LmdbEngine(str(data), synced=True)
    try:
        rows = engine.scan("objects", b"", None, 1_000_000)
        engine.commit(Group(1, dict.fromkeys((key for key, _ in rows), None), synced=True))
        return len(rows)
    finally:
        engine.close()
