"""How this store compares with what its users would pick instead, and with itself: ratios, taken in pairs that alternate.

    python benchmarks/peers.py [--pairs 5] [--seconds 3] [--only NAME]...       --quick: in about a minute; --smoke: only whether it runs
    python benchmarks/peers.py -o json                                          {"rows": [{"name", "ratio", "low", "high"}, ...]}

Against Redis: one Redis without persistence and three nodes with N=3 R=W=2, `relaxed`; 50 connections, 13-byte keys out of 100,000, values of 100 bytes;
the load generator of `dynamo bench` drives both, in turns, and the server whose turn it is not lies idle. Ratios of throughput: more is better for us.
`embedded_get_vs_lmdb` (the value of a get, to a transaction for each get of py-lmdb) and `set_many_vs_putmulti` are ratios of time to py-lmdb
without anything around it: less is better. A ratio is the median of
its pairs, `low` and `high` are the least and the greatest. What is not installed is left out, and said.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from time import monotonic, perf_counter, sleep

from contests import Row, Side, Size, Wanted, cluster, command_line, contest, measure_all, skipped
from embedded import VALUE, beside_lmdb, row_bytes

import dynamo
from dynamo.bench.workloads import key_of

SERVER_START_S = 10.0
BATCH = 1000  # keys that are set at once


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


def against_redis(size: Size, scratch: Path, wanted: Wanted) -> Iterator[Row]:
    """The hot path, through sockets."""
    names = {f"{verb}_x{pipeline}_vs_redis": (verb, pipeline) for verb in ("get", "put") for pipeline in (1, 16)}
    names = {name: what for name, what in names.items() if wanted(name)}
    if not names:
        return
    if shutil.which("redis-server") is None:
        skipped("against Redis", "redis-server is not installed; ci/deps.sh says what Debian has")
        return
    with redis_server(scratch) as redis, cluster(scratch, "relaxed") as nodes:
        ours, theirs = Side(nodes.addresses, size), Side((redis,), size, "redis")
        for name, what in names.items():
            row = contest(name, ours.measure(*what), theirs.measure(*what), size.pairs, "operations a second")
            yield replace(row, detail=f"{row.detail}; generator at most {ours.generator_cpu:.2f} and {theirs.generator_cpu:.2f} of a processor each")
            ours.generator_cpu = theirs.generator_cpu = 0.0


def against_itself(size: Size, scratch: Path, wanted: Wanted) -> Iterator[Row]:
    """What durability costs, and what the compiled core is worth."""
    if wanted("put_synced_vs_relaxed_x16"):
        with cluster(scratch, "synced") as synced, cluster(scratch, "relaxed") as relaxed:
            ours, theirs = Side(synced.addresses, size).measure("put", 16), Side(relaxed.addresses, size).measure("put", 16)
            yield contest("put_synced_vs_relaxed_x16", ours, theirs, size.pairs, "operations a second")
    if wanted("compiled_vs_pure_x16"):
        with cluster(scratch, "memory") as compiled, cluster(scratch, "memory", pure=True) as pure:
            ours, theirs = Side(compiled.addresses, size).measure("A", 16), Side(pure.addresses, size).measure("A", 16)
            yield contest("compiled_vs_pure_x16", ours, theirs, size.pairs, "operations a second")


def embedded(size: Size, scratch: Path, wanted: Wanted) -> Iterator[Row]:
    """The embedded store beside bare py-lmdb on the same keys."""
    if not (wanted("embedded_get_vs_lmdb") or wanted("set_many_vs_putmulti")):
        return
    row = bytes(row_bytes(scratch / "one"))
    with beside_lmdb(scratch, size.keys) as both:
        if wanted("embedded_get_vs_lmdb"):
            yield contest("embedded_get_vs_lmdb", lambda: both.store_gets(size.calls), lambda: both.bare_gets(size.calls), size.pairs, "us a get")
        random = Random(1)
        batches = [sorted(map(key_of, random.sample(range(size.keys), BATCH))) for _ in range(size.calls // BATCH)]

        def store_sets() -> float:
            began = perf_counter()
            for batch in batches:
                assert all(isinstance(outcome, dynamo.Context) for outcome in both.store.set_many(dict.fromkeys(batch, VALUE)).values())
            return (perf_counter() - began) / len(batches) * 1e6

        def bare_sets() -> float:
            began = perf_counter()
            for batch in batches:
                with both.bare.begin(write=True, db=both.table) as writing:
                    writing.cursor().putmulti([(key, row) for key in batch])
            return (perf_counter() - began) / len(batches) * 1e6

        if wanted("set_many_vs_putmulti"):
            yield contest("set_many_vs_putmulti", store_sets, bare_sets, size.pairs, "us for 1,000")


if __name__ == "__main__":
    measure_all((against_redis, against_itself, embedded), command_line(__doc__).parse_args())
