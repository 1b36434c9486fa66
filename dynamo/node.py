"""Node: one member of a cluster inside a Trio program. The composing driver: replica + storage + net, and no policy of its own.

    async with dynamo.Node(dynamo.NodeConfig(data="n1", listen="127.0.0.1:0")) as node:
        await node.ready()
        await node.set("alice", b"1 book")

Starting goes in this order, and each step before the last may fail with a typed error: open and lock the data directory, bind the
listening address, learn the cluster (from the directory, from `join`, or found one), begin a new incarnation, make identity, membership and
actor durable, run the reactor. `ready` then waits until the reachable members know this node. Leaving the block drains and marks the stop
as clean.
"""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, closing
from functools import partial
from random import Random
from types import TracebackType
from typing import Any, TypeVar

import trio

from dynamo.client import verbs
from dynamo.client.addresses import seconds
from dynamo.client.local import LocalCalls
from dynamo.client.verbs import Place, Verb
from dynamo.client.verbs_async import AsyncVerbsOfDefault
from dynamo.config import NodeConfig, split_address
from dynamo.errors import ConfigError, ConnectionFailed, DynamoError
from dynamo.membership.joining import hints
from dynamo.membership.members import Membership
from dynamo.membership.ring import ring_members
from dynamo.model.member import JOINING, LEFT, NORMAL, Member
from dynamo.model.messages import DURABILITIES, NodeId
from dynamo.net import identity, sockets, startup
from dynamo.net.assembly import Assembly
from dynamo.net.commits import BufferedCommits, Commits, InlineCommits
from dynamo.net.watch import watch
from dynamo.replication import ActorLease
from dynamo.replication.standings import Standings
from dynamo.storage.buffer import WriteBuffer
from dynamo.storage.commit_thread import CommitThread
from dynamo.storage.data_directory import DataDirectory
from dynamo.storage.flushing import Flushing
from dynamo.wire.hello import FORMAT_MAX, cluster_text

DRAIN_S = 5.0
HURRIED_DRAIN_S = 1.0  # when the program around the node is being cancelled
VERB_TIMEOUT_S = 5.0  # of a verb that is called without one
RETURN_TIMEOUT_S = 0.0  # a node that has its cluster asks `join` once to see whether it is the same; it goes on asking while it runs

T = TypeVar("T")
_log = logging.getLogger("dynamo.node")


class Node(AsyncVerbsOfDefault):
    """A member of a cluster, with the verbs of `AsyncClient` for the program it is in: they reach its replica without a socket, from any task of
    this Trio run. It is entered once. Raises on entering: ConfigError (directory, address, another cluster), ConnectionFailed (nobody to join),
    RuntimeError on another loop than Trio's; nothing is held then, and it may be entered again."""

    def __init__(self, config: NodeConfig) -> None:
        if not isinstance(config, NodeConfig):
            raise TypeError(f"a Node is made of a NodeConfig, as in Node(NodeConfig(data=...)), not of {type(config).__name__}")
        self.config = config
        self._place = Place.named("default")
        self._calls: LocalCalls | None = None
        self.address = ""
        self.name = ""
        self._random = Random(int.from_bytes(os.urandom(32), "big"))
        self._failure: Exception | None = None
        # Shielded: a program that is cancelled around its node still gets a drained one, which needs the reactor.
        self._scope = trio.CancelScope(shield=True)
        self._introduction = trio.CancelScope()
        self._known = trio.Event()
        self._not_known: DynamoError | None = None
        self._entered = False
        self._closed = False
        self._ended = trio.Event()  # the reactor has
        self._stopped = trio.Event()  # all is closed

    async def __aenter__(self) -> Node:
        if not trio.lowlevel.in_trio_task():
            raise RuntimeError("a Node runs on Trio: enter it within trio.run; a program on asyncio uses AsyncClient, and `dynamo serve` beside it")
        if self._closed:
            raise RuntimeError("the node is closed; make another")
        if self._entered:
            raise RuntimeError("the node was entered already; make another for another address and directory")
        self._entered = True
        try:
            await self._start()
        except BaseException:
            self._entered = False
            raise
        self._nursery.start_soon(self._react)
        self._nursery.start_soon(self._be_known)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        hurried = isinstance(error, trio.Cancelled)
        try:
            with trio.CancelScope(shield=hurried):
                await self._stop(HURRIED_DRAIN_S if hurried else DRAIN_S)
        finally:
            self._nursery.cancel_scope.cancel()
            await self._manager.__aexit__(None, None, None)
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """Stop as leaving the block does: answer what is under way, and let go of the directory and the address. From any task of this Trio run; the
        block goes on, and what it asks of the node from now on raises RuntimeError. A second call waits for the first."""
        if self._entered and self._calls is None:
            raise RuntimeError("the node is starting; to stop it now, cancel the task that enters it")
        if self._entered:
            await self._stop(DRAIN_S)
        self._closed = True

    async def ready(self) -> None:
        """Wait until this node serves and the members that can be reached know it. Raises ConfigError where they refuse it."""
        self._running()
        await self._known.wait()
        self._running()
        if self._not_known is not None:
            raise self._not_known

    @property
    def cluster_id(self) -> bytes:
        """16 bytes."""
        return self._cluster.cluster_id

    @property
    def node_id(self) -> NodeId:
        """16 bytes."""
        return self._membership.node_id

    def metrics(self) -> dict[str, Any]:
        """Counts since the start, by name."""
        self._running()
        return self._parts.metrics()

    def __repr__(self) -> str:
        return f"<Node {self.name} at {self.address}>" if self.address else f"Node({self.config!r})"

    async def _run(self, verb: Verb[T], timeout: float | None) -> T:
        calls = self._running()
        deadline = trio.current_time() + (VERB_TIMEOUT_S if timeout is None else seconds(timeout))
        return await verbs.run_async(verb, lambda request: calls.call(request, deadline))

    def _running(self) -> LocalCalls:
        """The way to its replica. Raises RuntimeError before it was entered, and once it is closed."""
        if self._closed:
            raise RuntimeError("the node is closed")
        if self._calls is None:
            raise RuntimeError("the node is not running; use it within `async with`")
        return self._calls

    # --- starting -----------------------------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def _start(self) -> None:
        """Everything up to the first task. What was opened on the way to a failure is closed."""
        with ExitStack() as opened:
            self._directory = opened.enter_context(_Unchanged(DataDirectory(self.config.data, self.config.durability)))
            listener = opened.enter_context(closing(sockets.listen(self.config.listen)))
            self.address = sockets.advertised(self.config.listen, listener, self.config.advertise)
            self._loopback = sockets.is_loopback(self.address) or (self.config.advertise is None and sockets.is_loopback(sockets.bound(listener)))
            self.name = self.config.name or _name_of(self.address)
            await self._learn()
            self._begin()
            self._parts = opened.enter_context(closing(self._assemble(listener)))
            calls = LocalCalls(self._parts.reactor.open_local)
            self._manager = trio.open_nursery()
            self._nursery = await self._manager.__aenter__()
            self._calls = calls
            opened.pop_all()

    async def _learn(self) -> None:
        """Learn who this node is, which cluster it belongs to and who else does."""
        config, stored = self.config, identity.load(self._directory.engine)
        node_id = stored.node_id if stored is not None else os.urandom(identity.NODE_ID_BYTES)
        self._membership = Membership(node_id)
        self._stored_actor = stored.actor if stored is not None else None
        self._standings = Standings()
        others = [address for address in config.join if address not in (config.listen, self.address)]
        members: list[Member] = []
        if stored is not None:
            self._cluster = stored.cluster
            if stored.membership is not None:
                self._membership.load(stored.membership)
            self._standings = self._stored_standings(stored)
            if others:
                try:
                    _, members = await startup.join(others, node_id, self.name, self.address, RETURN_TIMEOUT_S, self._cluster.cluster_id)
                except ConnectionFailed as error:
                    _log.info("returning without an answer from `join`: %s", error)
                except ConfigError as error:
                    raise ConfigError(f"the data in {config.data} cannot go on with `join`: {error}") from None
        elif others:
            self._cluster, members = await startup.join(others, node_id, self.name, self.address, config.join_timeout_s)
            told = Membership(node_id)
            told.merge_all(members)  # several nodes may have told of each
            self._standings = Standings(ring_members(m for m in told.members.values() if m.node_id != node_id))  # a newcomer holds nothing
        else:
            self._cluster = startup.found(config, os.urandom)
            _log.info("founding cluster %s", cluster_text(self._cluster.cluster_id))
        startup.check_asked(config, self._cluster)
        self._warn_of_loopback(members)
        self._membership.merge_all(members)

    def _stored_standings(self, stored: identity.Stored) -> Standings:
        """What the node was to its partitions when it stopped; a directory of an earlier build holds what its node owned."""
        if stored.standings is not None:
            return Standings.decode(stored.standings)
        return Standings(ring_members(self._membership.members.values()))

    def _warn_of_loopback(self, members: Iterable[Member]) -> None:
        """Other machines that are told a loopback address meet themselves there."""
        remote = [member.address for member in members if member.status != LEFT and member.address and sockets.is_remote(member.address)]
        if remote and self._loopback:
            _log.warning(
                "this node tells others that it is at %s, where those on other machines, such as %s, cannot reach it; see `listen` and `advertise`",
                self.address, remote[0],
            )  # fmt: skip

    def _begin(self) -> None:
        """Begin a new incarnation, durable before anybody can see it."""
        config, membership = self.config, self._membership
        self._actor = ActorLease.load(self._stored_actor, self._directory.clean, self._random)
        known = membership.members.get(membership.node_id)
        if known is not None and known.status == LEFT:
            raise ConfigError(f"{config.data}: this node left its cluster for good; give an empty data directory to join anew")
        capacity = startup.thousandths(config.capacity)
        self._asked = hints(config.join, membership)
        membership.start(self.name, self.address, self._actor.actor, self._actor.lease_end, FORMAT_MAX, zone=config.zone, capacity=capacity, status=NORMAL)
        membership.administer(
            membership.node_id,
            status=NORMAL if membership.local.status == JOINING else None,
            zone=config.zone if config.zone or "zone" in config.explicit else None,
            capacity=capacity if config.capacity != 1.0 or "capacity" in config.explicit else None,
        )
        identity.save(self._directory.engine, membership.node_id, self._cluster, membership.encode(), self._actor.encode(), self._standings.encode())

    def _assemble(self, listener: socket.socket) -> Assembly:
        engine, durability = self._directory.engine, self.config.durability

        def commits(notify: Callable[[], None]) -> Commits:
            if isinstance(engine, WriteBuffer):
                writer = CommitThread(engine.engine, notify)
                return BufferedCommits(partial(Flushing, engine), writer, engine.engine, trio.current_time)
            return CommitThread(engine, notify) if durability == "synced" else InlineCommits(engine)

        return Assembly(self._cluster, self._membership, self._actor, engine, commits, DURABILITIES[durability], listener, self._random, self._standings,
                        self._asked)  # fmt: skip

    # --- running ------------------------------------------------------------------------------------------------------------------

    async def _react(self) -> None:
        """The reactor; if it fails the node is no more, and the block around it ends with that error."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(watch, self._directory.check)
                    try:
                        await self._parts.reactor.run(nursery)
                    except Exception as error:
                        self._failure = error
                        nursery.cancel_scope.cancel()
        finally:
            self._ended.set()
        if self._failure is not None:
            self._nursery.cancel_scope.cancel()

    async def _be_known(self) -> None:
        me = self._membership.local
        others = [m.node_id for m in self._membership.members.values() if m.node_id != me.node_id and m.status != LEFT]
        try:
            with self._introduction:
                await startup.be_known(others, self._membership, self.cluster_id, self._parts.reactor.refusals.get)
        except ConfigError as error:
            self._not_known = error
        self._known.set()

    async def _stop(self, drain_s: float) -> None:
        """Drain, end the two tasks, close everything; once. Whoever comes second waits for it, the cancelled too: it takes no longer than `drain_s`."""
        if self._closed:
            with trio.CancelScope(shield=True):
                await self._stopped.wait()
            return
        self._closed = True
        try:
            if self._failure is None:
                await self._parts.reactor.drain(drain_s)
        finally:
            self._introduction.cancel()
            self._scope.cancel()
            with trio.CancelScope(shield=True):
                await self._ended.wait()
            try:
                clean = self._parts.close() and self._failure is None
                self._directory.close(clean)
            finally:
                self._stopped.set()


class _Unchanged(AbstractContextManager[DataDirectory]):
    """Closes a directory again if the start fails: nothing was minted, so it is as clean as it was."""

    def __init__(self, directory: DataDirectory) -> None:
        self._directory = directory

    def __enter__(self) -> DataDirectory:
        return self._directory

    def __exit__(self, *_: object) -> None:
        self._directory.close(self._directory.clean)


def _name_of(address: str) -> str:
    """A name for a node that was given none: letters, digits and dashes of its address."""
    host, port = split_address(address)
    return f"{re.sub('[^A-Za-z0-9_.-]+', '-', host).strip('-')}-{port}"
