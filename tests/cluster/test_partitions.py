"""Three nodes that have a network namespace each, and links between them that are cut, both ways and one way, while clients on either side go on.

Needs root, `ip` and `iptables` (`ci/deps.sh` installs them where Debian has them); without, the test skips and says so, and with "netns" in
DYNAMO_REQUIRE it fails.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

import dynamo
from dynamo.testing.cluster import ServedCluster, ServedNode

from .load import Load, judged_load
from .namespaces import Network

NODES = ("n1", "n2", "n3")
CUT_S = 4.0


@pytest.fixture
def network() -> Iterator[Network]:
    network = Network((*NODES, "clients"))
    try:
        network.__enter__()
    except (OSError, subprocess.SubprocessError) as error:
        reason = f"no network namespaces here: {getattr(error, 'stderr', None) or error}"
        if "netns" in os.environ.get("DYNAMO_REQUIRE", "").split(","):
            pytest.fail(reason)
        pytest.skip(reason)
    try:
        yield network
    finally:
        network.__exit__(None, None, None)


def test_links_cut_both_ways_and_one_way(network: Network, tmp_path: Path) -> None:
    cluster = ServedCluster(tmp_path)
    cluster.nodes = [ServedNode(name, tmp_path / name, address=f"{network.addresses[name]}:7379", prefix=network.prefix(name)) for name in NODES]
    with network.inside("clients"), cluster:
        with judged_load(cluster) as work:
            network.isolate("n1")
            with network.inside("n1"):  # clients on the small side, which ask for one node's word
                alone = Load(cluster.addresses[:1], work.history, "alone", threads=2, quorum=1)
                alone.start()
            alone.work_until(monotonic() + CUT_S)
            work.wait(100)
            assert reachable(cluster.addresses[1:]) == {"n1": False, "n2": True, "n3": True}
            network.heal()
            alone.wait(100)
            alone.stop()
            network.cut("n3", "n2", one_way=True)
            work.work_until(monotonic() + CUT_S)
            network.heal()
            network.cut("n1", "n3")
            work.work_until(monotonic() + CUT_S)
            network.heal()
        assert work.failures == [] and alone.failures == []


def reachable(addresses: list[str]) -> dict[str, bool]:
    """Which nodes one of these sees."""
    with dynamo.Client(addresses) as client:
        return {node["name"]: node["reachable"] for node in client.cluster_status()["nodes"]}
