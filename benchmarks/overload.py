"""What a cluster does with more than it can: three nodes, real processes, N=3 R=W=2, the load generator of `dynamo bench` in closed loops.

    python benchmarks/overload.py [--pairs 3] [--seconds 8]        some ten minutes; --quick in three
    python benchmarks/overload.py -o json                          {"rows": [{"name", "ratio", "low", "high"}, ...]}

`goodput_x10_*`: requests that succeed a second with ten times the requests in flight of the peak, to that peak, in pairs that alternate: with as many
connections that ask for ten times as much, and with ten times as many. The peak is looked for first, among a few numbers in flight. A slot that is refused
pauses as a client does. `tick_late_p99_ms`, `tick_late_max_ms`: how late the nodes' timers were in all of this, the cluster's start included; `ratio` is the
worst node, `low` and `high` the best and the worst. `beside_slow_readers`: what others get beside two connections a node that ask and never read, to what
they get without; `slow_reader_cut_s`: how long until these are cut off, `low` the one that asks for what is not let in by a window, `high` all of them.
`beside_hot_key`: what is served of keys that are met alike beside as much load on one key, to the same beside as much load on other keys.

Bars are among the figures; exit code 1 on a miss. A row is the median of its pairs, `low` and `high` are the least and the greatest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from time import monotonic, sleep

import dynamo
from dynamo._core import CORE
from dynamo.bench import Plan, run
from dynamo.bench.plan import Measured
from dynamo.config import split_address
from dynamo.model import messages as m
from dynamo.testing.cluster import ServedCluster
from dynamo.wire.frames import encode
from dynamo.wire.hello import client_hello

KEYS = 20_000
CONNECTIONS = 50
PIPELINES = (1, 4, 16)  # among which the peak is looked for
PROCESSES = 2  # of the load generator
GOODPUT, BESIDE, LATE_MS, CUT_S = 0.7, 0.7, 50.0, 90.0  # bars
WARM_UP_S = 1.5


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    ratio: float
    low: float
    high: float
    met: bool
    detail: str


class Bench:
    """A cluster with its keys written, and loads on it."""

    def __init__(self, addresses: list[str], pairs: int, seconds: float, pipelines: tuple[int, ...]) -> None:
        self.addresses = addresses
        self.pipelines = pipelines
        self.pairs = pairs
        self._plan = Plan(tuple(addresses), "A", "uniform", keys=KEYS, seconds=seconds, warm_up_s=WARM_UP_S, processes=PROCESSES, load=False)
        run(replace(self._plan, pipeline=4, seconds=0.1, warm_up_s=0.0, load=True))

    def load(self, connections: int, pipeline: int, **changes: object) -> Measured:
        (measured,) = run(replace(self._plan, connections=connections, pipeline=pipeline, seed=int(monotonic() * 1000), **changes))  # type: ignore[arg-type]
        return measured

    def pairs_of(self, name: str, first: Callable[[], float], second: Callable[[], float], bar: float, unit: str) -> Row:
        """Measure in turns; the side that goes first alternates."""
        measured = []
        for at in range(self.pairs):
            if at % 2:
                other = second()
                measured.append((first(), other))
            else:
                mine = first()
                measured.append((mine, second()))
        ratios = [mine / other for mine, other in measured]
        detail = f"{median(mine for mine, _ in measured):,.0f} / {median(other for _, other in measured):,.0f} {unit}; bar {bar:g}"
        return Row(name, round(median(ratios), 3), round(min(ratios), 3), round(max(ratios), 3), median(ratios) >= bar, detail)

    def stats(self, name: str) -> list[int]:
        """A count of each node."""
        found = []
        for address in self.addresses:
            with dynamo.Client(address) as client:
                found.append(client.stats()[name])
        return found


def goodput(bench: Bench) -> Iterator[Row]:
    peaks = {pipeline: bench.load(CONNECTIONS, pipeline).throughput for pipeline in bench.pipelines}
    pipeline = max(peaks, key=peaks.__getitem__)
    refused: list[str] = []

    def overloaded(connections: int, each: int) -> float:
        measured = bench.load(connections, each)
        quantiles = [latencies.quantile(0.99) / 1e6 for latencies in measured.latencies().values()]
        refused.append(f"{sum(measured.errors.values()) / max(1, measured.operations):.2f} refusals a success, p99 {max(quantiles):,.0f} ms")
        return measured.throughput

    for name, connections, each in (("pipelined", CONNECTIONS, 10 * pipeline), ("connections", 10 * CONNECTIONS, pipeline)):
        row = bench.pairs_of(
            f"goodput_x10_{name}", lambda c=connections, e=each: overloaded(c, e), lambda: bench.load(CONNECTIONS, pipeline).throughput,  # type: ignore[misc]
            GOODPUT, f"a second at {10 * CONNECTIONS * pipeline} / {CONNECTIONS * pipeline} in flight",
        )  # fmt: skip
        yield replace(row, detail=f"{row.detail}; {refused[-1]}")


def timers(bench: Bench) -> Iterator[Row]:
    for which in ("p99", "max"):
        late = sorted(us / 1000 for us in bench.stats(f"tick_late_us_{which}"))
        met = which == "max" or late[-1] <= LATE_MS
        detail = f"{sum(bench.stats('ticks')):,} ticks" + (f"; bar {LATE_MS:g}" if which == "p99" else "")
        yield Row(f"tick_late_{which}_ms", late[-1], late[0], late[-1], met, detail)


def slow_readers(bench: Bench) -> Iterator[Row]:
    value = os.urandom(500_000)
    with dynamo.Client(bench.addresses) as client:
        client.set("large", value)
    get = encode((m.GET, 1, b"default", b"large", 0, 0, 5000))
    status = encode((m.STATS, 1))

    def beside() -> float:
        with never_reading(bench.addresses, [get, status]):
            return bench.load(CONNECTIONS, 4).throughput

    yield bench.pairs_of("beside_slow_readers", beside, lambda: bench.load(CONNECTIONS, 4).throughput, BESIDE, "a second beside them / without")
    with never_reading(bench.addresses, [get, status]) as readers:
        began, ended = monotonic(), [0.0] * len(readers)
        while not all(ended) and monotonic() - began < 1.5 * CUT_S:
            sleep(0.2)
            for at, thread in enumerate(readers):
                ended[at] = ended[at] or (0.0 if thread.is_alive() else monotonic() - began)
        low, high = min(filter(None, ended), default=float("nan")), max(ended)
        yield Row("slow_reader_cut_s", round(high, 1), round(low, 1), round(high, 1), all(ended) and high <= CUT_S, f"{len(readers)} readers; bar {CUT_S:g}")


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


def hot_key(bench: Bench) -> Iterator[Row]:
    def beside(keys: int) -> float:
        """What is served of all keys alike, while as many connections as again meet so many keys."""
        found: list[float] = []
        other = threading.Thread(target=lambda: bench.load(CONNECTIONS, 4, keys=keys))
        other.start()
        found.append(bench.load(CONNECTIONS, 4).throughput)
        other.join()
        return found[0]

    yield bench.pairs_of("beside_hot_key", lambda: beside(1), lambda: beside(KEYS), BESIDE, "a second beside one key / beside all")


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pairs", type=int, default=3, choices=range(1, 1000), metavar="N")
    options.add_argument("--seconds", type=float, default=8.0, help="of one turn")
    options.add_argument("--pipeline", type=int, help="requests in flight on each connection at the peak, instead of looking for it")
    options.add_argument("--quick", action="store_true", help="two pairs of short turns")
    options.add_argument("--only", action="append", default=[], choices=("goodput", "timers", "slow_readers", "hot_key"))
    options.add_argument("--durability", choices=["synced", "relaxed", "memory"], default="relaxed")
    options.add_argument("-o", "--output", choices=("table", "json"), default="table")
    asked = options.parse_args()
    pairs, seconds = (2, 2.0) if asked.quick else (asked.pairs, asked.seconds)
    print(f"{CORE} core, Python {platform.python_version()}, {os.cpu_count()} processors, {platform.platform()}", file=sys.stderr)
    talk = sys.stderr if asked.output == "json" else sys.stdout
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="dynamo-overload-") as scratch, ServedCluster(scratch, 3, ("--durability", asked.durability)) as cluster:
        bench = Bench(cluster.addresses, pairs, seconds, (asked.pipeline,) if asked.pipeline else PIPELINES)
        for section in (goodput, timers, hot_key, slow_readers):
            if asked.only and section.__name__ not in asked.only:
                continue
            for row in section(bench):
                rows.append(row)
                verdict = f"load={os.getloadavg()[0]:.1f} {'pass' if row.met else 'MISS'}"
                print(f"{row.name:24} {row.ratio:8.3f}  ({row.low:.3f}-{row.high:.3f})  {row.detail}  {verdict}", file=talk, flush=True)
    if asked.output == "json":
        print(json.dumps({"rows": [{"name": row.name, "ratio": row.ratio, "low": row.low, "high": row.high} for row in rows]}))
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
