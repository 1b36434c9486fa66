"""Loops over real sockets, against a server that does next to nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

import pytest
from fake_redis import FakeRedis

from dynamo.bench import Plan, run
from dynamo.bench.load import Connection, Load
from dynamo.bench.protocols import RedisTalk
from dynamo.bench.workloads import READ, UPDATE
from dynamo.errors import ConnectionFailed, DynamoError

MS = 1_000_000


@contextmanager
def loaded(server: FakeRedis, connections: int = 2, pipeline: int = 4) -> Iterator[Load]:
    load = Load([Connection(server.address, RedisTalk(b"value"), pipeline) for _ in range(connections)])
    try:
        yield load
    finally:
        load.close()


def test_all_of_them_run_once() -> None:
    with FakeRedis() as server, loaded(server) as load:
        load.all_of((UPDATE, number) for number in range(1000))
        assert (len(server.values), server.requests, load.answered) == (1000, 1000, 1000)
        load.all_of(iter(()))


def test_a_closed_loop_counts_what_was_answered_within_its_time() -> None:
    with FakeRedis() as server, loaded(server) as load:
        numbers = count()
        took = load.closed(lambda: (READ if next(numbers) % 2 else UPDATE, 1), 0.2)
        counts = {operation: latencies.count for operation, latencies in load.histograms.items()}
        assert 0.2 <= took < 2 and set(counts) == {READ, UPDATE}
        assert server.requests - 8 <= sum(counts.values()) <= server.requests  # up to a slot each came too late
        again = load.closed(lambda: (READ, 1), 0.05)
        assert set(load.histograms) == {READ} and again < 2


def test_an_open_loop_asks_as_often_as_it_was_told() -> None:
    with FakeRedis() as server, loaded(server) as load:
        took = load.open(lambda: (READ, 1), 0.5, 400)
        assert server.requests == load.histograms[READ].count == 200 and took >= 199 / 400


def test_a_stall_shows_in_the_latencies_of_all_who_were_due_meanwhile() -> None:
    """The open loop is there for this: a closed one has as few slow operations as slots."""
    stall_s = 0.4
    with FakeRedis(stall_after=50, stall_s=stall_s) as server, loaded(server, 1, 2) as load:
        load.open(lambda: (READ, 1), 1.0, 500)
        due_meanwhile = stall_s * 500
        slow_share = 1 - 0.5 * due_meanwhile / 500  # half of them waited for more than half of the stall
        assert load.histograms[READ].count == 500 and load.histograms[READ].quantile(slow_share + 0.02) > 0.4 * stall_s * 1000 * MS
    with FakeRedis(stall_after=50, stall_s=stall_s) as server, loaded(server, 1, 2) as load:
        load.closed(lambda: (READ, 1), 1.0)
        histogram = load.histograms[READ]
        assert histogram.max > 0.9 * stall_s * 1000 * MS
        assert histogram.quantile(1 - 3 / histogram.count) < 0.4 * stall_s * 1000 * MS or histogram.count < 1000


def test_a_run_of_several_processes_is_summed_up() -> None:
    phases: list[str] = []
    with FakeRedis() as server:
        plan = Plan((server.address,), workload="D", protocol="redis", connections=4, pipeline=2, keys=500, seconds=0.4, warm_up_s=0.1, runs=2, processes=2)
        measured = run(plan, lambda phase, answered: phases.append(phase))
        assert len(measured) == 2 and len({value for value in server.values.values()}) == 2  # each process has a value of its own
        new = sorted({int(key[3:]) for key in server.values} - set(range(500)))
        assert len(server.values) == 500 + len(new)
        for process in range(2):  # each inserts the numbers of its own, and leaves none out
            assert [number for number in new if number % 2 == process] == list(
                range(500 + process, 500 + process + 2 * sum(1 for n in new if n % 2 == process), 2)
            )
    for each in measured:
        latencies = each.latencies()
        assert each.operations == sum(part.count for part in latencies.values()) and each.reads >= latencies["read"].count > 0
        assert not each.errors and each.throughput == each.operations / each.seconds and each.cpu_s > 0
    assert "run 1 of 2" in phases


def test_nobody_there() -> None:
    with FakeRedis() as server:
        gone = server.address
    with pytest.raises(ConnectionFailed, match=gone):
        run(Plan((gone,), protocol="redis", connections=2))


def test_a_server_that_goes_away_ends_the_run() -> None:
    with FakeRedis() as server, loaded(server) as load:
        load.all_of((UPDATE, number) for number in range(10))
        server.stop()
        with pytest.raises(DynamoError, match="connection"):
            load.closed(lambda: (READ, 1), 5.0)
