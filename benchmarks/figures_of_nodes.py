"""The rows of `figures.py` that take nodes: what clients see of three of them, and what a client costs one that it does not use."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter, sleep

from availability import Clients, wait_until
from contests import Row, Side, Size, Wanted, cluster, contest, number, row_of, skipped

import dynamo
from dynamo._core import CORE
from dynamo.bench import Measured
from dynamo.bench.load import Connection
from dynamo.bench.protocols import DynamoTalk
from dynamo.bench.workloads import key_of
from dynamo.testing.cluster import ServedCluster, ServedNode

KEYS_AT_ONCE = 100
LONG = 4  # turns in one, where what is counted is rare
READERS = 32  # threads that share a client: of few, those that wait for the stopped node would be all, and hold up reads that need not wait
DESCRIPTORS_SPARE = 200  # of a process beside those it is asked to hold
KNOWN_CONNECTIONS = 20  # that a node has served before its memory is first looked at


def three_nodes(size: Size, scratch: Path, wanted: Wanted) -> Iterator[Row]:
    """What clients see of one cluster, from the quiet rows to the one that stops its nodes."""
    rows = {"get_many_vs_gets": many_at_once, "tail_p999_vs_p50": tail, "reads_one_stopped_p99": one_stopped}
    rows = {name: row for name, row in rows.items() if wanted(name)}
    if not rows:
        return
    with cluster(scratch, "relaxed") as nodes:
        side = Side(nodes.addresses, size)
        for name, row in rows.items():
            yield row(name, nodes, side, size)


def many_at_once(name: str, nodes: ServedCluster, side: Side, size: Size) -> Row:
    """One blocking client; the single gets are of the same keys, one after the other."""
    keys = [key_of(at) for at in range(0, size.keys, size.keys // KEYS_AT_ONCE)][:KEYS_AT_ONCE]
    with dynamo.Client(nodes.addresses) as client:

        def at_once() -> None:
            assert all(isinstance(found, dynamo.Result) and found.found for found in client.get_many(keys).values())

        def one_by_one() -> None:
            assert all([client.get(key).found for key in keys])

        def keys_a_second(ask: Callable[[], None]) -> float:
            began, asked = perf_counter(), 0
            while perf_counter() < began + size.seconds:
                ask()
                asked += len(keys)
            return asked / (perf_counter() - began)

        at_once()
        one_by_one()
        return contest(name, lambda: keys_a_second(at_once), lambda: keys_a_second(one_by_one), size.pairs, "keys a second")


def tail(name: str, nodes: ServedCluster, side: Side, size: Size) -> Row:
    """Half reads, half updates. Each round finds the peak anew, as fast as the nodes answer, and then asks for half of it on a schedule, so that a request
    that waits for others counts from when it was due. The ratio is the worse one of the reads' and the updates'."""
    ratios: list[float] = []
    rates: list[float] = []
    tails: list[float] = []
    for _ in range(size.pairs):
        rates.append(side.turn("A", 1).throughput / 2)
        slowest = max(_tail_and_median_ms(side.turn("A", 1, rate=rates[-1], times=LONG)), key=lambda pair: pair[0] / pair[1])
        ratios.append(slowest[0] / slowest[1])
        tails.append(slowest[0])
    detail = f"p99.9 {median(tails):.3g} ms at {number(median(rates))} operations a second; generator at most {side.generator_cpu:.2f} of a processor each"
    return row_of(name, ratios, detail)


def _tail_and_median_ms(measured: Measured) -> list[tuple[float, float]]:
    """(p99.9, p50) of each operation, in milliseconds."""
    return [(latencies.quantile(0.999) / 1e6, latencies.quantile(0.5) / 1e6) for latencies in measured.latencies().values()]


def one_stopped(name: str, nodes: ServedCluster, side: Side, size: Size) -> Row:
    """A blocking client that knows all three nodes, and threads that read with it on a schedule while a node is stopped, another one each round. Counting
    begins a moment after both others suspect it. That the client asks it again now and then, which takes a second, does count. Before the next turn all
    three see each other again."""
    counted_s = LONG * size.seconds
    rounds = iter(range(size.pairs))

    def read(client: dynamo.Client, at: int) -> object:
        return client.get(key_of(at % size.keys))

    def readers() -> Clients:
        return Clients(nodes.addresses, read, rate=size.reads_a_second, threads=READERS, shared=True)

    def counting() -> float:
        """Waits while reads are counted; returns when that began."""
        sleep(size.settled_s)
        since = monotonic()
        sleep(counted_s)
        return since

    def p99_of(clients: Clients, since: float) -> float:
        """In milliseconds. Asked for when all reads have ended: those that took long are the last to."""
        if clients.errors:
            raise RuntimeError(f"reads failed: {clients.errors[:3]}")
        return clients.latencies_ms(since, since + counted_s)["p99"]

    def healthy() -> float:
        with readers() as clients:
            since = counting()
        return p99_of(clients, since)

    def stopped() -> float:
        victim = nodes.nodes[next(rounds) % len(nodes.nodes)]
        others = [node.address for node in nodes.nodes if node is not victim]
        try:
            with readers() as clients:
                sleep(size.settled_s)
                victim.signal(signal.SIGSTOP)
                wait_until(lambda: all(victim.name in unreachable(address) for address in others))
                since = counting()
        finally:
            victim.signal(signal.SIGCONT)
        wait_until(lambda: not any(unreachable(address) for address in nodes.addresses))
        return p99_of(clients, since)

    return contest(name, stopped, healthy, size.pairs, f"ms, p99 of {number(size.reads_a_second)} reads a second")


def unreachable(address: str) -> set[str]:
    """Names of the nodes that the one at `address` suspects."""
    with dynamo.Client(address) as client:
        return {node["name"] for node in client.cluster_status()["nodes"] if not node["reachable"]}


def idle_connections(size: Size, scratch: Path, wanted: Wanted) -> Iterator[Row]:
    """One node, new in each round, and clients that have greeted it and never ask. Not counted: what the kernel keeps of a socket."""
    name = "idle_connection_bytes"
    if not wanted(name):
        return
    if reason := descriptors_missing(size.idle_connections + DESCRIPTORS_SPARE):
        skipped(name, reason)
        return
    growths = []
    for at in range(size.pairs):
        with ExitStack() as stack:
            node = ServedNode("idle", scratch / f"idle-{at}", ("--durability", "memory"))
            stack.callback(node.stop)
            node.start()
            node.check_core(CORE)

            def connect(count: int, node: ServedNode = node, stack: ExitStack = stack) -> None:
                for _ in range(count):
                    stack.callback(Connection(node.address, DynamoTalk(node.address, b"", operation_prefix=bytes(8)), 1).socket.close)

            connect(KNOWN_CONNECTIONS)
            before = resident_bytes(node.pid)
            connect(size.idle_connections)
            growths.append((resident_bytes(node.pid) - before) / size.idle_connections)
            with dynamo.Client(node.address) as client:
                if (held := client.stats()["connections"]) <= size.idle_connections:
                    raise RuntimeError(f"the node has {held} connections: it closed some of them")
    yield row_of(name, growths, f"bytes, {size.idle_connections:,} connections")


def descriptors_missing(count: int) -> str:
    """Lets this process, and those it starts, open so many descriptors. Returns why they cannot; empty if they can."""
    if not Path("/proc/self/statm").exists():
        return "what a process has of the memory is read from /proc, which is not here"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        return f"{count:,} open files are needed and {hard:,} is the most that may be asked for (ulimit -Hn)"
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    return ""


def resident_bytes(pid: int) -> int:
    """What a process has of the memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
