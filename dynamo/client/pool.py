"""What the threads of one client share: idle connections, which nodes failed lately, the id of the cluster.

All of it stands behind one lock, which is never held while waiting. It belongs to one process. A fork copies sockets that parent and
child must not both use, and perhaps a lock that nobody will release; so the child makes a new pool (`after_fork`) the first time it
asks for anything.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Sequence
from math import inf
from time import monotonic

from dynamo.client.connection import Connection
from dynamo.client.core import Nodes, RetryPolicy
from dynamo.client.greeting import same_cluster

IDLE_PER_NODE_MAX = 64
PROBE_S_MIN, PROBE_TIMES = 0.05, 4  # a node that failed may take so long to greet, or so many times as long as it did before


class Pool:
    """Thread-safe. A connection is either here, idle, or with the one thread that took it."""

    def __init__(self, addresses: Sequence[str], policy: RetryPolicy) -> None:
        self.pid = os.getpid()
        self._addresses = addresses
        self._policy = policy
        self._lock = threading.Lock()
        self._nodes = Nodes(addresses, policy, random.Random())
        self._idle: dict[str, list[Connection]] = {address: [] for address in addresses}
        self._greeted_s: dict[str, float] = {}  # how long each node took to connect and greet, the last time
        self._probes: dict[str, int] = {}  # how often a node that failed did not greet in time, in a row
        self._cluster_id = b""
        self._closed = False

    def belongs_to(self, cluster_id: bytes) -> None:
        """Keep to this cluster, rather than to the first that is met; b"" says nothing."""
        with self._lock:
            self._cluster_id = self._cluster_id or cluster_id

    def order(self) -> list[str]:
        """The addresses in the order to try them in now."""
        with self._lock:
            return self._nodes.order(monotonic())

    def probe_s(self, order: list[str]) -> float | None:
        """How long the first node may take to greet before a request is sent to it, if it failed and another is there that did not; else None. A stopped
        process accepts connections and says nothing: whoever goes to see need not wait for it as for an answer, nor leave a write there."""
        with self._lock:
            first, *others = order or [""]
            known = self._greeted_s.get(first)
            if known is None or not self._nodes.failing(first) or all(map(self._nodes.failing, others)):
                return None
            # Longer each time: the way there may have become slower than it used to be.
            wait = max(PROBE_S_MIN, PROBE_TIMES * known) * (1 << min(self._probes.get(first, 0), 16))
            return min(wait, self._policy.attempt_timeout_s)

    def probe(self, address: str, deadline: float) -> Connection:
        """A new connection to a node that failed: that it greets says that it is there. Raises what opening one raises."""
        with self._lock:
            self._probes[address] = self._probes.get(address, 0) + 1  # until it has greeted
        return self._open(address, deadline)

    def take(self, address: str, deadline: float) -> Connection:
        """An idle connection to the node that is still good, or a new one. Raises what opening one raises."""
        while True:
            with self._lock:
                if not self._idle[address]:
                    break
                connection = self._idle[address].pop()
            if not connection.is_stale():
                return connection
            connection.close()
        return self._open(address, deadline)

    def _open(self, address: str, deadline: float) -> Connection:
        began = monotonic()
        connection = Connection(address, deadline, self._cluster_id)
        with self._lock:
            self._greeted_s[address] = monotonic() - began
            self._probes.pop(address, None)
            known = self._cluster_id = self._cluster_id or connection.cluster_id
        if (error := same_cluster(address, connection.cluster_id, known)) is not None:
            connection.close()
            raise error
        return connection

    def give(self, connection: Connection) -> None:
        """Keep a connection that is at rest for the next request."""
        with self._lock:
            idle = self._idle[connection.address]
            if not self._closed and self.pid == os.getpid() and len(idle) < IDLE_PER_NODE_MAX:
                idle.append(connection)
                return
        connection.close()

    def served(self, address: str) -> None:
        """The node answered a request."""
        with self._lock:
            self._nodes.succeeded(address)

    def failed(self, address: str) -> None:
        """The node could not be reached or could not help: try it last for a while."""
        with self._lock:
            self._nodes.failed(address, monotonic())

    def forget(self, address: str, until: float = inf) -> None:
        """One connection was found dead, or the node said nothing on it in time: the idle ones to that node may be no better, but for those on which
        it has answered since `until`."""
        with self._lock:
            idle = self._idle[address]
            self._idle[address] = [connection for connection in idle if connection.rested_at > until]
        for connection in idle:
            if connection.rested_at <= until:
                connection.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
        for address in self._addresses:
            self.forget(address)

    def after_fork(self) -> Pool:
        """A new pool for this process. Closing the copied sockets here leaves the parent's open."""
        for idle in self._idle.values():
            for connection in idle:
                connection.close()
        pool = Pool(self._addresses, self._policy)
        pool.belongs_to(self._cluster_id)
        return pool
