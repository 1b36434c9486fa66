"""The asynchronous client, for Trio and for asyncio: one connection to each node, with many requests in flight.

It runs on whichever loop its caller runs on, and on several in several threads: each run of a loop has connections of its own (`homes`). What to
try, and when to give up, is decided in `core`, as for the blocking client; this is the other shell that does it. Any request may be cancelled at
any time: its reply, if one still comes, is read and dropped.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar

from dynamo.client import verbs
from dynamo.client.addresses import parse_addresses, seconds
from dynamo.client.channel import Call, Channel
from dynamo.client.core import Attempt, Attempts, Nodes, Request, RetryPolicy
from dynamo.client.greeting import same_cluster
from dynamo.client.homes import Home
from dynamo.client.lifetime import OfOneProcess, made_at, warn_unclosed
from dynamo.client.loops import running
from dynamo.client.verbs import Key, Place, Verb
from dynamo.client.verbs_async import AsyncBucket, AsyncVerbsOfDefault
from dynamo.errors import ConnectionFailed, DynamoError, Timeout, ValueTooLarge
from dynamo.model.messages import Message

T = TypeVar("T")


class AsyncClient(OfOneProcess, AsyncVerbsOfDefault):
    """A cluster reached over the network: `AsyncClient("host:port,host:port")`, with the verbs of `Client` as coroutines.

        async with dynamo.AsyncClient("127.0.0.1:7379") as client:
            await client.set("alice", b"1 book")

    `timeout` in seconds bounds each call as a whole, as in `Client`. Nothing is sent before the first verb. Tasks,
    threads and loops may share it; a forked child starts with connections of its own, in a loop of its own.
    """

    def __init__(self, addresses: str | Iterable[str], *, timeout: float = 5.0, retry: RetryPolicy | None = None) -> None:
        self._addresses = parse_addresses(addresses)
        self._timeout = seconds(timeout)
        self._retry = retry or RetryPolicy()
        self._place = Place.named("default")
        self._nodes = Nodes(self._addresses, self._retry, random.Random())
        self._homes: list[Home] = []
        self._cluster_id = b""
        self._closed = False
        self._made_at = made_at()

    async def cluster_status(self, *, timeout: float | None = None) -> dict[str, Any]:
        """The cluster and its nodes as the node that answers sees them."""
        return await self._run(verbs.cluster_status(), timeout)

    async def preference_list(self, key: Key, *, bucket: str | bytes = "default", timeout: float | None = None) -> dict[str, Any]:
        """The nodes that hold the key, and those that stand in for them, in order."""
        return await self._run(verbs.preference_list(Place.named(bucket), key), timeout)

    async def stats(self, *, timeout: float | None = None) -> dict[str, Any]:
        """Counts of the node that answers, since its start, by name."""
        return await self._run(verbs.stats(), timeout)

    async def close(self) -> None:
        """Close the connections. Calls under way in other tasks end with ConnectionFailed; later ones raise RuntimeError."""
        self._closed = True
        ended = [home.end() for home in self._take_homes()]
        for events in ended:
            for event in events:
                await event.wait()

    def __del__(self) -> None:
        if getattr(self, "_closed", True):
            return
        self._closed = True
        homes = self._take_homes()
        if any(home.used and home.pid == os.getpid() for home in homes):
            warn_unclosed(self, self._made_at)
        for home in homes:
            home.drop()

    def _take_homes(self) -> list[Home]:
        homes, self._homes = self._homes, []
        return homes

    async def __aenter__(self) -> AsyncClient:
        self._here()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({','.join(self._addresses)!r})"

    async def _run(self, verb: Verb[T], timeout: float | None) -> T:
        home = self._here()
        loop = home.loop
        deadline = loop.now() + (self._timeout if timeout is None else seconds(timeout))
        asked: set[str] = set()
        return await verbs.run_async(verb, lambda request: self._call(home, request, deadline, asked))

    async def _call(self, home: Home, request: Request, deadline: float, asked: set[str]) -> Message:
        """The reply to one request, however many attempts it takes. Raises its final error. `asked`: nodes that answered this verb before."""
        loop = home.loop
        if not request.elsewhere:
            asked.clear()
        order = [address for address in self._nodes.order(loop.now()) if address not in asked]
        attempts = Attempts(request, order, self._retry, deadline, random.random())
        revived: set[str] = set()
        while True:
            attempt = attempts.next(loop.now())
            if attempt.pause_s:
                with suppress(TimeoutError):
                    await loop.until(loop.now() + attempt.pause_s, loop.event().wait, home.hurry)
            address, call = attempt.address, Call(loop.event())
            try:
                reply = await self._attempt(home, request, attempt, call)
            except DynamoError as error:
                if self._closed:
                    raise ConnectionFailed("the client was closed", maybe_applied=attempts.may_be_applied(error)) from None
                # A connection that served before may have died of a restart of its node long ago; that says nothing about the node now.
                stale = call.used and isinstance(error, ConnectionFailed) and address not in revived
                if stale:
                    revived.add(address)
                elif not isinstance(error, ValueTooLarge):  # which says nothing about the node: nothing was sent
                    self._nodes.failed(address, loop.now())
                attempts.failed(address, error, stale=stale)
                continue
            if attempts.answered(address, reply):
                self._nodes.succeeded(address)
                asked.add(address)
                return reply
            if not attempts.was_busy:
                self._nodes.failed(address, loop.now())

    async def _attempt(self, home: Home, request: Request, attempt: Attempt, call: Call) -> Message:
        """Ask one node once, within the time of the attempt."""
        loop = home.loop
        now = loop.now()
        until = now + attempt.wait_s

        async def ask() -> Message:
            channel = await self._channel(home, attempt.address, min(until, now + attempt.dial_s))
            return await channel.exchange(request, attempt.time_ms, call)

        try:
            return await loop.until(until, ask, home.hurry)
        except DynamoError:
            raise
        except TimeoutError:
            channel = home.channels.get(attempt.address)
            if channel is not None:
                channel.timed_out(call)
            raise Timeout(f"{attempt.address} did not answer in time", maybe_applied=call.sent) from None

    async def _channel(self, home: Home, address: str, until: float) -> Channel:
        """The connection to a node, opened by one task for all that want it. Raises what opening it raises."""
        channel = home.channels.get(address)
        if channel is None or not channel.usable():
            async with home.dialling.setdefault(address, home.loop.lock()):
                channel = home.channels.get(address)
                if channel is None or not channel.usable():
                    if self._closed:
                        raise ConnectionFailed("the client was closed")
                    before, channel = channel, await Channel.open(address, self._cluster_id, home.loop, until)
                    home.used = True
                    channel.replaces(before)
                    home.channels[address] = channel
                    self._check(channel)
        return channel

    def _check(self, channel: Channel) -> None:
        """A new connection must be one to the cluster of the others, and come before the end of the client."""
        known = self._cluster_id = self._cluster_id or channel.cluster_id
        if self._closed:
            channel.end(ConnectionFailed("the client was closed"))
        elif (error := same_cluster(channel.address, channel.cluster_id, known)) is not None:
            channel.end(error)
            raise error

    def _here(self) -> Home:
        """The home of the loop that runs. Those of loops that have ended, and of another process, are given up."""
        if self._closed:
            raise RuntimeError("the client is closed")
        loop = running()
        identity, pid = loop.identity(), os.getpid()
        for home in self._homes:
            if home.identity is identity:
                if home.pid != pid:
                    raise RuntimeError("this event loop is a copy, by a fork, of one that runs in the parent; start another loop in the child")
                return home
        found = Home(loop, identity, pid)
        for home in list(self._homes):
            if home.over():
                home.drop()
                found.used |= home.used and home.pid == pid
                with suppress(ValueError):  # another thread was faster
                    self._homes.remove(home)
        self._homes.append(found)
        return found


__all__ = ["AsyncBucket", "AsyncClient"]
