"""The asynchronous client, for Trio and for asyncio: one connection to each node, with many requests in flight.

It runs on whichever loop its caller runs on, and belongs to one run of one loop at a time. What to try, and when to give up, is decided in `core`,
as for the blocking client; this is the other shell that does it. Any request may be cancelled at any time: its reply, if one still comes, is
read and dropped.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager, suppress
from types import TracebackType
from typing import Any, TypeVar

from dynamo.client import verbs
from dynamo.client.addresses import parse_addresses, seconds
from dynamo.client.channel import Call, Channel
from dynamo.client.core import Attempt, Attempts, Nodes, Request, RetryPolicy
from dynamo.client.greeting import same_cluster
from dynamo.client.loops import Loop, running
from dynamo.client.verbs import Key, Place, Verb
from dynamo.client.verbs_async import AsyncBucket, AsyncVerbsOfDefault
from dynamo.errors import ConnectionFailed, DynamoError, Timeout, ValueTooLarge
from dynamo.model.messages import Message

T = TypeVar("T")


class AsyncClient(AsyncVerbsOfDefault):
    """A cluster reached over the network: `AsyncClient("host:port,host:port")`, with the verbs of `Client` as coroutines.

        async with dynamo.AsyncClient("127.0.0.1:7379") as client:
            await client.set("alice", b"1 book")

    `timeout` in seconds bounds each call as a whole, as in `Client`. Nothing is sent before the first verb. Tasks may share it, threads may not.
    """

    def __init__(self, addresses: str | Iterable[str], *, timeout: float = 5.0, retry: RetryPolicy | None = None) -> None:
        self._addresses = parse_addresses(addresses)
        self._timeout = seconds(timeout)
        self._retry = retry or RetryPolicy()
        self._place = Place.named("default")
        self._nodes = Nodes(self._addresses, self._retry, random.Random())
        self._channels: dict[str, Channel] = {}
        self._dialling: dict[str, AbstractAsyncContextManager[object]] = {}
        self._home: object = None
        self._cluster_id = b""
        self._closed = False

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
        channels = list(self._channels.values())
        for channel in channels:
            channel.end(ConnectionFailed("the client was closed"))
        for channel in channels:
            await channel.ended.wait()

    async def __aenter__(self) -> AsyncClient:
        self._here()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({','.join(self._addresses)!r})"

    async def _run(self, verb: Verb[T], timeout: float | None) -> T:
        loop = self._here()
        deadline = loop.now() + (self._timeout if timeout is None else seconds(timeout))
        asked: set[str] = set()
        return await verbs.run_async(verb, lambda request: self._call(loop, request, deadline, asked))

    async def _call(self, loop: Loop, request: Request, deadline: float, asked: set[str]) -> Message:
        """The reply to one request, however many attempts it takes. Raises its final error. `asked`: nodes that answered this verb before."""
        if not request.elsewhere:
            asked.clear()
        order = [address for address in self._nodes.order(loop.now()) if address not in asked]
        attempts = Attempts(request, order, self._retry, deadline, random.random())
        revived: set[str] = set()
        while True:
            attempt = attempts.next(loop.now())
            if attempt.pause_s:
                with suppress(TimeoutError):
                    await loop.until(loop.now() + attempt.pause_s, loop.event().wait)
            address, call = attempt.address, Call(loop.event())
            try:
                reply = await self._attempt(loop, request, attempt, call)
            except DynamoError as error:
                if self._closed:
                    raise
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

    async def _attempt(self, loop: Loop, request: Request, attempt: Attempt, call: Call) -> Message:
        """Ask one node once, within the time of the attempt."""

        now = loop.now()
        until = now + attempt.wait_s

        async def ask() -> Message:
            channel = await self._channel(loop, attempt.address, min(until, now + attempt.dial_s))
            return await channel.exchange(request, attempt.time_ms, call)

        try:
            return await loop.until(until, ask)
        except DynamoError:
            raise
        except TimeoutError:
            channel = self._channels.get(attempt.address)
            if channel is not None:
                channel.timed_out(call)
            raise Timeout(f"{attempt.address} did not answer in time", maybe_applied=call.sent) from None

    async def _channel(self, loop: Loop, address: str, until: float) -> Channel:
        """The connection to a node, opened by one task for all that want it. Raises what opening it raises."""
        channel = self._channels.get(address)
        if channel is None or not channel.usable():
            async with self._dialling.setdefault(address, loop.lock()):
                channel = self._channels.get(address)
                if channel is None or not channel.usable():
                    before, channel = channel, await Channel.open(address, self._cluster_id, loop, until)
                    channel.replaces(before)
                    self._channels[address] = channel
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

    def _here(self) -> Loop:
        """The loop that runs. What an earlier one has left behind is forgotten: its end broke every connection."""
        if self._closed:
            raise RuntimeError("the client is closed")
        loop = running()
        home = loop.identity()
        if home is not self._home:
            if any(channel.broken is None for channel in self._channels.values()):
                raise RuntimeError("an AsyncClient belongs to one event loop at a time; make one for each")
            self._home, self._channels, self._dialling = home, {}, {}
        return loop


__all__ = ["AsyncBucket", "AsyncClient"]
