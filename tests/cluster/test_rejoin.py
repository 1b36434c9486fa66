"""Real processes whose addresses change hands, and a founder that comes back without its disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from time import monotonic

import pytest

import dynamo
from dynamo.testing.cluster import NodeDied, ServedCluster, ServedNode

ENVIRON = os.environ | {"PYTHONPATH": str(Path(dynamo.__file__).parent.parent)}


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A start that ends by itself."""
    command = [sys.executable, "-m", "dynamo", "serve", *arguments]
    done = subprocess.run(command, env=ENVIRON, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "" and "Traceback" not in done.stderr, done
    return done


def all_three_confirm(nodes: list[ServedNode]) -> None:
    """Every node reaches all others: a write through each is confirmed by three, within the time that finding each other takes."""
    for node in nodes:
        deadline = monotonic() + 20.0
        while True:
            with dynamo.Client(node.address) as client:
                try:
                    client.set("k", b"v", w=3)
                    break
                except dynamo.DynamoError:
                    assert monotonic() < deadline, node.log_tail()


def test_nodes_swap_their_addresses_and_one_is_wiped_at_its_own(tmp_path: Path) -> None:
    with ServedCluster(tmp_path, nodes=3) as cluster:
        one, two, three = cluster.nodes
        for node in (one, two):
            node.stop()
        one.address, two.address = two.address, one.address
        for node in (one, two):
            node.launch()
        for node in (one, two):
            node.wait_ready()
        all_three_confirm(cluster.nodes)
        three.kill()
        shutil.rmtree(three.data)
        for _ in range(2):  # a newcomer; then killed, and itself again
            three.start(join=[one.address])
            all_three_confirm(cluster.nodes)
            three.signal(signal.SIGKILL)
            three.kill()
        with dynamo.Client(one.address) as client:
            assert client.get("k").value == b"v"
        status = subprocess.run([sys.executable, "-m", "dynamo", "cluster", "status", "--at", one.address, "-o", "json"], env=ENVIRON, capture_output=True,
                                text=True, timeout=30, check=True)  # fmt: skip
        assert status.stdout.count('"name": "n3"') + status.stdout.count('"name":"n3"') == 2  # the one that was lost, and the one that came


def test_a_founder_without_its_disk_is_met_by_refusals_on_both_sides(tmp_path: Path) -> None:
    with ServedCluster(tmp_path, nodes=2) as cluster:
        founder, other = cluster.nodes
        founder.kill()
        shutil.rmtree(founder.data)
        first = founder.cluster_id
        founder.start()  # with its old command line
        assert founder.cluster_id != first
        for join in ((founder.address, other.address), (other.address, founder.address)):
            done = serve("--data", str(tmp_path / "new"), "--listen", "127.0.0.1:0", *(word for address in join for word in ("--join", address)))
            assert done.returncode == 7 and first in done.stderr and founder.cluster_id in done.stderr
        deadline = monotonic() + 20.0
        while "this is cluster" not in other.log_tail() or "turned away a caller" not in founder.log_tail():
            assert monotonic() < deadline, (other.log_tail(), founder.log_tail())
        with pytest.raises(NodeDied):
            other.stop()
            other.start(join=[founder.address])
        other.start()  # an address that another cluster has is no reason to stay away
        with dynamo.Client(other.address) as client:
            client.set("k", b"v", w=1)


def test_nobody_to_join_says_what_to_do(tmp_path: Path) -> None:
    done = serve("--data", str(tmp_path / "d"), "--listen", "127.0.0.1:0", "--join", "127.0.0.1:1", "--join-timeout-s", "0.2")
    assert done.returncode == 5 and "see that a node of the cluster runs at one of these addresses" in done.stderr and "without `join`" in done.stderr
