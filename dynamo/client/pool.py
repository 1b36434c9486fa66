"""What the threads of one client share: idle connections, which nodes failed lately, the id of the cluster.

There is no lock. Each step is one operation of a deque, set or dictionary, which no thread sees half done; so nothing can be left held by a fork, a
Ctrl-C, or a signal handler or `__del__` that comes in between and uses the client, too. What two threads tell of a node at once may count twice.
It belongs to one process. A fork copies sockets that parent and child must not both use; so the child makes a new pool (`after_fork`) the
first time it asks for anything.
"""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Sequence
from math import inf
from time import monotonic
from weakref import ref

from dynamo.client.connection import Connection
from dynamo.client.core import Nodes, RetryPolicy
from dynamo.client.greeting import same_cluster
from dynamo.errors import ConnectionFailed

IDLE_PER_NODE_MAX = 64
PROBE_S_MIN, PROBE_TIMES = 0.05, 4  # a node that failed may take so long to greet, or so many times as long as it did before


class Pool:
    """Thread-safe. A connection is either here, idle, or with the one thread that took it."""

    def __init__(self, addresses: Sequence[str], policy: RetryPolicy) -> None:
        self.pid = os.getpid()
        self._addresses = addresses
        self._policy = policy
        self._nodes = Nodes(addresses, policy, random.Random())
        self._idle: dict[str, deque[Connection]] = {address: deque() for address in addresses}
        self._busy: dict[int, ref[Connection]] = {}  # those that threads have taken, by id; weak, so that what an interruption drops is closed
        self._greeted_s: dict[str, float] = {}  # how long each node took to connect and greet, the last time
        self._probes: dict[str, int] = {}  # how often a node that failed did not greet in time, in a row
        self._cluster_id = b""
        self.used = False  # whether it ever had a connection
        self.closed = False

    def belongs_to(self, cluster_id: bytes) -> None:
        """Keep to this cluster, rather than to the first that is met; b"" says nothing."""
        self._cluster_id = self._cluster_id or cluster_id

    def order(self) -> list[str]:
        """The addresses in the order to try them in now."""
        return self._nodes.order(monotonic())

    def probe_s(self, order: list[str]) -> float | None:
        """How long the first node may take to greet before a request is sent to it, if it failed and another is there that did not; else None. A stopped
        process accepts connections and says nothing: whoever goes to see need not wait for it as for an answer, nor leave a write there."""
        first, *others = order or [""]
        known = self._greeted_s.get(first)
        if known is None or not self._nodes.failing(first) or all(map(self._nodes.failing, others)):
            return None
        # Longer each time: the way there may have become slower than it used to be.
        wait = max(PROBE_S_MIN, PROBE_TIMES * known) * (1 << min(self._probes.get(first, 0), 16))
        return min(wait, self._policy.attempt_timeout_s)

    def probe(self, address: str, deadline: float) -> Connection:
        """A new connection to a node that failed: that it greets says that it is there. Raises what opening one raises."""
        self._probes[address] = self._probes.get(address, 0) + 1  # until it has greeted
        return self._open(address, deadline)

    def take(self, address: str, deadline: float) -> Connection:
        """An idle connection to the node that is still good, or a new one. Raises what opening one raises."""
        connection: Connection | None = None
        while True:
            try:
                connection = self._idle[address].pop()
            except IndexError:
                return self._open(address, deadline)
            try:
                self._busy[id(connection)] = ref(connection)  # before the look at `closed`: else `close` may miss it
                if not self.closed and not connection.is_stale():
                    return connection
            except BaseException:
                self.drop(connection)
                raise
            self.drop(connection)

    def _open(self, address: str, deadline: float) -> Connection:
        began = monotonic()
        connection = Connection(address, deadline, self._cluster_id, self._check_open)
        try:
            self.used = True
            self._busy[id(connection)] = ref(connection)
            self._check_open()
            self._greeted_s[address] = monotonic() - began
            self._probes.pop(address, None)
            known = self._cluster_id = self._cluster_id or connection.cluster_id
            if (error := same_cluster(address, connection.cluster_id, known)) is not None:
                raise error
        except BaseException:
            self.drop(connection)
            raise
        return connection

    def _check_open(self) -> None:
        if self.closed:
            raise ConnectionFailed("the client was closed")

    def give(self, connection: Connection) -> None:
        """Keep a connection that is at rest for the next request."""
        idle = self._idle[connection.address]
        self._busy.pop(id(connection), None)
        if self.closed or self.pid != os.getpid() or len(idle) >= IDLE_PER_NODE_MAX:
            connection.close()
            return
        idle.append(connection)
        if self.closed:  # meanwhile: `close` may have seen it neither here nor there
            self.forget(connection.address)

    def drop(self, connection: Connection) -> None:
        """Close a connection that is of no more use, if it has not been given back."""
        if self._busy.pop(id(connection), None) is not None:
            connection.close()

    def served(self, address: str) -> None:
        """The node answered a request."""
        self._nodes.succeeded(address)

    def failed(self, address: str) -> None:
        """The node could not be reached or could not help: try it last for a while."""
        self._nodes.failed(address, monotonic())

    def forget(self, address: str, until: float = inf) -> None:
        """One connection was found dead, or the node said nothing on it in time: the idle ones to that node may be no better, but for those on which
        it has answered since `until`."""
        idle = self._idle[address]
        for _ in range(len(idle)):
            try:
                connection = idle.popleft()
            except IndexError:
                return
            if connection.rested_at > until and not self.closed:
                idle.append(connection)
            else:
                connection.close()

    def close(self) -> None:
        """Close what is idle, and wake the threads that wait for an answer. Of another process's connections it only closes the copies here."""
        self.closed = True
        for address in self._addresses:
            self.forget(address)
        busy = [connection for each in self._busy.copy().values() if (connection := each()) is not None]
        if self.pid != os.getpid():
            for connection in busy:
                connection.close()
            return
        for connection in busy:
            connection.wake()

    def after_fork(self) -> Pool:
        """A new pool for this process. Closing the copied sockets here leaves the parent's open."""
        self.close()
        pool = Pool(self._addresses, self._policy)
        pool.belongs_to(self._cluster_id)
        return pool
