"""The blocking client: plain sockets, safe to share between threads, and after a fork.

Each request takes a connection out of a pool, or opens one, and puts it back; so as many requests are in flight as there are threads
asking, and a thread that waits for a slow node holds up nobody. What to try, and when to give up, is decided in `core`; this is the
shell that does it. A node that failed is asked to greet before a request is sent to it (`Pool.probe_s`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from random import random
from time import monotonic, sleep
from types import TracebackType
from typing import Any, TypeVar

from dynamo.api.codec import Codec
from dynamo.api.result import Resolver
from dynamo.client import verbs
from dynamo.client.addresses import parse_addresses, seconds
from dynamo.client.connection import Connection
from dynamo.client.core import Attempts, Request, RetryPolicy
from dynamo.client.lifetime import OfOneProcess, made_at, warn_unclosed
from dynamo.client.pool import Pool
from dynamo.client.verbs import Key, Place, Verb
from dynamo.client.verbs_blocking import Verbs
from dynamo.errors import ConnectionFailed, DynamoError, Timeout, ValueTooLarge
from dynamo.model.messages import Message

T = TypeVar("T")
PAUSE_S_MAX = 0.05


class Client(OfOneProcess, Verbs):
    """A cluster reached over the network: `Client("host:port,host:port")` or `Client("dynamo://host:port")`.

    Any of the addresses is enough; more keep the client working when a node is down. `timeout` in seconds bounds each call as a whole,
    all its attempts on all nodes included; `math.inf` stands for as long as it may take, which is a minute for each node that works on it and a day
    for one that is silent. Nothing is sent before the first verb.
    """

    def __init__(self, addresses: str | Iterable[str], *, timeout: float = 5.0, retry: RetryPolicy | None = None) -> None:
        self._addresses = parse_addresses(addresses)
        self._timeout = seconds(timeout)
        self._retry = retry or RetryPolicy()
        self._place = Place.named("default")
        self._pool = Pool(self._addresses, self._retry)
        self._closed = False
        self._made_at = made_at()

    def bucket(self, name: str | bytes, *, resolver: Resolver | None = None, codec: Codec | None = None) -> Bucket:
        """The verbs on another bucket, with a rule that merges siblings and a codec for values, if given."""
        return Bucket(self, Place.named(name, codec, resolver))

    def cluster_status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """The cluster and its nodes as the node that answers sees them."""
        return self._run(verbs.cluster_status(), timeout)

    def preference_list(self, key: Key, *, bucket: str | bytes = "default", timeout: float | None = None) -> dict[str, Any]:
        """The nodes that hold the key, and those that stand in for them, in order."""
        return self._run(verbs.preference_list(Place.named(bucket), key), timeout)

    def stats(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Counts of the node that answers, since its start, by name."""
        return self._run(verbs.stats(), timeout)

    def close(self) -> None:
        """Close the connections. Calls under way in other threads end with ConnectionFailed; later ones raise RuntimeError.

        In a forked child it closes the child's copies of the descriptors, and leaves the parent's connections as they are.
        """
        self._closed = True
        self._pool.close()

    def __del__(self) -> None:
        pool: Pool | None = getattr(self, "_pool", None)
        if pool is None or self._closed:
            return
        self._closed = True
        if pool.used and pool.pid == os.getpid():
            warn_unclosed(self, self._made_at)
        pool.close()

    def __enter__(self) -> Client:
        self._here()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({','.join(self._addresses)!r})"

    def _run(self, verb: Verb[T], timeout: float | None) -> T:
        deadline = monotonic() + (self._timeout if timeout is None else seconds(timeout))
        asked: set[str] = set()
        return verbs.run(verb, lambda request: self._call(request, deadline, asked))

    def _call(self, request: Request, deadline: float, asked: set[str]) -> Message:
        """The reply to one request, however many attempts it takes. Raises its final error. `asked`: nodes that answered this verb before."""
        pool = self._here()
        if not request.elsewhere:
            asked.clear()
        order = [address for address in pool.order() if address not in asked]
        attempts = Attempts(request, order, self._retry, deadline, random())
        probe_s = pool.probe_s(order)
        while True:
            attempt = attempts.next(monotonic())
            if attempt.pause_s:
                self._pause(pool, attempt.pause_s)
            now = monotonic()
            until = now + attempt.wait_s
            connection: Connection | None = None
            try:
                wait_s, probe_s = probe_s, None
                dial_until = min(until, now + (attempt.dial_s if wait_s is None else wait_s))
                connection = (pool.take if wait_s is None else pool.probe)(attempt.address, dial_until)
                reply = connection.exchange(request, attempt.time_ms, until)
            except DynamoError as error:
                if pool.closed:
                    raise ConnectionFailed("the client was closed", maybe_applied=attempts.may_be_applied(error)) from None
                # A connection that served before may have died of a restart of its node long ago; that says nothing about the node now.
                stale = connection is not None and connection.used and isinstance(error, ConnectionFailed)
                if stale or isinstance(error, Timeout):
                    pool.forget(attempt.address, now)
                if not stale and not isinstance(error, ValueTooLarge):  # which says nothing about the node: nothing was sent
                    pool.failed(attempt.address)
                attempts.failed(attempt.address, error, stale=stale)
            else:
                pool.give(connection)
                connection = None
                if attempts.answered(attempt.address, reply):
                    pool.served(attempt.address)
                    asked.add(attempt.address)
                    return reply
                if not attempts.was_busy:
                    pool.failed(attempt.address)
            finally:
                if connection is not None:  # also when interrupted: a reply under way must not meet the next request
                    pool.drop(connection)

    @staticmethod
    def _pause(pool: Pool, seconds: float) -> None:
        """Sleep, in pieces: the client may be closed meanwhile."""
        until = monotonic() + seconds
        while not pool.closed and (left := until - monotonic()) > 0:
            sleep(min(left, PAUSE_S_MAX))

    def _here(self) -> Pool:
        """The pool of this process. Raises RuntimeError after `close`."""
        if self._closed:
            raise RuntimeError("the client is closed")
        if self._pool.pid != os.getpid():
            self._pool = self._pool.after_fork()
        return self._pool


class Bucket(OfOneProcess, Verbs):
    """The verbs on one bucket of a client, whose connections and time-out it uses. Made by `Client.bucket`. It has nothing of its own to close."""

    def __init__(self, client: Client, place: Place) -> None:
        self._client = client
        self._place = place

    @property
    def name(self) -> str:
        """The bucket's name."""
        return self._place.bucket.decode("ascii")

    def bucket(self, name: str | bytes, *, resolver: Resolver | None = None, codec: Codec | None = None) -> Bucket:
        """Another bucket of the same client."""
        return self._client.bucket(name, resolver=resolver, codec=codec)

    def __repr__(self) -> str:
        return f"{self._client!r}.bucket({self.name!r})"

    def _run(self, verb: Verb[T], timeout: float | None) -> T:
        return self._client._run(verb, timeout)
