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
import socket
from collections.abc import Callable
from random import Random
from types import TracebackType
from typing import Any, TypeVar

import trio

from dynamo.client import verbs
from dynamo.client.addresses import seconds
from dynamo.client.local import LocalCalls
from dynamo.client.verbs import Place, Verb
from dynamo.client.verbs_async import AsyncVerbsOfDefault
from dynamo.config import NodeConfig
from dynamo.errors import ConfigError, ConnectionFailed, DynamoError
from dynamo.membership.members import Membership
from dynamo.model.member import JOINING, LEFT, NORMAL, Member
from dynamo.model.messages import DURABILITIES, NodeId
from dynamo.net import identity, sockets, startup
from dynamo.net.assembly import Assembly
from dynamo.net.commits import Commits, InlineCommits
from dynamo.replication import ActorLease
from dynamo.storage.commit_thread import CommitThread
from dynamo.storage.data_directory import DataDirectory
from dynamo.wire.hello import FORMAT_MAX

DRAIN_S = 5.0
HURRIED_DRAIN_S = 1.0  # when the program around the node is being cancelled
VERB_TIMEOUT_S = 5.0  # of a verb that is called without one
RETURN_TIMEOUT_S = 0.0  # a node that has its cluster asks `join` once, to see whether it is still the same

T = TypeVar("T")
_log = logging.getLogger("dynamo.node")


class Node(AsyncVerbsOfDefault):
    """A member of a cluster, with the verbs of `AsyncClient` for the program it is in: they reach its replica without a socket, from any task of
    this Trio run. Raises on entering: ConfigError (directory, address, another cluster), ConnectionFailed (nobody to join)."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self._place = Place.named("default")
        self._calls: LocalCalls | None = None
        self.address = ""
        self.name = ""
        self._random = Random(int.from_bytes(os.urandom(32), "big"))
        self._failure: Exception | None = None
        # Shielded: a program that is cancelled around its node still gets a drained one, which needs the reactor.
        self._scope = trio.CancelScope(shield=True)
        self._known = trio.Event()
        self._not_known: DynamoError | None = None

    async def __aenter__(self) -> Node:
        self._directory = DataDirectory(self.config.data, self.config.durability)
        try:
            listener = sockets.listen(self.config.listen)
            try:
                self.address = sockets.advertised(self.config.listen, listener)
                self.name = self.config.name or self.address.replace(":", "-").strip("[]")
                await self._learn()
                self._begin()
                self._parts = self._assemble(listener)
            except BaseException:
                listener.close()
                raise
        except BaseException:
            self._directory.close(self._directory.clean)  # nothing was minted, so it is as clean as it was
            raise
        self._calls = LocalCalls(self._parts.reactor.open_local)
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        self._nursery.start_soon(self._react)
        self._nursery.start_soon(self._be_known)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        hurried = isinstance(error, trio.Cancelled)
        try:
            if self._failure is None:
                with trio.CancelScope(shield=hurried):
                    await self._parts.reactor.drain(HURRIED_DRAIN_S if hurried else DRAIN_S)
        finally:
            self._scope.cancel()
            self._nursery.cancel_scope.cancel()
            try:
                await self._manager.__aexit__(None, None, None)
            finally:
                self._close()
        if self._failure is not None:
            raise self._failure

    async def ready(self) -> None:
        """Wait until this node serves and the members that can be reached know it. Raises ConfigError where they refuse it."""
        await self._known.wait()
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
        return self._parts.metrics()

    def __repr__(self) -> str:
        return f"<Node {self.name} at {self.address}>" if self.address else f"Node({self.config!r})"

    async def _run(self, verb: Verb[T], timeout: float | None) -> T:
        calls, deadline = self._calls, trio.current_time() + (VERB_TIMEOUT_S if timeout is None else seconds(timeout))
        if calls is None:
            raise RuntimeError("the node is not running; its verbs work within `async with`")
        return await verbs.run_async(verb, lambda request: calls.call(request, deadline))

    # --- starting -----------------------------------------------------------------------------------------------------------------

    async def _learn(self) -> None:
        """Learn who this node is, which cluster it belongs to and who else does."""
        config, stored = self.config, identity.load(self._directory.engine)
        node_id = stored.node_id if stored is not None else os.urandom(identity.NODE_ID_BYTES)
        self._membership = Membership(node_id)
        self._stored_actor = stored.actor if stored is not None else None
        others = [address for address in config.join if address not in (config.listen, self.address)]
        members: list[Member] = []
        if stored is not None:
            self._cluster = stored.cluster
            if stored.membership is not None:
                self._membership.load(stored.membership)
            if others:
                try:
                    _, members = await startup.join(others, node_id, self.name, self.address, RETURN_TIMEOUT_S, self._cluster.cluster_id)
                except ConnectionFailed as error:
                    _log.info("returning without an answer from `join`: %s", error)
        elif others:
            self._cluster, members = await startup.join(others, node_id, self.name, self.address, config.join_timeout_s)
        else:
            self._cluster = startup.found(config, os.urandom)
        startup.check_asked(config, self._cluster)
        self._membership.merge_all(members)

    def _begin(self) -> None:
        """Begin a new incarnation, durable before anybody can see it."""
        config, membership = self.config, self._membership
        self._actor = ActorLease.load(self._stored_actor, self._directory.clean, self._random)
        known = membership.members.get(membership.node_id)
        if known is not None and known.status == LEFT:
            raise ConfigError(f"{config.data}: this node left its cluster for good; give an empty data directory to join anew")
        capacity = startup.thousandths(config.capacity)
        membership.start(self.name, self.address, self._actor.actor, self._actor.lease_end, FORMAT_MAX, zone=config.zone, capacity=capacity, status=NORMAL)
        membership.administer(
            membership.node_id,
            status=NORMAL if membership.local.status == JOINING else None,
            zone=config.zone if config.zone or "zone" in config.explicit else None,
            capacity=capacity if config.capacity != 1.0 or "capacity" in config.explicit else None,
        )
        identity.save(self._directory.engine, membership.node_id, self._cluster, membership.encode(), self._actor.encode())

    def _assemble(self, listener: socket.socket) -> Assembly:
        engine, durability = self._directory.engine, self.config.durability

        def commits(notify: Callable[[], None]) -> Commits:
            return CommitThread(engine, notify) if durability == "synced" else InlineCommits(engine)

        return Assembly(self._cluster, self._membership, self._actor, engine, commits, DURABILITIES[durability], listener, self._random)

    # --- running ------------------------------------------------------------------------------------------------------------------

    async def _react(self) -> None:
        """The reactor; if it fails the node is no more, and the block around it ends with that error."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                try:
                    await self._parts.reactor.run(nursery)
                except Exception as error:
                    self._failure = error
                    nursery.cancel_scope.cancel()
        if self._failure is not None:
            self._nursery.cancel_scope.cancel()

    async def _be_known(self) -> None:
        me = self._membership.local
        others = [m for m in self._membership.members.values() if m.node_id != me.node_id and m.status != LEFT]
        try:
            await startup.be_known(others, me, self.cluster_id, self._parts.reactor.refusals.get)
        except ConfigError as error:
            self._not_known = error
        self._known.set()

    def _close(self) -> None:
        clean = self._parts.close() and self._failure is None
        self._directory.close(clean)
