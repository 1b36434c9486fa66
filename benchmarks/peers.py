"""How this store compares with what its users would pick instead, and with itself: ratios, taken in pairs that alternate.

    python benchmarks/peers.py [--pairs 5] [--seconds 3] [--only NAME]...       --quick: in about a minute
    python benchmarks/peers.py -o json                                          {"rows": [{"name", "ratio", "low", "high"}, ...]}

Against Redis: one Redis without persistence and three nodes with N=3 R=W=2, `relaxed`; 50 connections, 13-byte keys out of 100,000, values of 100 bytes;
the load generator of `dynamo bench` drives both, in turns, and the server whose turn it is not lies idle. Ratios of throughput: more is better for us.
`embedded_get_vs_lmdb` (the value of a get, to a transaction for each get of py-lmdb) and `set_many_vs_putmulti` are ratios of time to py-lmdb
without anything around it: less is better. A ratio is the median of
its pairs, `low` and `high` are the least and the greatest. What is not installed is left out, and said.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import median
from time import monotonic, perf_counter, sleep

import lmdb

import dynamo
from dynamo._core import CORE
from dynamo.bench import Plan, run
from dynamo.bench.workloads import key_of
from dynamo.testing.cluster import ServedCluster

KEYS = 100_000
PROCESSES = 2  # of the load generator
SERVER_START_S = 10.0


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    pairs: int
    seconds: float
    keys: int


@dataclass(frozen=True)
class Row:
    """One line of the table. `detail`: the medians of both sides."""

    name: str
    ratio: float
    low: float
    high: float
    detail: str


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
    ratios = [a / b for a, b in measured]
    detail = f"{median(a for a, _ in measured):,.4g} / {median(b for _, b in measured):,.4g} {unit}"
    return Row(name, round(median(ratios), 3), round(min(ratios), 3), round(max(ratios), 3), detail)


@contextmanager
def redis_server(scratch: Path) -> Iterator[str]:
    """A Redis without persistence on a free port. Yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(scratch)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = monotonic() + SERVER_START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if monotonic() > deadline or server.poll() is not None:
                    raise
                sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


@contextmanager
def cluster(scratch: Path, durability: str, *, pure: bool = False) -> Iterator[tuple[str, ...]]:
    """Three nodes. Yields their addresses."""
    directory = scratch / f"{durability}-{'pure' if pure else 'compiled'}"
    served = ServedCluster(directory, 3, ("--durability", durability))
    before = os.environ.pop("DYNAMO_PURE", None)
    if pure:
        os.environ["DYNAMO_PURE"] = "1"
    try:  # while the nodes start: the load generator, which is started later, is the same for all
        served.start()
    except BaseException:
        served.stop()
        raise
    finally:
        os.environ.pop("DYNAMO_PURE", None)
        if before is not None:
            os.environ["DYNAMO_PURE"] = before
    with ExitStack() as stack:
        stack.callback(served.stop)
        yield tuple(served.addresses)


class Side:
    """One side of a contest: servers under a load. The keys are written before the first turn. `generator_cpu`: the most that a process of the
    load generator took of a processor; near 1, it may be what was measured."""

    def __init__(self, addresses: tuple[str, ...], size: Size, protocol: str = "dynamo") -> None:
        self._base = Plan(addresses, protocol=protocol, keys=size.keys, seconds=size.seconds, warm_up_s=size.seconds / 4, load=False)
        self.generator_cpu = 0.0
        run(self._plan("get", 16, load=True, seconds=0.1))

    def _plan(self, workload: str, pipeline: int, load: bool = False, seconds: float = 0.0) -> Plan:
        base = self._base
        return Plan(base.addresses, workload, "uniform", base.protocol, pipeline=pipeline, processes=PROCESSES, keys=base.keys, seconds=seconds or base.seconds,
                    warm_up_s=base.warm_up_s, load=load)  # fmt: skip

    def measure(self, workload: str, pipeline: int) -> Callable[[], float]:
        """Measures operations a second. Raises RuntimeError if any failed."""

        def turn() -> float:
            (measured,) = run(self._plan(workload, pipeline))
            if measured.errors:
                raise RuntimeError(f"operations failed: {measured.errors}")
            self.generator_cpu = max(self.generator_cpu, measured.cpu_s / measured.seconds / PROCESSES)
            return measured.throughput

        return turn


def against_redis(size: Size, scratch: Path, wanted: Callable[[str], bool]) -> Iterator[Row]:
    """The hot path, through sockets."""
    names = {f"{verb}_x{pipeline}_vs_redis": (verb, pipeline) for verb in ("get", "put") for pipeline in (1, 16)}
    names = {name: what for name, what in names.items() if wanted(name)}
    if not names:
        return
    if shutil.which("redis-server") is None:
        print("SKIPPED: redis-server is not installed; ci/deps.sh says what Debian has", file=sys.stderr)
        return
    with redis_server(scratch) as redis, cluster(scratch, "relaxed") as nodes:
        ours, theirs = Side(nodes, size), Side((redis,), size, "redis")
        for name, what in names.items():
            row = contest(name, ours.measure(*what), theirs.measure(*what), size.pairs, "operations a second")
            yield replace(row, detail=f"{row.detail}; generator at most {ours.generator_cpu:.2f} and {theirs.generator_cpu:.2f} of a processor each")
            ours.generator_cpu = theirs.generator_cpu = 0.0


def against_itself(size: Size, scratch: Path, wanted: Callable[[str], bool]) -> Iterator[Row]:
    """What durability costs, and what the compiled core is worth."""
    if wanted("put_synced_vs_relaxed_x16"):
        with cluster(scratch, "synced") as synced, cluster(scratch, "relaxed") as relaxed:
            ours, theirs = Side(synced, size).measure("put", 16), Side(relaxed, size).measure("put", 16)
            yield contest("put_synced_vs_relaxed_x16", ours, theirs, size.pairs, "operations a second")
    if wanted("compiled_vs_pure_x16"):
        with cluster(scratch, "memory") as compiled, cluster(scratch, "memory", pure=True) as pure:
            ours, theirs = Side(compiled, size).measure("A", 16), Side(pure, size).measure("A", 16)
            yield contest("compiled_vs_pure_x16", ours, theirs, size.pairs, "operations a second")


def embedded(size: Size, scratch: Path, wanted: Callable[[str], bool]) -> Iterator[Row]:
    """The embedded store beside bare py-lmdb on the same keys."""
    if not (wanted("embedded_get_vs_lmdb") or wanted("set_many_vs_putmulti")):
        return
    random = Random(1)
    value, keys = random.randbytes(100), [key_of(number) for number in range(size.keys)]
    with ExitStack() as stack:
        store = stack.enter_context(dynamo.open(scratch / "store", durability="relaxed"))
        for at in range(0, len(keys), 1000):
            store.set_many(dict.fromkeys(keys[at : at + 1000], value))
        row = bytes(_row_bytes(scratch / "one", value))
        bare = stack.enter_context(lmdb.open(str(scratch / "bare"), map_size=1 << 34, max_dbs=1, sync=False, lib_version=0))
        table = bare.open_db(b"objects")
        with bare.begin(write=True, db=table) as writing:
            writing.cursor().putmulti([(key, value) for key in keys])
        asked = [random.choice(keys) for _ in range(20_000)]

        def store_gets() -> float:
            get, began = store.get, perf_counter()
            for key in asked:
                assert get(key).value is not None
            return (perf_counter() - began) / len(asked) * 1e6

        def bare_gets() -> float:
            began = perf_counter()
            for key in asked:
                with bare.begin(db=table) as reading:
                    assert reading.get(key) is not None
            return (perf_counter() - began) / len(asked) * 1e6

        if wanted("embedded_get_vs_lmdb"):
            yield contest("embedded_get_vs_lmdb", store_gets, bare_gets, size.pairs, "us a get")
        batches = [sorted(random.sample(keys, 1000)) for _ in range(20)]

        def store_sets() -> float:
            began = perf_counter()
            for batch in batches:
                assert all(isinstance(outcome, dynamo.Context) for outcome in store.set_many(dict.fromkeys(batch, value)).values())
            return (perf_counter() - began) / len(batches) * 1e6

        def bare_sets() -> float:
            began = perf_counter()
            for batch in batches:
                with bare.begin(write=True, db=table) as writing:
                    writing.cursor().putmulti([(key, row) for key in batch])
            return (perf_counter() - began) / len(batches) * 1e6

        if wanted("set_many_vs_putmulti"):
            yield contest("set_many_vs_putmulti", store_sets, bare_sets, size.pairs, "us for 1,000")


def _row_bytes(directory: Path, value: bytes) -> int:
    """What the store keeps of such a value: a row has a header, a context and a checksum around it."""
    with dynamo.open(directory) as store:
        store.set(key_of(0), value)
        store.set(key_of(0), value)
    with lmdb.open(str(directory), readonly=True, max_dbs=3, lib_version=0) as environment, environment.begin(db=environment.open_db(b"objects")) as reading:
        ((_, row),) = reading.cursor()
        return len(row)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pairs", type=int, default=5, choices=range(1, 1000), metavar="N")
    options.add_argument("--seconds", type=float, default=3.0, help="of one turn")
    options.add_argument("--quick", action="store_true", help="few and short turns, and a tenth of the keys")
    options.add_argument("--only", action="append", default=[], metavar="NAME", help="rows whose name begins so")
    options.add_argument("-o", "--output", choices=("table", "json"), default="table")
    asked = options.parse_args()
    size = Size(2, 0.7, KEYS // 10) if asked.quick else Size(asked.pairs, asked.seconds, KEYS)
    rows: list[Row] = []
    print(f"{CORE} core, Python {platform.python_version()}, {os.cpu_count()} processors, {platform.platform()}", file=sys.stderr)
    for section in (against_redis, against_itself, embedded):
        with tempfile.TemporaryDirectory(prefix="dynamo-peers-") as scratch:
            for row in section(size, Path(scratch), lambda name: not asked.only or any(name.startswith(only) for only in asked.only)):
                rows.append(row)
                talk = sys.stderr if asked.output == "json" else sys.stdout
                print(f"{row.name:28} {row.ratio:7.3f}  ({row.low:.3f}-{row.high:.3f})  {row.detail}", file=talk, flush=True)
    if not rows:
        sys.exit(f"nothing was measured: no row begins with {' or '.join(asked.only)}, or what it needs is not installed")
    if asked.output == "json":
        print(json.dumps({"rows": [{"name": row.name, "ratio": row.ratio, "low": row.low, "high": row.high} for row in rows]}))


if __name__ == "__main__":
    main()
