"""Client threads at work on a cluster while something is done to it, and the verdict on what they saw."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import monotonic

import dynamo
from dynamo.testing.cluster import ServedCluster
from dynamo.testing.history import History
from dynamo.testing.recorder import RecordingClient
from dynamo.testing.stores import judge

OWN, SHARED, SET = 20, 10, 5  # keys: of each client's own, changed by all of them, and blindly set by all of them
THINK_S = 0.02  # what happens to a node is the test, not how fast it is: the processors are left to the nodes, and to other tests


class Load:
    """Threads with a recording client each. `quorum`: R and W of their requests, where the cluster's own are not meant; with 1 they get on even
    where they reach one node alone."""

    def __init__(self, addresses: Iterable[str], history: History, name: str = "c", threads: int = 6, quorum: int | None = None) -> None:
        self.addresses = list(addresses)
        self.history = history
        self.quorum = quorum
        self.failures: list[str] = []
        self.done = 0
        self.stopping = threading.Event()
        self._progress = threading.Condition()
        self._threads = [threading.Thread(target=self._work, args=(f"{name}{number}", number)) for number in range(threads)]

    def _work(self, name: str, number: int) -> None:
        rng = random.Random(name)
        first = number % len(self.addresses)
        with RecordingClient(self.addresses[first:] + self.addresses[:first], self.history, name, required=self.quorum or 2) as client:
            while not self.stopping.is_set():
                try:
                    self._operate(client, name, rng)
                except dynamo.DynamoError as error:
                    self.failures.append(f"{name}: {error!r}")
                with self._progress:
                    self.done += 1
                    self._progress.notify_all()
                self.stopping.wait(THINK_S)

    def _operate(self, client: RecordingClient, name: str, rng: random.Random) -> None:
        kind = rng.choices(("own", "shared", "delete", "blind", "set"), (6, 3, 0.5, 0.5, 1))[0]
        if kind == "set":
            client.set(f"set-{rng.randrange(SET)}", name.encode(), w=self.quorum)
            return
        key = f"{name}-{rng.randrange(OWN)}" if kind == "own" else f"shared-{rng.randrange(SHARED)}"
        if kind == "blind":
            client.put(key, name.encode(), w=self.quorum)
            return
        result = client.get(key, r=self.quorum)
        if kind == "delete":
            client.delete(key, context=result.context, w=self.quorum)
        else:
            client.put(key, b"|".join(result.values)[-100:] + name.encode(), context=result.context, w=self.quorum)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self.stopping.set()
        for thread in self._threads:
            thread.join(30)
            assert not thread.is_alive(), "a client hangs"

    def wait(self, operations: int, timeout_s: float = 60.0) -> None:
        """Wait until so many more operations are over."""
        with self._progress:
            goal = self.done + operations
            assert self._progress.wait_for(lambda: self.done >= goal, timeout_s), "the load does not get on"

    def work_until(self, time: float) -> None:
        """Wait until then, and see that the load gets on all the while."""
        while monotonic() < time:
            self.wait(10, timeout_s=10)


@contextmanager
def judged_load(cluster: ServedCluster) -> Iterator[Load]:
    """Load during the block. Afterwards the nodes come to agree without any reader, they are stopped, and the checkers find nothing wrong."""
    work = Load(cluster.addresses, History())
    work.start()
    try:
        work.wait(200)
        yield work
        work.wait(200)
    finally:
        work.stop()
    judge_agreed(cluster, work.history)


def judge_agreed(cluster: ServedCluster, history: History) -> None:
    """All owners come to hold the same, and that is what the clients' history says."""
    wait_for_agreement(cluster)
    cluster.stop()
    violations = judge(history, [node.data for node in cluster.nodes])
    assert [str(violation) for violation in violations[:10]] == []
    assert history.counts().get("acknowledged", 0) > 300


def wait_for_agreement(cluster: ServedCluster, timeout_s: float = 60.0) -> None:
    """Nothing is owed to anybody, and all pairs of owners have compared themselves since now and closed every difference."""
    began = monotonic()

    def agreed() -> bool:
        elapsed = monotonic() - began
        counts = [counters(node.address) for node in cluster.nodes]
        return all(count["hints"] == 0 and count["agreement_age_s"] < elapsed for count in counts)

    eventually(agreed, timeout_s)


def eventually(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Poll a remote condition until it holds."""
    end = monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        assert monotonic() < end, "the condition did not come true in time"
        pause.wait(0.1)


def counters(address: str) -> dict[str, float]:
    with dynamo.Client(address) as client:
        return client.stats()


@contextmanager
def stopped(cluster: ServedCluster, node: int) -> Iterator[None]:
    """SIGSTOP for the block: the node's kernel accepts, and nobody answers."""
    cluster.nodes[node].signal(signal.SIGSTOP)
    try:
        yield
    finally:
        cluster.nodes[node].signal(signal.SIGCONT)
