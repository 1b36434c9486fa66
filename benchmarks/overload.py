"""What a cluster does with more than it can: three nodes, real processes, N=3 R=W=2, the load generator of `dynamo bench` in closed loops.

    python benchmarks/overload.py [--pairs 3] [--seconds 8] [--only NAME]...    some ten minutes; --quick in three; --smoke: only whether it runs
    python benchmarks/overload.py -o json                                       {"rows": [{"name", "ratio", "low", "high"}, ...]}

`goodput_x10_*`: requests that succeed a second with ten times the requests in flight of the peak, to that peak, in pairs that alternate: with as many
connections that ask for ten times as much, and with ten times as many. The peak is looked for first, among a few numbers in flight. A slot that is refused
pauses as a client does. `tick_late_p99_ms`, `tick_late_max_ms`: how late the nodes' timers were in all of this, the cluster's start included; `ratio` is the
worst node, `low` and `high` the best and the worst. `beside_slow_readers`: what others get beside two connections a node that ask and never read, to what
they get without; `slow_reader_cut_s`: how long until these are cut off, `low` the one that asks for what is not let in by a window, `high` all of them.
`beside_hot_key`: what is served of keys that are met alike beside as much load on one key, to the same beside as much load on other keys.

Bars are among the figures; exit code 1 on a miss, except with `--smoke`. A row is the median of its pairs, `low` and `high` are the least and the greatest.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from contests import QUICK, Bar, Row, Section, Side, Size, Wanted, cluster, command_line, contest, measure_all, skipped

import dynamo
from dynamo.bench import Measured
from dynamo.config import split_address
from dynamo.model import messages as m
from dynamo.wire.frames import encode
from dynamo.wire.hello import client_hello

PAIRS, SECONDS, SECONDS_IF_QUICK = 3, 8.0, 2.0  # shorter turns count the first burst, in which all ask at once, for too much
WARM_UP_S = 1.5
KEYS = 20_000
PIPELINES = (1, 4, 16)  # among which the peak is looked for
BESIDE = 4  # requests in flight on each connection where something else goes on beside it

BARS = {
    "goodput_x10_pipelined": Bar(0.7, least=True),
    "goodput_x10_connections": Bar(0.7, least=True),
    "tick_late_p99_ms": Bar(50.0),
    "beside_hot_key": Bar(0.7, least=True),
    "beside_slow_readers": Bar(0.7, least=True),
    "slow_reader_cut_s": Bar(90.0),
}
ROWS = (*BARS, "tick_late_max_ms")


@dataclass(frozen=True)
class Bench:
    """A cluster with its keys written, and how to load it."""

    addresses: list[str]
    side: Side
    size: Size
    pipelines: tuple[int, ...]
    wanted: Wanted

    def load(self, connections: int, pipeline: int, **changes: Any) -> Measured:
        """Each time other keys: two loads at the same time would otherwise meet them hand in hand."""
        seed = int(monotonic() * 1e6)
        return self.side.load("A", pipeline, connections=connections, warm_up_s=min(WARM_UP_S, self.size.seconds), seed=seed, **changes)

    def served(self) -> float:
        """Operations a second, of the load beside which something else goes on."""
        return self.load(self.size.connections, BESIDE).throughput

    def stats(self, name: str) -> list[int]:
        """A count of each node."""
        found = []
        for address in self.addresses:
            with dynamo.Client(address) as client:
                found.append(client.stats()[name])
        return found


def goodput(bench: Bench) -> Iterator[Row]:
    connections = bench.size.connections
    names = ("goodput_x10_pipelined", "goodput_x10_connections")
    if not any(map(bench.wanted, names)):
        return
    pipeline = bench.pipelines[0]
    if len(bench.pipelines) > 1:
        pipeline = max(bench.pipelines, key=lambda each: bench.load(connections, each).throughput)
    refused: list[str] = []

    def overloaded(connections: int, each: int) -> float:
        measured = bench.load(connections, each)
        quantiles = [latencies.quantile(0.99) / 1e6 for latencies in measured.latencies().values()]
        refused.append(f"{sum(measured.errors.values()) / max(1, measured.operations):.2f} refusals a success, p99 {max(quantiles, default=0):,.0f} ms")
        return measured.throughput

    def peak() -> float:
        return bench.load(connections, pipeline).throughput

    for name, many, each in zip(names, (connections, 10 * connections), (10 * pipeline, pipeline), strict=True):
        if bench.wanted(name):
            unit = f"a second at {10 * connections * pipeline} / {connections * pipeline} in flight"
            row = contest(name, lambda many=many, each=each: overloaded(many, each), peak, bench.size.pairs, unit)
            yield replace(row, detail=f"{row.detail}; {refused[-1]}")


def timers(bench: Bench) -> Iterator[Row]:
    for which in ("p99", "max"):
        if bench.wanted(name := f"tick_late_{which}_ms"):
            late = sorted(us / 1000 for us in bench.stats(f"tick_late_us_{which}"))
            yield Row(name, late[-1], late[0], late[-1], f"{sum(bench.stats('ticks')):,} ticks")


def hot_key(bench: Bench) -> Iterator[Row]:
    def beside(keys: int) -> float:
        """What is served of all keys alike, while as many connections as again meet so many keys."""
        other = threading.Thread(target=lambda: bench.load(bench.size.connections, BESIDE, keys=keys))
        other.start()
        try:
            return bench.served()
        finally:
            other.join()

    if bench.wanted("beside_hot_key"):
        yield contest("beside_hot_key", lambda: beside(1), lambda: beside(bench.size.keys), bench.size.pairs, "a second beside one key / beside all")


def slow_readers(bench: Bench) -> Iterator[Row]:
    if not (bench.wanted("beside_slow_readers") or bench.wanted("slow_reader_cut_s")):
        return
    with dynamo.Client(bench.addresses) as client:
        client.set("large", os.urandom(500_000))
    frames = [encode((m.GET, 1, b"default", b"large", 0, 0, 5000)), encode((m.STATS, 1))]

    def beside() -> float:
        with never_reading(bench.addresses, frames):
            return bench.served()

    if bench.wanted("beside_slow_readers"):
        yield contest("beside_slow_readers", beside, bench.served, bench.size.pairs, "a second beside them / without")
    if bench.wanted("slow_reader_cut_s") and not bench.size.patience_s:
        skipped("slow_reader_cut_s", "a node has patience with them for longer than this is to take")
    elif bench.wanted("slow_reader_cut_s"):
        with never_reading(bench.addresses, frames) as readers:
            began, ended = monotonic(), [0.0] * len(readers)
            while not all(ended) and monotonic() - began < bench.size.patience_s:
                sleep(0.2)
                for at, thread in enumerate(readers):
                    ended[at] = ended[at] or (0.0 if thread.is_alive() else monotonic() - began)
        took = [each or bench.size.patience_s for each in ended]  # those that were never cut off took at least as long
        yield Row("slow_reader_cut_s", round(max(took), 1), round(min(took), 1), round(max(took), 1), f"{len(readers)} readers")


@contextmanager
def never_reading(addresses: list[str], frames: list[bytes]) -> Iterator[list[threading.Thread]]:
    """A connection to each node for each frame, which is sent again and again. Yields the threads that send; each ends with its connection."""
    stop = threading.Event()
    sockets = []

    def work(connection: socket.socket, frame: bytes) -> None:
        connection.settimeout(0.2)
        data = memoryview(frame * 200)
        at = 0
        while not stop.is_set():
            try:
                at = (at + connection.send(data[at:])) % len(data)
            except TimeoutError:
                continue
            except OSError:
                return

    threads = []
    for address in addresses:
        for frame in frames:
            connection = socket.create_connection(split_address(address))
            connection.sendall(encode(client_hello()))
            assert connection.recv(65536)
            sockets.append(connection)
            threads.append(threading.Thread(target=work, args=(connection, frame), daemon=True))
            threads[-1].start()
    try:
        yield threads
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        for connection in sockets:
            connection.close()


def overload(durability: str, pipelines: tuple[int, ...]) -> Section:
    """All of it on one cluster: what timers say is of everything that was done to the nodes before."""

    def measure(size: Size, scratch: Path, wanted: Wanted) -> Iterator[Row]:
        if not any(map(wanted, ROWS)):
            return
        size = replace(size, keys=min(size.keys, KEYS))
        with cluster(scratch, durability) as nodes:
            bench = Bench(nodes.addresses, Side(nodes.addresses, size), size, pipelines, wanted)
            for part in (goodput, timers, hot_key, slow_readers):
                for row in part(bench):
                    yield replace(row, detail=f"{row.detail}; machine load {os.getloadavg()[0]:.1f}")

    return measure


def main() -> int:
    options = command_line(__doc__)
    options.set_defaults(pairs=PAIRS, seconds=SECONDS)
    options.add_argument("--pipeline", type=int, help="requests in flight on each connection at the peak, instead of looking for it")
    options.add_argument("--durability", choices=["synced", "relaxed", "memory"], default="relaxed")
    asked = options.parse_args()
    section = overload(asked.durability, (asked.pipeline,) if asked.pipeline else PIPELINES)
    bars = {} if asked.smoke else BARS
    rows = measure_all([section], asked, bars, quick=replace(QUICK, seconds=SECONDS_IF_QUICK, keys=KEYS))
    return 0 if all(bars[row.name].met(row) for row in rows if row.name in bars) else 1


if __name__ == "__main__":
    sys.exit(main())
