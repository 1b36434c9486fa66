"""`dynamo bench`: a cluster it starts, servers that run, comparisons, plots."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

from fake_redis import FakeRedis

from dynamo.bench import report
from dynamo.cli import main
from dynamo.testing.cluster import ServedCluster

QUICK = ("--seconds", "0.3", "--warm-up", "0.1", "--keys", "300", "--connections", "4")


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    return subprocess.run([sys.executable, "-P", "-m", "dynamo", "bench", *arguments], env=environment, capture_output=True, text=True, timeout=100)


def measured(*arguments: str) -> dict[str, Any]:
    done = bench(*arguments, "-o", "json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def here(*arguments: str) -> int:
    """A command that starts no process."""
    return main(["bench", *arguments])


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedCluster]:
    with ServedCluster(tmp_path_factory.mktemp("bench"), 1, ("--durability", "memory")) as cluster:
        yield cluster


def test_a_cluster_of_its_own() -> None:
    found = measured("--workload", "F", "--durability", "memory", "--runs", "2", "--processes", "2", "--pipeline", "2", *QUICK)
    assert found["cluster"] == {"nodes": 3, "n": 3, "durability": "memory"} and len(found["runs"]) == 2
    for run in found["runs"]:
        assert run["errors"] == {} and run["siblings_mean"] >= 1 and run["throughput"] > 0 and run["generator_cpu"] > 0
        assert set(run["latency_us"]) == {"read", "read-modify-write"}
        for latency in run["latency_us"].values():
            assert latency["count"] > 0 and 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p99.9"] <= latency["max"]


@pytest.mark.parametrize("workload", ["A", "D", "E"])
def test_workloads_run_against_nodes_that_run(workload: str, node: ServedCluster) -> None:
    found = measured("--at", ",".join(node.addresses), "--workload", workload, "--runs", "1", *QUICK)
    (run,) = found["runs"]
    assert found["cluster"] is None and run["errors"] == {} and run["operations"] > 10


def test_nobody_there() -> None:
    done = bench("--at", "127.0.0.1:1", "--runs", "1")
    assert done.returncode == 5 and "127.0.0.1:1" in done.stderr and "Traceback" not in done.stderr


def test_redis_at_a_constant_rate() -> None:
    with FakeRedis() as server:
        found = measured("--protocol", "redis", "--at", server.address, "--workload", "A", "--rate", "500", "--runs", "1", *QUICK)
    (run,) = found["runs"]
    assert run["operations"] == 150 and set(run["latency_us"]) == {"read", "update"}


def test_the_table_and_comparisons(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with FakeRedis() as server:
        at = ("--protocol", "redis", "--at", server.address, "--runs", "2", *QUICK)
        shown = bench(*at, "--workload", "get")
        assert shown.returncode == 0 and shown.stdout.splitlines()[0].split()[:3] == ["run", "operation", "ops/s"] and "4 connections x 1" in shown.stderr
        files = []
        for name, workload in (("a", "get"), ("b", "get"), ("c", "A")):
            path = tmp_path / f"{name}.json"
            path.write_text(json.dumps(measured(*at, "--workload", workload)))
            files.append(str(path))
    assert here("compare", files[0], files[1], "-o", "json") == 0
    out, err = capfd.readouterr()
    rows = {row["name"]: row for row in json.loads(out)["rows"]}
    assert err == "" and {"throughput", "read p50 us", "read p99.9 us"} <= set(rows)
    assert all(row["low"] <= row["ratio"] <= row["high"] for row in rows.values())
    assert here("compare", files[0], files[2]) == 0
    out, err = capfd.readouterr()
    assert "differ in more than the servers: workload" in err and "throughput" in out
    code = here("plot", *files[:2], "--to", str(tmp_path / "plot.svg"))
    if find_spec("matplotlib") is None:
        assert code == 7 and "pip install 'dynamo-kv[plot]'" in capfd.readouterr().err
    else:
        assert code == 0 and (tmp_path / "plot.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--protocol", "redis"), 2, "needs --at"),
        (("--protocol", "redis", "--at", "h:1", "--workload", "E"), 7, "Redis has no scan"),
        (("--protocol", "memcached"), 2, "memcached needs --at"),
        (("--protocol", "memcached", "--at", "h:1", "--workload", "E"), 7, "memcached has no scan"),
        (("--protocol", "etcd"), 2, "etcd needs --at"),
        (("--protocol", "etcd", "--at", "h:1", "--workload", "E"), 7, "etcd has no scan"),
        (("--protocol", "etcd", "--at", "h:1", "--pipeline", "2"), 7, "one request at a time"),
        (("--at", "127.0.0.1:1", "--nodes", "3"), 2, "--nodes is for a cluster that is started here"),
        (("--rate", "nan"), 7, "rate is a number"),
        (("--workload", "Z"), 2, "Invalid value"),
        (("compare", "setup.cfg", "setup.cfg"), 2, "does not exist"),
    ],
)
def test_what_is_refused(arguments: tuple[str, ...], code: int, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert here(*arguments) == code
    assert said in capfd.readouterr().err


def test_a_file_that_is_no_measurement(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    hollow = {"format": report.FORMAT, "plan": {}, "runs": [dict.fromkeys(report._RUN, 1)], "core": "", "machine": ""}
    for text, said in (("{}", "no document"), ("not JSON", "not JSON"), (json.dumps(hollow), "no whole document")):
        (tmp_path / "x.json").write_text(text)
        assert here("compare", str(tmp_path / "x.json"), str(tmp_path / "x.json")) == 7
        assert said in capfd.readouterr().err
