"""The command line against real nodes: processes, sockets, disks and signals on this machine."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dynamo
from dynamo.testing.cluster import ServedCluster

ENVIRON = os.environ | {"PYTHONPATH": str(Path(dynamo.__file__).parent.parent)}
READY = re.compile(r"ready node=(\S+) address=(127\.0\.0\.1:\d+) cluster=([0-9a-f-]{36})")


def command(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-P", "-m", "dynamo", *arguments], env=ENVIRON, capture_output=True, text=True, timeout=30, check=False, **options)


def ok(*arguments: str) -> str:
    done = command(*arguments)
    assert done.returncode == 0, (arguments, done)
    return done.stdout


def values(at: str, key: str) -> list[str]:
    return [sibling["value"] for sibling in json.loads(command("get", "-o", "json", "--at", at, key).stdout)["siblings"]]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedCluster]:
    with ServedCluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def at(cluster: ServedCluster) -> list[str]:
    return cluster.addresses


# --- what one node takes, another serves ------------------------------------------------------------------------------------------------


def test_a_put_through_one_node_is_got_through_the_others(at: list[str]) -> None:
    token = ok("put", "--at", at[0], "alice", "hello").rstrip("\n")
    assert re.fullmatch(r"[A-Za-z0-9_-]+", token)
    assert ok("get", "--at", at[1], "alice") == ok("get", "--at", at[2], "alice") == "hello\n"


def test_two_puts_under_one_context_are_siblings_until_a_put_merges_them(at: list[str]) -> None:
    context = ok("set", "--at", at[0], "bob", "0").strip()
    ok("put", "--at", at[1], "bob", "left", "--context", context)
    ok("put", "--at", at[2], "bob", "right", "--context", context)
    shown = command("get", "--no-siblings", "-o", "json", "--at", at[0], "bob")
    assert shown.returncode == 4
    both = json.loads(shown.stdout)
    assert sorted(sibling["value"] for sibling in both["siblings"]) == ["left", "right"]
    assert len({sibling["dot"] for sibling in both["siblings"]}) == 2
    ok("put", "--at", at[1], "bob", "merged", "--context", both["context"])
    assert all(values(node, "bob") == ["merged"] for node in at)


def test_a_put_without_a_context_stands_beside_and_a_set_replaces(at: list[str]) -> None:
    ok("put", "--at", at[0], "carol", "1")
    ok("put", "--at", at[1], "carol", "2")
    assert sorted(values(at[2], "carol")) == ["1", "2"]
    ok("set", "--at", at[0], "carol", "3")
    ok("set", "--at", at[1], "carol", "4")
    assert all(values(node, "carol") == ["4"] for node in at)


def test_a_deleted_key_is_not_found_and_its_context_makes_it_anew(at: list[str]) -> None:
    ok("set", "--at", at[0], "dave", "x")
    ok("delete", "--at", at[1], "--blind", "dave")
    gone = command("get", "-o", "json", "--at", at[2], "dave")
    assert gone.returncode == 3 and json.loads(gone.stdout)["siblings"] == []
    ok("put", "--at", at[0], "dave", "y", "--context", json.loads(gone.stdout)["context"])
    assert values(at[1], "dave") == ["y"]


def test_a_context_of_another_key_is_refused(at: list[str]) -> None:
    context = ok("set", "--at", at[0], "erin", "x").strip()
    refused = command("put", "--at", at[0], "frank", "y", "--context", context)
    assert (refused.returncode, refused.stdout) == (1, "")


def test_every_byte_comes_back(at: list[str]) -> None:
    data = bytes(range(256)) * 512
    put = subprocess.run([sys.executable, "-P", "-m", "dynamo", "set", "--at", at[0], "all", "-"], env=ENVIRON, input=data, timeout=30)
    got = subprocess.run([sys.executable, "-P", "-m", "dynamo", "get", "--at", at[1], "all", "-o", "raw"], env=ENVIRON, capture_output=True, timeout=30)
    assert put.returncode == 0 and got.stdout == data


def test_buckets_are_apart(at: list[str]) -> None:
    ok("set", "--at", at[0], "-b", "one", "grace", "1")
    assert command("get", "--at", at[0], "-b", "two", "grace").returncode == 3


def test_many_keys_at_once(at: list[str]) -> None:
    with dynamo.Client(at) as client:
        bucket = client.bucket("many")
        for i in range(0, 300, 3):
            bucket.set(f"k{i}", b"%d" % i)
        found = bucket.get_many([f"k{i}" for i in range(300)])
    assert len(found) == 300
    for i in range(300):
        result = found[b"k%d" % i]
        assert isinstance(result, dynamo.Result) and result.value == (b"%d" % i if i % 3 == 0 else None)


def test_scan_lists_what_get_shows(at: list[str]) -> None:
    for i in range(5):
        ok("set", "--at", at[0], "-b", "listed", f"key-{i}", f"value-{i}")
    ok("delete", "--at", at[1], "-b", "listed", "--blind", "key-2")
    lines = ok("scan", "--at", at[2], "-b", "listed", "-o", "json").splitlines(keepends=True)
    assert sorted(lines) == sorted(ok("get", "--at", at[2], "-b", "listed", "-o", "json", f"key-{i}") for i in (0, 1, 3, 4))
    assert ok("scan", "--at", at[0], "-b", "listed", "key-3") == "key-3\tvalue-3\n" and ok("scan", "--at", at[0], "-b", "empty") == ""


def test_stats_are_counts_of_the_asked_node(cluster: ServedCluster, at: list[str]) -> None:
    for node, address in zip(cluster.nodes, at, strict=True):
        counts = json.loads(ok("stats", "-o", "json", "--at", address))
        assert (counts["node"], counts["address"]) == (node.name, address) and counts["messages_in"] > 0 and counts["members"] == 3


# --- the cluster ------------------------------------------------------------------------------------------------------------------------


def test_ready_lines_name_node_address_and_one_cluster(cluster: ServedCluster) -> None:
    lines = [READY.fullmatch(node.ready_line) for node in cluster.nodes]
    assert [line and line[1] for line in lines] == ["n1", "n2", "n3"] and len({line and line[3] for line in lines}) == 1


def test_status_and_preference_list(cluster: ServedCluster, at: list[str]) -> None:
    status = json.loads(ok("cluster", "status", "-o", "json", "--at", at[1]))
    assert list(status) == ["cluster", "ring", "n", "r", "w", "partitions", "nodes"]
    assert status["cluster"] == cluster.nodes[0].cluster_id and (status["n"], status["partitions"]) == (3, 256)
    assert {node["name"]: node["address"] for node in status["nodes"]} == {node.name: node.address for node in cluster.nodes}
    assert all(node["status"] == "normal" and node["partitions"] == 256 for node in status["nodes"])
    preference = json.loads(ok("ring", "preflist", "alice", "-o", "json", "--at", at[2]))
    assert list(preference) == ["key", "bucket", "position", "partition", "owners", "fallbacks"]
    assert sorted(owner["address"] for owner in preference["owners"]) == sorted(at) and preference["fallbacks"] == []
    assert preference["partition"] == preference["position"] >> 56


def test_a_killed_node_is_missed_by_nobody_and_returns_without_join(cluster: ServedCluster, at: list[str]) -> None:
    victim = cluster.nodes[1]
    ok("set", "--at", at[0], "heidi", "before")
    victim.kill()
    ok("set", "--at", f"{victim.address},{at[0]}", "heidi", "during")
    assert ok("get", "--at", f"{victim.address},{at[2]}", "heidi") == "during\n"
    victim.start()
    assert ok("get", "--at", victim.address, "heidi") == "during\n"


def test_a_stopped_node_does_not_eat_the_clients_time(cluster: ServedCluster, at: list[str]) -> None:
    stopped = cluster.nodes[2]
    stopped.signal(signal.SIGSTOP)
    try:
        with dynamo.Client(at) as client:
            for i in range(6):
                client.set("ivan", b"%d" % i)
                assert client.get("ivan").value == b"%d" % i
    finally:
        stopped.signal(signal.SIGCONT)


# --- processes: ready line, exit codes, children -----------------------------------------------------------------------------------------


def test_an_unreachable_join_gives_up_with_5(tmp_path: Path) -> None:
    done = command("serve", "--data", str(tmp_path / "d"), "--listen", "127.0.0.1:0", "--join", "127.0.0.1:1", "--join-timeout-s", "0.5")
    assert (done.returncode, done.stdout) == (5, "") and "127.0.0.1:1" in done.stderr


def test_data_of_another_cluster_is_refused_with_7(cluster: ServedCluster, tmp_path: Path) -> None:
    with ServedCluster(tmp_path, nodes=1) as other:
        data = other.nodes[0].data
    done = command("serve", "--data", str(data), "--listen", "127.0.0.1:0", "--join", cluster.addresses[0])
    assert (done.returncode, done.stdout) == (7, "") and "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_node_that_is_asked_to_stop_exits_with_0_and_keeps_its_data(tmp_path: Path, number: signal.Signals) -> None:
    with ServedCluster(tmp_path, nodes=1) as cluster:
        (node,) = cluster.nodes
        with dynamo.Client(node.address) as client:
            client.set("k", b"v")
        node.signal(number)
        assert node.stop() == 0
        node.start()
        with dynamo.Client(node.address) as client:
            assert client.get("k").value == b"v"


@pytest.fixture
def demo() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-P", "-m", "dynamo", "demo"], env=ENVIRON, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        yield process
        if process.poll() is None:
            process.kill()


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGKILL, -signal.SIGKILL)])
def test_demo_starts_three_nodes_that_end_with_it(demo: subprocess.Popen[str], number: signal.Signals, code: int) -> None:
    assert demo.stdout is not None and demo.stderr is not None
    lines = [READY.fullmatch(demo.stdout.readline().rstrip("\n")) for _ in range(3)]
    assert [line and line[1] for line in lines] == ["n1", "n2", "n3"]
    talk = [demo.stderr.readline() for _ in range(5)]
    assert sum(line.startswith("  dynamo ") for line in talk) == 3
    for line in talk:
        if line.startswith("  dynamo "):
            ok(*line.split()[1:])
    children = [os.pidfd_open(child) for child in children_of(demo.pid)]
    assert len(children) == 3
    demo.send_signal(number)
    assert demo.wait(30) == code
    for child in children:
        assert select.select([child], [], [], 30)[0], "a node outlived the demo"
        os.close(child)


def test_a_demo_whose_port_is_taken_in_the_last_moment_starts_elsewhere() -> None:
    """Two of them at a time: both find the port free that client commands look at, and one gets it."""
    late = "import dynamo.cli.demo as demo; demo._is_free = lambda port: True; demo.DEFAULT_PORT = {}; demo.demo_command()"
    with socket.create_server(("127.0.0.1", 0)) as other:
        command = [sys.executable, "-P", "-c", late.format(other.getsockname()[1])]
        with subprocess.Popen(command, env=ENVIRON, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(3)]
            process.terminate()
            assert process.wait(30) == 0
    assert [READY.fullmatch(line.rstrip("\n")) is not None for line in lines] == [True] * 3, lines


def test_the_cart_example_finds_every_purchase_after_a_kill() -> None:
    example = Path(__file__).parents[2] / "examples" / "cart.py"
    done = subprocess.run(
        [sys.executable, str(example), "--limit", "600", "--clients", "8"], env=ENVIRON, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done
    figures = dict(word.split("=") for word in done.stdout.split())
    assert figures["expected"] == figures["found"] == "600" and figures["unknown"] == "0"
    assert "killed" in done.stderr and "is back" in done.stderr
