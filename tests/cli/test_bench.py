"""`dynamo bench`: a cluster it starts, servers that run, comparisons, plots."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

from fake_redis import FakeRedis

QUICK = ("--seconds", "0.4", "--warm-up", "0.1", "--keys", "300", "--connections", "4")


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    return subprocess.run([sys.executable, "-m", "dynamo", "bench", *arguments], env=environment, capture_output=True, text=True, timeout=100)


def measured(*arguments: str) -> dict[str, Any]:
    done = bench(*arguments, "-o", "json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_cluster_of_its_own() -> None:
    found = measured("--workload", "F", "--durability", "memory", "--runs", "2", "--processes", "2", "--pipeline", "2", *QUICK)
    assert found["cluster"] == {"nodes": 3, "n": 3, "durability": "memory"} and len(found["runs"]) == 2
    for run in found["runs"]:
        assert run["errors"] == {} and run["siblings_mean"] >= 1 and run["throughput"] > 0 and run["generator_cpu"] > 0
        assert set(run["latency_us"]) == {"read", "read-modify-write"}
        for latency in run["latency_us"].values():
            assert latency["count"] > 0 and 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p99.9"] <= latency["max"]


@pytest.mark.parametrize("workload", ["A", "D", "E"])
def test_workloads_run_against_nodes_that_run(workload: str, tmp_path: Path) -> None:
    from dynamo.testing.cluster import ServedCluster

    with ServedCluster(tmp_path, 1, ("--durability", "memory")) as cluster:
        found = measured("--at", ",".join(cluster.addresses), "--workload", workload, "--runs", "1", *QUICK)
    (run,) = found["runs"]
    assert found["cluster"] is None and run["errors"] == {} and run["operations"] > 10


def test_redis_at_a_constant_rate() -> None:
    with FakeRedis() as server:
        found = measured("--protocol", "redis", "--at", server.address, "--workload", "A", "--rate", "500", "--runs", "1", *QUICK)
    (run,) = found["runs"]
    assert run["operations"] == 200 and set(run["latency_us"]) == {"read", "update"}


def test_the_table_and_comparisons(tmp_path: Path) -> None:
    with FakeRedis() as server:
        at = ("--protocol", "redis", "--at", server.address, "--runs", "2", *QUICK)
        shown = bench(*at, "--workload", "get")
        assert shown.returncode == 0 and shown.stdout.splitlines()[0].split()[:3] == ["run", "operation", "ops/s"] and "4 connections x 1" in shown.stderr
        files = []
        for name, workload in (("a", "get"), ("b", "get"), ("c", "A")):
            path = tmp_path / f"{name}.json"
            path.write_text(json.dumps(measured(*at, "--workload", workload)))
            files.append(str(path))
    same = bench("compare", files[0], files[1], "-o", "json")
    rows = {row["name"]: row for row in json.loads(same.stdout)["rows"]}
    assert same.returncode == 0 and same.stderr == "" and {"throughput", "read p50 us", "read p99.9 us"} <= set(rows)
    assert all(row["low"] <= row["ratio"] <= row["high"] for row in rows.values())
    other = bench("compare", files[0], files[2])
    assert other.returncode == 0 and "differ in more than the servers: workload" in other.stderr and "throughput" in other.stdout
    drawn = bench("plot", *files[:2], "--to", str(tmp_path / "plot.svg"))
    if find_spec("matplotlib") is None:
        assert drawn.returncode == 7 and "pip install 'dynamo-kv[plot]'" in drawn.stderr
    else:
        assert drawn.returncode == 0 and (tmp_path / "plot.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--protocol", "redis"), 2, "needs --at"),
        (("--protocol", "redis", "--at", "h:1", "--workload", "E"), 2, "no scan"),
        (("--workload", "Z"), 2, "Invalid value"),
        (("--at", "127.0.0.1:1", "--runs", "1"), 5, "127.0.0.1:1"),
        (("compare", "setup.cfg", "setup.cfg"), 2, "does not exist"),
    ],
)
def test_what_is_refused(arguments: tuple[str, ...], code: int, said: str) -> None:
    done = bench(*arguments)
    assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_file_that_is_no_measurement(tmp_path: Path) -> None:
    for text, said in (("{}", "no document"), ("not JSON", "not JSON")):
        (tmp_path / "x.json").write_text(text)
        done = bench("compare", str(tmp_path / "x.json"), str(tmp_path / "x.json"))
        assert done.returncode == 7 and said in done.stderr and "Traceback" not in done.stderr
