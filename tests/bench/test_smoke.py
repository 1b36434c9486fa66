"""That the benchmarks run, and that the compiled core is worth having. Nothing here depends on how fast the machine is, or on who else uses it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

import pytest

import dynamo

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
NODES = ("--nodes", "1", "--n", "1", "--durability", "memory")
COMMANDS = {
    "peers": [f"{BENCHMARKS}/peers.py", "--smoke", "--only", "get_x1_vs", "--only", "embedded", "--only", "set_many"],
    "figures": [f"{BENCHMARKS}/figures.py", "--smoke"],
    "overload": [f"{BENCHMARKS}/overload.py", "--smoke", "--pipeline", "4"],
    "bench": ["-Pm", "dynamo", "bench", *NODES, "--rate", "200", "--seconds", "0.5", "--warm-up", "0", "--keys", "100", "--connections", "4", "--runs", "1"],
}
FIGURES = {"get_many_vs_gets", "tail_p999_vs_p50", "reads_one_stopped_p99", "idle_connection_bytes", "ring_assign_s", "ring_fullest", "ring_moves", "get_1k"}
OVERLOAD = {"goodput_x10_pipelined", "goodput_x10_connections", "tick_late_p99_ms", "tick_late_max_ms", "beside_hot_key", "beside_slow_readers"}
TIMEOUT_S = 90.0  # of a machine that is busy with all the other tests; alone it takes a tenth

pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks are not beside these tests")


class Running:
    """The commands, all at once: they mostly wait."""

    def __init__(self) -> None:
        search_path = os.pathsep.join(filter(None, (str(Path(dynamo.__file__).parent.parent), os.environ.get("PYTHONPATH"))))
        self._processes = {
            name: subprocess.Popen([sys.executable, *command, "-o", "json"], env=os.environ | {"PYTHONPATH": search_path}, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for name, command in COMMANDS.items()
        }  # fmt: skip

    def printed(self, name: str) -> tuple[Any, str]:
        """The JSON it printed in the end, and what it said meanwhile."""
        process = self._processes[name]
        out, said = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, said
        return json.loads(out), said

    def end(self) -> None:
        """As Ctrl-C would, so that they end what they started."""
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in self._processes.values():
            try:
                process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    running = Running()
    try:
        yield running
    finally:
        running.end()


def test_dynamo_bench_at_a_constant_rate(running: Running) -> None:
    found, _ = running.printed("bench")
    (run,) = found["runs"]
    assert run["operations"] == 100 and run["errors"] == {}


def test_the_comparison_with_peers(running: Running) -> None:
    found, said = running.printed("peers")
    expected = {"embedded_get_vs_lmdb", "set_many_vs_putmulti"}
    expected |= {f"get_x1_vs_{name.lower()}" for name in ("Redis", "memcached", "etcd") if f"SKIPPED against {name}" not in said}
    _sound(found["rows"], expected)


def test_the_figures(running: Running) -> None:
    found, said = running.printed("figures")
    _sound(found["rows"], {name for name in FIGURES if f"SKIPPED {name}" not in said})


def test_more_than_a_cluster_can_do(running: Running) -> None:
    found, said = running.printed("overload")
    _sound(found["rows"], OVERLOAD)
    assert "SKIPPED slow_reader_cut_s" in said and "bar:" not in said


def _sound(rows: list[dict[str, Any]], names: set[str]) -> None:
    assert {row["name"] for row in rows} == names and len(rows) == len(names)
    for row in rows:
        assert set(row) == {"name", "ratio", "low", "high"} and 0 < row["low"] <= row["ratio"] <= row["high"]


@pytest.mark.parametrize(("name", "kernel"), [("record merge", "record"), ("frame decode, 64 mixed", "frame")])
def test_the_compiled_core_is_the_faster_one(name: str, kernel: str, cores: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processor time, in turns: what others take of the machine meets both. The ratios are 5 and more; 1 is where compiling would be for nothing."""
    getattr(cores[0], kernel)  # skips where it was not built
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    ratios = import_module("ratios")
    (case,) = [case for case in ratios.CASES if case.name == name]
    times = ratios.contest(case, 9)
    assert median(pure / compiled for pure, compiled in zip(times["pure"], times["compiled"], strict=True)) > 1
