"""Loops over real sockets, against a server that does next to nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest
from fake_redis import FakeRedis

from dynamo.bench import Plan, run
from dynamo.bench.generator import Generator
from dynamo.bench.load import Connection, Load
from dynamo.bench.protocols import RedisTalk
from dynamo.bench.resting import Resting
from dynamo.bench.workloads import INSERT, READ, UPDATE
from dynamo.errors import ConfigError, ConnectionFailed, DynamoError, Timeout

MS = 1_000_000


@contextmanager
def loaded(server: FakeRedis, connections: int = 2, pipeline: int = 4) -> Iterator[Load]:
    load = Load()
    try:
        for _ in range(connections):
            load.add(Connection(server.address, RedisTalk(server.address, b"value"), pipeline))
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


def test_what_fails_is_no_success() -> None:
    with FakeRedis(refuses=b"key0000000003") as server, loaded(server) as load:
        load.closed(lambda: (UPDATE, 3), 0.1)
        assert not load.histograms and load.answered > 0
        numbers = count()
        load.closed(lambda: (UPDATE, next(numbers) % 4), 0.1)
        assert 0 < load.histograms[UPDATE].count < server.requests
        plan = Plan((server.address,), protocol="redis", keys=10, connections=2)
        with pytest.raises(DynamoError, match="not all keys could be written: 1 times ERR"):
            run(plan)


def test_a_server_that_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamo.bench.processes.SILENCE_S_MAX", 2.0)  # more than a process takes to start
    with FakeRedis(stall_after=20, stall_s=6.0) as server, pytest.raises(Timeout, match="writing all keys: nothing was answered"):
        run(Plan((server.address,), protocol="redis", keys=1000, connections=2))


def test_the_newest_key_is_one_that_is_there() -> None:
    with FakeRedis() as server:
        plan = Plan((server.address,), workload="D", protocol="redis", connections=2, keys=100, processes=2, load=False)
        generator = Generator(plan, 1)
        try:
            assert generator._newest() == 99
            inserts = [number for operation, number in (generator._draw() for _ in range(200)) if operation == INSERT]
            assert inserts == [101 + 2 * at for at in range(len(inserts))] and generator._newest() == 99  # none was answered
            generator.load.all_of((INSERT, number) for number in inserts)
            assert generator._newest() == inserts[-1]
        finally:
            generator.load.close()


WRONG: list[dict[str, Any]] = [
    {"rate": float("nan")}, {"rate": float("inf")}, {"seconds": 0.0}, {"seconds": float("inf")}, {"workload": "Z"},
    {"protocol": "redis", "workload": "E"}, {"keys": 0}, {"protocol": "memcached", "workload": "E"}, {"protocol": "etcd", "workload": "E"},
    {"protocol": "etcd", "pipeline": 2}, {"protocol": "http"},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_a_plan_that_cannot_be_run(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Plan(("h:1",), **wrong)


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


def test_who_fails_pauses_longer_each_time() -> None:
    resting: Resting[str] = Resting()
    for failures in (1, 2, 3, 20):
        resting.add(0, failures, "c", failures)
    assert 0.01 <= resting.wait_s(0) <= 0.03 and not resting.rested(10 * MS - 1)
    assert next(slot for _, slot in resting.rested(30 * MS)) == 1
    assert not [slot for _, slot in resting.rested(499 * MS) if slot == 20]
    assert ("c", 20) in resting.rested() and resting.wait_s(0) == 1.0
    with FakeRedis(refuses=b"key0000000003") as server, loaded(server, 1, 1) as load:
        load.closed(lambda: (UPDATE, 3), 0.25)
        assert 2 <= server.requests <= 6  # after 0, 20, 40, 80, 160 ms, each of them jittered
