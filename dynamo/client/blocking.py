"""The blocking client: plain sockets, safe to share between threads, and after a fork.

Each request takes a connection out of a pool, or opens one, and puts it back; so as many requests are in flight as there are threads
asking, and a thread that waits for a slow node holds up nobody. What to try, and when to give up, is decided in `core`; this is the
shell that does it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from time import monotonic
from types import TracebackType
from typing import Any, TypeVar

from dynamo.api.codec import Codec
from dynamo.api.context import Context
from dynamo.api.result import Resolver, Result
from dynamo.api.update import MISSING, Change
from dynamo.client import verbs
from dynamo.client.connection import Connection
from dynamo.client.core import Attempts, Request, RetryPolicy
from dynamo.client.pool import Pool
from dynamo.client.verbs import Key, Place, Token, Verb
from dynamo.config import join_address, split_address
from dynamo.errors import ConfigError, ConnectionFailed, DynamoError
from dynamo.model import messages as m
from dynamo.model.messages import Message

T = TypeVar("T")
SCHEME = "dynamo://"


class Verbs:
    """The verbs on one bucket. `Client` has them for the bucket `default`, `Bucket` for any other."""

    _place: Place

    def _run(self, verb: Verb[T], timeout: float | None) -> T:
        raise NotImplementedError

    def get(self, key: Key, *, r: int | None = None, pr: int | None = None, resolver: Resolver | None = None, timeout: float | None = None) -> Result:
        """Read the key: its siblings and the context that covers them. Absent keys are no error; the result says `found`."""
        return self._run(verbs.get(self._place, key, r, pr, resolver), timeout)

    def put(
        self, key: Key, value: Any, *, context: Token = None, w: int | None = None, pw: int | None = None, timeout: float | None = None
    ) -> Context:
        """Replace what the context covers; without a context, add a sibling to whatever is there. Returns the context for a next write.

        Unavailable, Timeout and ConnectionFailed tell with `maybe_applied` whether the write may yet become visible.
        """
        return self._run(verbs.write(self._place, key, value, context, m.MODE_PUT, w, pw, os.urandom(16)), timeout)

    def set(self, key: Key, value: Any, *, w: int | None = None, pw: int | None = None, timeout: float | None = None) -> Context:
        """Replace what the coordinating node holds, unread, in one round trip. It loses a concurrent write that arrived there before
        it: where that matters, use `update`, or `put` with the context of a read."""
        return self._run(verbs.write(self._place, key, value, None, m.MODE_SET, w, pw, os.urandom(16)), timeout)

    def delete(self, key: Key, *, context: Token = None, blind: bool = False, w: int | None = None, timeout: float | None = None) -> Context:
        """Delete what the context covers, or, with `blind=True`, what a read shows now. A concurrent write survives. Neither: TypeError."""
        return self._run(verbs.delete(self._place, key, context, blind, w, os.urandom(16)), timeout)

    def update(self, key: Key, fn: Change, *, default: Any = MISSING, timeout: float | None = None) -> Context:
        """Read, apply `fn` to the list of live values, and write what it returns (`dynamo.DELETE` deletes) under the context of the read.

        An absent key gives an empty list, or [default]. Updates that race leave siblings, which the next `fn` gets to merge: it must
        expect several values and may run more than once.
        """
        return self._run(verbs.update(self._place, key, fn, default, os.urandom(16)), timeout)

    def get_many(self, keys: Iterable[Key], *, timeout: float | None = None) -> dict[bytes, Result | DynamoError]:
        """Read many keys; what went wrong with one stands in its place."""
        return self._run(verbs.get_many(self._place, keys), timeout)


class Client(Verbs):
    """A cluster reached over the network: `Client("host:port,host:port")` or `Client("dynamo://host:port")`.

    Any of the addresses is enough; more keep the client working when a node is down. `timeout` in seconds bounds each call as a whole,
    all its attempts on all nodes included. Nothing is sent before the first verb.
    """

    def __init__(self, addresses: str | Iterable[str], *, timeout: float = 5.0, retry: RetryPolicy | None = None) -> None:
        self._addresses = parse_addresses(addresses)
        self._timeout = _seconds(timeout)
        self._retry = retry or RetryPolicy()
        self._place = Place.named("default")
        self._pool = Pool(self._addresses, self._retry)
        self._closed = False

    def bucket(self, name: str | bytes, *, resolver: Resolver | None = None, codec: Codec | None = None) -> Bucket:
        """The verbs on another bucket, with a rule that merges siblings and a codec for values, if given."""
        return Bucket(self, Place.named(name, codec, resolver))

    def cluster_status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """The cluster and its nodes as the node that answers sees them."""
        return self._run(verbs.cluster_status(), timeout)

    def preference_list(self, key: Key, *, bucket: str | bytes = "default", timeout: float | None = None) -> dict[str, Any]:
        """The nodes that hold the key, and those that stand in for them, in order."""
        return self._run(verbs.preference_list(Place.named(bucket), key), timeout)

    def close(self) -> None:
        """Close the idle connections. Calls under way in other threads end; later ones raise RuntimeError."""
        self._closed = True
        self._pool.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({','.join(self._addresses)!r})"

    def _run(self, verb: Verb[T], timeout: float | None) -> T:
        deadline = monotonic() + (self._timeout if timeout is None else _seconds(timeout))
        try:
            request = next(verb)
            while True:
                try:
                    reply = self._call(request, deadline)
                except DynamoError as error:
                    request = verb.throw(error)
                else:
                    request = verb.send(reply)
        except StopIteration as done:
            result: T = done.value
            return result

    def _call(self, request: Request, deadline: float) -> Message:
        """The reply to one request, however many attempts it takes. Raises its final error."""
        pool = self._here()
        attempts = Attempts(request, pool.order(), self._retry, deadline)
        while True:
            attempt = attempts.next(monotonic())
            until = monotonic() + attempt.wait_s
            connection: Connection | None = None
            try:
                connection = pool.take(attempt.address, until)
                reply = connection.exchange(request, attempt.time_ms, until)
            except DynamoError as error:
                # A connection that served before may have died of a restart of its node long ago; that says nothing about the node now.
                stale = connection is not None and connection.used and isinstance(error, ConnectionFailed)
                pool.forget(attempt.address) if stale else pool.failed(attempt.address)
                attempts.failed(attempt.address, error, stale=stale)
            else:
                pool.give(connection)
                connection = None
                if attempts.answered(attempt.address, reply):
                    pool.served(attempt.address)
                    return reply
                pool.failed(attempt.address)
            finally:
                if connection is not None:  # also when interrupted: a reply under way must not meet the next request
                    connection.close()

    def _here(self) -> Pool:
        """The pool of this process. Raises RuntimeError after `close`."""
        if self._closed:
            raise RuntimeError("the client is closed")
        if self._pool.pid != os.getpid():
            self._pool = self._pool.after_fork()
        return self._pool


class Bucket(Verbs):
    """The verbs on one bucket of a client, whose connections and time-out it uses. Made by `Client.bucket`."""

    def __init__(self, client: Client, place: Place) -> None:
        self._client = client
        self._place = place

    @property
    def name(self) -> str:
        """The bucket's name."""
        return self._place.bucket.decode("ascii")

    def __repr__(self) -> str:
        return f"{self._client!r}.bucket({self.name!r})"

    def _run(self, verb: Verb[T], timeout: float | None) -> T:
        return self._client._run(verb, timeout)


def parse_addresses(addresses: str | Iterable[str]) -> tuple[str, ...]:
    """`host:port,host:port`, the same after `dynamo://`, or several of them -> normal addresses. Raises ConfigError."""
    texts = [addresses] if isinstance(addresses, str) else list(addresses)
    parts = [part.strip() for text in texts for part in text.removeprefix(SCHEME).rstrip("/").split(",") if part.strip()]
    if not parts:
        raise ConfigError("give the address of at least one node: host:port,host:port or dynamo://host:port,host:port")
    return tuple(dict.fromkeys(join_address(*split_address(part)) for part in parts))


def _seconds(timeout: float) -> float:
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
        raise ValueError(f"timeout is a number of seconds above 0, not {timeout!r}")
    return timeout
