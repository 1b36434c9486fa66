"""The load on one process's connections: as fast as they answer (closed loop), or at a constant rate (open loop).

In a closed loop a slot's next operation begins when its last one is answered, so a server that stalls is asked less just then, and the stall shows in few
latencies: coordinated omission (Gil Tene, "How NOT to measure latency"). In an open loop operations are due at times fixed beforehand, and latency counts
from then, whether a slot was free or not.
"""

from __future__ import annotations

import select
import selectors
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from time import monotonic, perf_counter_ns

from dynamo._core import histogram
from dynamo.bench.protocols import Talk
from dynamo.bench.resting import Resting
from dynamo.bench.workloads import INSERT
from dynamo.dialling import race
from dynamo.errors import ConnectionFailed, DynamoError, Timeout

SIGNIFICANT_BITS = 8  # a latency is off by less than 0.4 %
CONNECT_TIMEOUT_S = 10.0
DRAIN_TIMEOUT_S = 10.0
_RECEIVE_BYTES = 256 * 1024
_BATCH = 4096  # latencies that are recorded at once
_SECOND = 1_000_000_000

Draw = Callable[[], tuple[str, int]]
"""The next operation and the number of its key."""


class Connection:
    """One socket and its slots."""

    __slots__ = ("failures", "free", "operations", "out", "since", "socket", "talk")

    def __init__(self, address: str, talk: Talk, slots: int) -> None:
        """Connect and greet. Raises ConnectionFailed, Timeout, or what the other side refuses us with."""
        self.talk = talk
        self.free = list(range(slots))
        self.since = [0] * slots  # when the operation of a slot began, or was due
        self.operations = [""] * slots
        self.failures = [0] * slots  # in a row
        self.out = b""
        deadline = monotonic() + CONNECT_TIMEOUT_S
        self.socket = race.connect(address, race.Connected(), deadline).sock
        try:
            if hello := talk.greeting():
                self._send(hello, deadline)
                while not talk.greeted(self._received(address, deadline)):
                    pass
            self.socket.setblocking(False)
        except BaseException as error:
            self.socket.close()
            if isinstance(error, TimeoutError):
                raise Timeout(f"{address} did not answer in {CONNECT_TIMEOUT_S:.0f} s") from None
            if isinstance(error, OSError) and not isinstance(error, DynamoError):
                raise ConnectionFailed(f"{address}: {error.strerror or error}") from error
            raise

    def _send(self, hello: bytes, deadline: float) -> None:
        self.socket.settimeout(max(0.001, deadline - monotonic()))
        self.socket.sendall(hello)

    def _received(self, address: str, deadline: float) -> bytes:
        self.socket.settimeout(max(0.001, deadline - monotonic()))
        data = self.socket.recv(_RECEIVE_BYTES)
        if not data:
            raise ConnectionFailed(f"{address} closed the connection")
        return data


class Load:
    """Runs operations over its connections and counts what comes of them: `histograms` by operation, in nanoseconds, of those that succeeded."""

    def __init__(self) -> None:
        """Made before the connections: what `select` waits for must be among the first descriptors of the process."""
        self.histograms: dict[str, histogram.Histogram] = {}
        self.answered = 0  # since the beginning; whoever shows progress may look
        self.inserted = 0  # insertions that were answered
        self.unsent = 0  # operations that were due in an open loop and had no free slot until its end
        self.progress: Callable[[], None] = lambda: None  # called after every step
        self._connections: list[Connection] = []
        self._selector = selectors.DefaultSelector()
        self._nested = hasattr(self._selector, "fileno")
        self._latencies: dict[str, list[int]] = {}
        self._resting: Resting[Connection] = Resting()

    def add(self, connection: Connection) -> None:
        """Use this connection too."""
        self._connections.append(connection)
        self._selector.register(connection.socket, selectors.EVENT_READ, connection)

    def close(self) -> None:
        """Close all connections."""
        self._selector.close()
        for connection in self._connections:
            connection.socket.close()

    def all_of(self, operations: Iterator[tuple[str, int]]) -> None:
        """Run these operations, each once."""
        for connection in self._connections:
            self._issue(connection, list(islice(operations, len(connection.free))))
        while self._outstanding():
            for connection, freed in self._step(1.0):
                self._issue(connection, list(islice(operations, freed)))

    def closed(self, draw: Draw, seconds: float) -> float:
        """Keep all slots busy for so long. Returns the seconds it took; what is answered later does not count."""
        self._reset()
        began = perf_counter_ns()
        until = began + int(seconds * _SECOND)
        for connection in self._connections:
            self._issue(connection, [draw() for _ in connection.free])
        while (now := perf_counter_ns()) < until:
            for connection, freed in self._step((until - now) / _SECOND):
                self._issue(connection, [draw() for _ in range(freed)])
        took = (perf_counter_ns() - began) / _SECOND
        self._record()
        counted, self.histograms = self.histograms, {}
        self._drain()
        self.histograms = counted
        return took

    def open(self, draw: Draw, seconds: float, rate: float) -> float:
        """`rate` operations a second for so long, whatever the answers take. Returns the seconds until all of them were answered; those that waited
        for a slot until the end, and some seconds longer, are counted in `unsent`."""
        self._reset()
        total, issued, interval = max(1, int(seconds * rate)), 0, _SECOND / rate
        free = deque(connection for connection in self._connections for _ in connection.free)
        began = perf_counter_ns()
        give_up = began + int((seconds + DRAIN_TIMEOUT_S) * _SECOND)
        while issued < total and (now := perf_counter_ns()) < give_up:
            batches: dict[Connection, list[tuple[int, tuple[str, int]]]] = {}
            for at in range(issued, min(total, int((now - began) / interval) + 1, issued + len(free))):
                batches.setdefault(free.popleft(), []).append((began + int(at * interval), draw()))
                issued += 1
            for connection, due in batches.items():
                self._issue(connection, [operation for _, operation in due], [since for since, _ in due])
            next_due = began + int(issued * interval) if free else give_up
            for connection, freed in self._step((next_due - perf_counter_ns()) / _SECOND):
                free.extend([connection] * freed)
        self.unsent = total - issued
        self._drain()
        self._record()
        return (perf_counter_ns() - began) / _SECOND

    def _issue(self, connection: Connection, operations: list[tuple[str, int]], since: list[int] | None = None) -> None:
        """Send operations, one for each of as many free slots; `since`: when each of them was due, if not now."""
        if not operations:
            return
        now = perf_counter_ns()
        requests = []
        for at, (operation, number) in enumerate(operations):
            slot = connection.free.pop()
            connection.since[slot] = now if since is None else since[at]
            connection.operations[slot] = operation
            requests.append((slot, operation, number))
        self._send(connection, connection.talk.encode(requests))

    def _send(self, connection: Connection, data: bytes) -> None:
        if connection.out:
            connection.out += data  # bounded by the slots
            return
        try:
            sent = connection.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise ConnectionFailed(f"a connection broke: {error.strerror or error}") from error
        if sent < len(data):
            connection.out = data[sent:]
            self._selector.modify(connection.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, connection)

    def _flush(self, connection: Connection) -> None:
        data, connection.out = connection.out, b""
        self._send(connection, data)
        if not connection.out:
            self._selector.modify(connection.socket, selectors.EVENT_READ, connection)

    def _step(self, wait_s: float) -> list[tuple[Connection, int]]:
        """Wait for answers and take them; returns how many slots of which connections they freed."""
        freed = []
        wait_s = max(0.0, min(wait_s, self._resting.wait_s(perf_counter_ns())))
        if wait_s > 0.0 and self._nested:  # the poll set waits in whole milliseconds, `select` for it in microseconds
            select.select([self._selector], [], [], wait_s)
            wait_s = 0.0
        for key, events in self._selector.select(wait_s):
            connection: Connection = key.data
            if events & selectors.EVENT_WRITE:
                self._flush(connection)
            if events & selectors.EVENT_READ and (count := self._receive(connection)):
                freed.append((connection, count))
        for connection, slot in self._resting.rested(perf_counter_ns()):
            connection.free.append(slot)
            freed.append((connection, 1))
        self.progress()
        return freed

    def _receive(self, connection: Connection) -> int:
        try:
            data = connection.socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ConnectionFailed(f"a connection broke: {error.strerror or error}") from error
        if not data:
            raise ConnectionFailed("a connection was closed by the other side")
        done, failed, more = connection.talk.feed(data)
        now = perf_counter_ns()
        if more:
            self._send(connection, more)
        for slot in done:
            operation = connection.operations[slot]
            connection.failures[slot] = 0
            self.inserted += operation == INSERT
            latencies = self._latencies.setdefault(operation, [])
            latencies.append(now - connection.since[slot])
            if len(latencies) >= _BATCH:
                self._record()
        for slot in failed:
            connection.failures[slot] += 1
            self._resting.add(now, connection.failures[slot], connection, slot)
        connection.free += done
        self.answered += len(done) + len(failed)
        return len(done)

    def _outstanding(self) -> bool:
        return any(len(connection.free) < len(connection.since) for connection in self._connections)

    def _drain(self) -> None:
        """Wait for all answers. Raises Timeout: slots whose answers may come later cannot be used again."""
        give_up = perf_counter_ns() + int(DRAIN_TIMEOUT_S * _SECOND)
        while True:
            for connection, slot in self._resting.rested():
                connection.free.append(slot)
            if not self._outstanding():
                return
            if perf_counter_ns() > give_up:
                raise Timeout(f"answers were missing {DRAIN_TIMEOUT_S:.0f} s after the end of the run")
            self._step(1.0)

    def _reset(self) -> None:
        self.histograms, self._latencies, self.unsent = {}, {}, 0

    def _record(self) -> None:
        """Move what was measured into the histograms."""
        for operation, latencies in self._latencies.items():
            self.histograms.setdefault(operation, histogram.Histogram(SIGNIFICANT_BITS)).record_many(latencies)
        self._latencies = {}
