"""What the tables of ratios and figures share (`peers.py`, `figures.py`, `write_buffer.py`, `overload.py`): contests in turns, servers and the
load on them, a row of a table, and the command line.

A row is the median of its rounds, with the least and the greatest beside it. Nothing here knows what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from dynamo._core import CORE
from dynamo.bench import Measured, Plan, run
from dynamo.bench.protocols import PEERS
from dynamo.testing.cluster import ServedCluster


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    pairs: int = 5  # rounds
    seconds: float = 3.0  # of one turn
    keys: int = 100_000
    processes: int = 2  # of the load generator
    calls: int = 20_000  # of a turn that counts calls, not seconds
    connections: int = 50  # of the load generator
    idle_connections: int = 5_000
    reads_a_second: float = 300.0  # beside a stopped node; few enough that the two that are left are not what is slow
    settled_s: float = 1.0  # after a change, for what it held up to be answered
    patience_s: float = 135.0  # with clients that are to be cut off; 0: they are not waited for
    ring_nodes: int = 1_000
    ring_partitions: int = 65_536


QUICK = Size(pairs=2, seconds=0.7, keys=10_000)
SMOKE = Size(pairs=1, seconds=0.25, keys=1_000, processes=1, calls=1_000, connections=4, idle_connections=100, reads_a_second=50.0, settled_s=0.1,
             patience_s=0.0, ring_nodes=20, ring_partitions=1_024)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the table. `detail`: what the figure was made of."""

    name: str
    ratio: float
    low: float
    high: float
    detail: str


class Bar(NamedTuple):
    """What a figure is held against."""

    limit: float
    least: bool = False  # whether more is better

    def met(self, row: Row) -> bool:
        """Whether the median is no worse."""
        return row.ratio >= self.limit if self.least else row.ratio <= self.limit

    def said_of(self, row: Row) -> str:
        """The bar in words, and whether the median met it."""
        return f"bar: at {'least' if self.least else 'most'} {number(self.limit)}, {'met' if self.met(row) else 'MISSED'}"


Wanted = Callable[[str], bool]
Section = Callable[[Size, Path, Wanted], Iterator[Row]]


def row_of(name: str, values: Sequence[float], detail: str) -> Row:
    """The row of a figure that was measured once a round."""
    return Row(name, round(median(values), 3), round(min(values), 3), round(max(values), 3), detail)


def contest(name: str, ours: Callable[[], float], theirs: Callable[[], float], pairs: int, unit: str) -> Row:
    """Measure in turns; the side that goes first alternates."""
    measured: list[tuple[float, float]] = []
    for at in range(pairs):
        if at % 2:
            second = theirs()
            measured.append((ours(), second))
        else:
            first = ours()
            measured.append((first, theirs()))
    detail = f"{median(a for a, _ in measured):,.4g} / {median(b for _, b in measured):,.4g} {unit}"
    return row_of(name, [a / b for a, b in measured], detail)


@contextmanager
def cluster(scratch: Path, durability: str, *, pure: bool = False) -> Iterator[ServedCluster]:
    """Three nodes with N=3 R=W=2, which end with the block."""
    directory = scratch / f"{durability}-{'pure' if pure else 'compiled'}"
    served = ServedCluster(directory, 3, ("--durability", durability))
    before = os.environ.get("DYNAMO_PURE")
    if pure:
        os.environ["DYNAMO_PURE"] = "1"
    try:  # while the nodes start: the load generator, which is started later, is the same for all
        served.start()
    except BaseException:
        served.stop()
        raise
    finally:
        if pure:
            os.environ.pop("DYNAMO_PURE", None)
        if before is not None:
            os.environ["DYNAMO_PURE"] = before
    try:
        served.check_core("pure" if pure else CORE)
        yield served
    finally:
        served.stop()


class Side:
    """One side of a contest: servers under a load. The keys are written before the first turn. `core`: what our nodes must run on. `generator_cpu`: the
    most that a process of the load generator took of a processor; near 1, it may be what was measured."""

    def __init__(self, addresses: Sequence[str], size: Size, protocol: str = "dynamo", core: str = CORE) -> None:
        self._core = core
        self._base = Plan(tuple(addresses), distribution="uniform", protocol=protocol, connections=size.connections, processes=size.processes,
                          keys=size.keys, seconds=size.seconds, warm_up_s=size.seconds / 4, load=False)  # fmt: skip
        self.generator_cpu = 0.0
        pipeline = 1 if protocol in PEERS and not PEERS[protocol].PIPELINED else 16
        run(replace(self._base, workload="get", pipeline=pipeline, load=True, seconds=0.1), nodes_core=core)

    def turn(self, workload: str, pipeline: int, *, rate: float = 0.0, times: int = 1) -> Measured:
        """Load the servers for `times` turns in one: as much as they take or, with a `rate`, so many operations a second. Raises RuntimeError if any
        failed, or none was answered: there is no ratio to nothing."""
        measured = self.load(workload, pipeline, rate=rate, seconds=times * self._base.seconds)
        if measured.errors or not measured.operations:
            raise RuntimeError(f"operations failed: {measured.errors or 'none was answered'}")
        return measured

    def load(self, workload: str, pipeline: int, **changes: Any) -> Measured:
        """Load the servers for a turn, whatever comes of it. `changes`: of the plan, see `dynamo.bench.Plan`."""
        (measured,) = run(replace(self._base, workload=workload, pipeline=pipeline, **changes), nodes_core=self._core)
        self.generator_cpu = max(self.generator_cpu, measured.cpu_s / measured.seconds / self._base.processes)
        return measured

    def measure(self, workload: str, pipeline: int) -> Callable[[], float]:
        """Measures operations a second."""
        return lambda: self.turn(workload, pipeline).throughput


def number(value: float) -> str:
    """A figure as people read it."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3f}" if value < 100 else f"{value:.1f}"


def skipped(name: str, reason: str) -> None:
    """Say why a row is missing."""
    print(f"SKIPPED {name}: {reason}", file=sys.stderr, flush=True)


def command_line(about: str) -> argparse.ArgumentParser:
    """The options that all tables have."""
    options = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pairs", type=int, default=Size.pairs, choices=range(1, 1000), metavar="N", help="rounds of each row")
    options.add_argument("--seconds", type=float, default=Size.seconds, help="of one turn")
    options.add_argument("--quick", action="store_true", help="few and short turns, and a tenth of the keys")
    options.add_argument("--smoke", action="store_true", help="as little as shows that it runs; what it prints means nothing")
    options.add_argument("--only", action="append", default=[], metavar="NAME", help="rows whose name begins so")
    options.add_argument("-o", "--output", choices=("table", "json"), default="table")
    return options


def measure_all(sections: Sequence[Section], asked: argparse.Namespace, bars: Mapping[str, Bar] | None = None, *, quick: Size = QUICK) -> list[Row]:
    """Measure the rows that were asked for and print them, each as soon as it is there. Returns them."""
    size = SMOKE if asked.smoke else quick if asked.quick else Size(asked.pairs, asked.seconds)
    rows: list[Row] = []
    print(f"{CORE} core, Python {platform.python_version()}, {os.cpu_count()} processors, {platform.platform()}", file=sys.stderr)
    for section in sections:
        with tempfile.TemporaryDirectory(prefix="dynamo-benchmark-") as scratch:
            for row in section(size, Path(scratch), lambda name: not asked.only or any(name.startswith(only) for only in asked.only)):
                rows.append(row)
                bar = f"; {bars[row.name].said_of(row)}" if bars and row.name in bars else ""
                talk = sys.stderr if asked.output == "json" else sys.stdout
                print(f"{row.name:28} {number(row.ratio):>9}  ({number(row.low)}-{number(row.high)})  {row.detail}{bar}", file=talk, flush=True)
    if not rows:
        sys.exit(f"nothing was measured: no row begins with {' or '.join(asked.only)}, or what it needs is not here")
    if asked.output == "json":
        print(json.dumps({"rows": [{"name": row.name, "ratio": row.ratio, "low": row.low, "high": row.high} for row in rows]}))
    return rows
