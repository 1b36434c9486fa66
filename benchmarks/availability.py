"""What clients notice of a node that dies, and how soon it has again what it missed. Three nodes, real processes, N=3 R=W=2.

    python benchmarks/availability.py kills  [--requests 20000]           requests answered while nodes are killed and restarted in turn
    python benchmarks/availability.py hints  [--outage 10 --rate 200]     how long hints take to drain after an outage under writes
    python benchmarks/availability.py refill [--keys 20000 --rate 200]    a wiped replica: seconds to refill it, and what others notice
    python benchmarks/availability.py all --full                          all three at the size of the bars below

One line a figure, `name=value ...`, with `pass` or `MISS` against its bar. Exit code 1 on a miss.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from time import monotonic, sleep

import dynamo
from dynamo._core import CORE
from dynamo.model.group import Group
from dynamo.storage.lmdb import LmdbEngine
from dynamo.testing.cluster import ServedCluster

FULL = {"requests": 200_000, "outage": 60.0, "rate": 200.0, "keys": 100_000}
DRAIN_S, REFILL_S, SLOWDOWN = 60.0, 60.0, 3.0
TIMEOUT_S = 300.0
VALUE = b"v" * 100

Operation = Callable[[dynamo.Client, int], object]


class Clients:
    """Threads with a client each, doing operation 0, 1, 2, ...: `rate` of them a second on a schedule, or each as soon as the last is done. Of an
    operation that starts late, because all threads are held up, the delay counts as well: who asks does not wait for others to be answered.
    `shared`: one client for all threads, so that they learn of a silent node from each other, as those of one program do."""

    def __init__(
        self, addresses: list[str], operation: Operation, *, count: int | None = None, rate: float | None = None, threads: int = 8, shared: bool = False
    ) -> None:
        self._addresses = addresses
        self._shared = dynamo.Client(addresses) if shared else None
        self._operation = operation
        self._count = count
        self._rate = rate
        self._next = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self.samples: list[tuple[float, float]] = []  # (when it should have begun, seconds it took)
        self.errors: list[dynamo.DynamoError] = []
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(threads)]

    def __enter__(self) -> Clients:
        self._began = monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.join()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()
        if self._shared is not None:
            self._shared.close()

    @property
    def running(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def _take(self) -> int | None:
        with self._lock:
            if self._stop.is_set() or self._next == self._count:
                return None
            self._next += 1
            return self._next - 1

    def _work(self, thread: int) -> None:
        turn = thread % len(self._addresses)
        with nullcontext(self._shared) if self._shared is not None else dynamo.Client(self._addresses[turn:] + self._addresses[:turn]) as client:
            while (number := self._take()) is not None:
                due = monotonic() if self._rate is None else self._began + number / self._rate
                if self._stop.wait(max(0.0, due - monotonic())):
                    return
                try:
                    self._operation(client, number)
                except dynamo.DynamoError as error:
                    self.errors.append(error)
                self.samples.append((due, monotonic() - due))

    def latencies_ms(self, since: float, until: float = float("inf")) -> dict[str, float]:
        """Quantiles of what was to begin in that time."""
        found = sorted(took for due, took in self.samples if since <= due < until)
        assert found, "nothing was measured"
        return {name: 1000 * found[min(len(found) - 1, int(share * len(found)))] for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["kills", "hints", "refill", "all"])
    parser.add_argument("--full", action="store_true", help="the size of the bars")
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--outage", type=float, default=10.0, help="seconds")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second beside an outage or a refill")
    parser.add_argument("--keys", type=int, default=20_000)
    parser.add_argument("--durability", choices=["synced", "relaxed", "buffered"], default="synced")
    asked = parser.parse_args()
    if asked.full:
        vars(asked).update(FULL)
    print(f"core={CORE} python={platform.python_version()} cpus={os.cpu_count()} load={os.getloadavg()[0]:.1f} durability={asked.durability}", flush=True)
    parts = {"kills": kills, "hints": hints, "refill": refill}
    met = [part(asked) for name, part in parts.items() if asked.what in (name, "all")]
    return 0 if all(met) else 1


def kills(asked: argparse.Namespace) -> bool:
    """Closed loop of eight clients, half gets, half sets; as soon as a killed node is back for a second, the next one is killed."""

    def operation(client: dynamo.Client, number: int) -> object:
        key = f"key-{random.randrange(10_000)}"
        return client.get(key) if number % 2 else client.set(key, VALUE)

    killed = 0
    with served(asked) as cluster, Clients(cluster.addresses, operation, count=asked.requests) as clients:
        began = monotonic()
        while clients.running:
            victim = cluster.nodes[killed % 3]
            victim.kill()
            killed += 1
            sleep(1.0)
            victim.start()
            sleep(1.0)
        clients.join()
        took = monotonic() - began
    failed = len(clients.errors)
    for error in clients.errors[:5]:
        print(f"  {error!r}")
    return told("kills", failed == 0, requests=asked.requests, answered=asked.requests - failed, failed=failed, kills=killed, seconds=took,
                a_second=asked.requests / took, **in_ms(clients.latencies_ms(began)))  # fmt: skip


def hints(asked: argparse.Namespace) -> bool:
    """A node is killed, new keys are written, it is started again: how long until nothing is owed to it, while the writes go on."""
    with served(asked) as cluster:
        victim = cluster.nodes[2]
        victim.kill()
        with Clients(cluster.addresses, lambda client, number: client.set(f"key-{number}", VALUE), rate=asked.rate) as clients:
            sleep(asked.outage)
            owed = sum(owes(cluster))
            victim.start()
            back = monotonic()
            wait_until(lambda: sum(owes(cluster)) == 0)
            drained = monotonic() - back
        rows = stats(victim.address)["rows"]
    return told("hints", drained <= DRAIN_S and not clients.errors, outage_s=asked.outage, writes_a_second=asked.rate, hints=owed, drained_s=drained,
                rows_at_it=rows, failed=len(clients.errors), bar_s=DRAIN_S)  # fmt: skip


def refill(asked: argparse.Namespace) -> bool:
    """All rows are taken from one node's disk; gets and sets of random keys go on at all nodes before, meanwhile and until it has them all again."""

    def operation(client: dynamo.Client, number: int) -> object:
        key = f"key-{random.randrange(asked.keys)}"
        return client.get(key) if number % 2 else client.set(key, VALUE)

    with served(asked) as cluster:
        with dynamo.Client(cluster.addresses, timeout=30) as client:
            for first in range(0, asked.keys, 500):
                outcomes = client.set_many({f"key-{number}": VALUE for number in range(first, min(first + 500, asked.keys))})
                assert not [outcome for outcome in outcomes.values() if isinstance(outcome, dynamo.DynamoError)]
        victim = cluster.nodes[2]
        wait_until(lambda: all(stats(node.address)["rows"] == asked.keys for node in cluster.nodes) and sum(owes(cluster)) == 0)
        with Clients(cluster.addresses, operation, rate=asked.rate) as clients:
            sleep(3.0)
            quiet_from = monotonic()
            sleep(20.0)
            quiet = clients.latencies_ms(quiet_from)
            victim.kill()
            wipe(victim.data)
            victim.start()
            back = monotonic()
            wait_until(lambda: stats(victim.address)["rows"] == asked.keys)
            took = monotonic() - back
        busy = clients.latencies_ms(back, back + took)
    slower = busy["p99"] / quiet["p99"]
    return told("refill", took <= REFILL_S and slower <= SLOWDOWN and not clients.errors, keys=asked.keys, refilled_s=took, bar_s=REFILL_S,
                requests_a_second=asked.rate, failed=len(clients.errors), **in_ms(quiet, "_without"), **in_ms(busy, "_during"), p99_ratio=slower,
                bar_ratio=SLOWDOWN)  # fmt: skip


# --- what they need ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def served(asked: argparse.Namespace) -> Iterator[ServedCluster]:
    with tempfile.TemporaryDirectory() as directory, ServedCluster(directory, flags=("--durability", asked.durability)) as cluster:
        cluster.check_core(CORE)
        yield cluster


def stats(address: str) -> dict[str, int]:
    with dynamo.Client(address) as client:
        return client.stats()


def owes(cluster: ServedCluster) -> list[int]:
    """Hints by node."""
    return [stats(node.address)["hints"] for node in cluster.nodes if node.running]


def wait_until(condition: Callable[[], bool]) -> None:
    end = monotonic() + TIMEOUT_S
    while not condition():
        if monotonic() > end:
            raise SystemExit(f"gave up after {TIMEOUT_S:g} s")
        sleep(0.1)


def wipe(data: Path) -> None:
    """Take all rows out of a stopped node's directory; it keeps its identity."""
    engine = LmdbEngine(str(data), synced=True)
    engine.commit(Group(1, dict.fromkeys((key for key, _ in engine.scan("objects", b"", None, 10_000_000)), None), synced=True))
    engine.close()


def in_ms(quantiles: dict[str, float], suffix: str = "") -> dict[str, float]:
    return {f"{name}_ms{suffix}": value for name, value in quantiles.items()}


def told(name: str, met: bool, **figures: float) -> bool:
    """Print a figure's line."""
    words = [f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in figures.items()]
    print(name, *words, f"load={os.getloadavg()[0]:.1f}", "pass" if met else "MISS", flush=True)
    return met


if __name__ == "__main__":
    sys.exit(main())
