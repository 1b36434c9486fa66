"""Real processes under load: stopped, restarted one after the other, and robbed of their rows. The checker is the clients' own memory of what was
acknowledged to them: every key they wrote must hold exactly its last acknowledged value, or one whose outcome nobody was told."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import pytest

import dynamo
from dynamo.model.group import Group
from dynamo.storage.lmdb import LmdbEngine
from dynamo.testing.cluster import ServedCluster

KEYS_EACH = 50


class Load:
    """Client threads, each updating keys of its own in turn, with what was acknowledged and what may have happened."""

    def __init__(self, addresses: list[str], threads: int = 6) -> None:
        self.addresses = addresses
        self.acknowledged: dict[str, int] = {}
        self.possible: dict[str, set[int]] = {}
        self.failures: list[dynamo.DynamoError] = []
        self.done = 0
        self._stop = threading.Event()
        self._progress = threading.Condition()
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(threads)]

    def _work(self, number: int) -> None:
        turned = self.addresses[number % 3 :] + self.addresses[: number % 3]
        turn = 0
        with dynamo.Client(",".join(turned)) as client:
            while not self._stop.is_set():
                turn += 1
                key = f"load-{number}-{turn % KEYS_EACH}"
                try:
                    client.update(key, lambda values, turn=turn: b"%d" % turn)
                    self.acknowledged[key], self.possible[key] = turn, set()
                except dynamo.DynamoError as error:
                    self.failures.append(error)
                    self.possible.setdefault(key, set()).add(turn)
                with self._progress:
                    self.done += 1
                    self._progress.notify_all()

    def wait(self, writes: int, timeout_s: float = 60.0) -> None:
        """Wait until so many more writes were tried."""
        with self._progress:
            goal = self.done + writes
            assert self._progress.wait_for(lambda: self.done >= goal, timeout_s), "the load does not get on"

    def check(self, address: str, late_attempts: bool = False) -> None:
        """Every key has its last acknowledged value, or one that was tried after it. `late_attempts`: a stopped node may have woken up to an attempt
        whose client went on elsewhere long ago; the two coordinators could not see each other, and its version stands beside the others."""
        with dynamo.Client(address, timeout=20) as client:
            for key, result in client.get_many(self.acknowledged).items():
                assert isinstance(result, dynamo.Result), result
                name = key.decode()
                found = {int(value) for value in result.values}
                allowed = {self.acknowledged[name]} | self.possible[name]
                assert found & allowed and (late_attempts or found <= allowed), f"{name}: {found}, expected {allowed}"


@contextmanager
def load(cluster: ServedCluster) -> Iterator[Load]:
    work = Load(cluster.addresses)
    for thread in work._threads:
        thread.start()
    try:
        work.wait(100)
        yield work
    finally:
        work._stop.set()
        for thread in work._threads:
            thread.join(30)


def eventually(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Poll a remote condition until it holds."""
    end = monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        assert monotonic() < end, "the condition did not come true in time"
        pause.wait(0.1)


@pytest.mark.parametrize("durability", ["synced", "relaxed"])
def test_rolling_restart_of_all_nodes_under_load(durability: str, tmp_path: Path) -> None:
    with ServedCluster(tmp_path, flags=("--durability", durability)) as cluster:
        with load(cluster) as work:
            for node in cluster.nodes:
                assert node.stop() == 0
                work.wait(50)
                node.start()
                work.wait(50)
        assert work.failures == []
        for node in cluster.nodes:
            work.check(node.address)


def test_a_node_stopped_for_five_seconds_holds_up_nobody_for_long(tmp_path: Path) -> None:
    with ServedCluster(tmp_path) as cluster:
        with load(cluster) as work:
            victim = cluster.nodes[1]
            victim.signal(signal.SIGSTOP)
            began = monotonic()
            while monotonic() - began < 5:
                work.wait(20)
            victim.signal(signal.SIGCONT)
            work.wait(100)
        assert work.failures == []
        for node in cluster.nodes:
            work.check(node.address, late_attempts=True)


def test_a_node_that_lost_its_rows_gets_them_back_without_any_reader(tmp_path: Path) -> None:
    with ServedCluster(tmp_path, flags=("--durability", "relaxed")) as cluster:
        with dynamo.Client(",".join(cluster.addresses)) as client:
            for first in range(0, 2000, 100):
                outcomes = client.set_many({f"key-{number}": b"v%d" % number for number in range(first, first + 100)})
                assert not [outcome for outcome in outcomes.values() if isinstance(outcome, dynamo.DynamoError)]
        victim = cluster.nodes[2]
        eventually(lambda: counters(victim.address)["rows"] == 2000)  # two of three acknowledged; the third may lag
        victim.kill()
        rob(victim.data)
        victim.start()
        eventually(lambda: counters(victim.address)["rows"] == 2000)
        victim.stop()
        assert rows(victim.data) == 2000


def counters(address: str) -> dict[str, int]:
    with dynamo.Client(address) as client:
        return client.stats()


def rows(data: Path) -> int:
    """Rows in a stopped node's directory."""
    engine = LmdbEngine(str(data), synced=True)
    try:
        return len(engine.scan("objects", b"", None, 1_000_000))
    finally:
        engine.close()


def rob(data: Path) -> None:
    """Take all rows out of a stopped node's directory; it keeps its identity."""
    engine = LmdbEngine(str(data), synced=True)
    try:
        engine.commit(Group(1, {key: None for key, _ in engine.scan("objects", b"", None, 1_000_000)}, synced=True))
    finally:
        engine.close()
