"""Node: one member of a cluster inside a Trio program. The composing driver: replica + storage + net, and no policy of its own.

    async with dynamo.Node(dynamo.NodeConfig(data="n1", listen="127.0.0.1:0")) as node:
        await node.ready()

Starting goes in this order, and each step before the last may fail with a typed error: open and lock the data directory, bind the
listening address, learn the cluster (from the directory, from `join`, or found one), begin a new incarnation, make identity, membership and
actor durable, run the reactor. `ready` then waits until the reachable members know this node. Leaving the block drains and marks the stop
as clean.
"""

from __future__ import annotations

import logging
import os
import time
from random import Random
from types import TracebackType
from typing import Any

import trio

from dynamo.config import NodeConfig
from dynamo.errors import ConfigError, ConnectionFailed, DynamoError
from dynamo.membership.members import Membership
from dynamo.model.member import LEFT, NORMAL, Member
from dynamo.model.messages import DURABILITIES, ROLE_PEER, NodeId
from dynamo.net import identity, sockets, startup
from dynamo.net.admin import Desk
from dynamo.net.commits import InlineCommits
from dynamo.net.reactor import Reactor
from dynamo.net.spread import Spread
from dynamo.replication import ActorLease, Replica, Settings
from dynamo.replication.handoff import PendingHandoff
from dynamo.storage.commit_thread import CommitThread
from dynamo.storage.data_directory import DataDirectory
from dynamo.wire.hello import FORMAT_MAX, TREE_SHAPE, Hello

DRAIN_S = 5.0
HURRIED_DRAIN_S = 1.0  # when the program around the node is being cancelled
RETURN_TIMEOUT_S = 0.0  # a node that has its cluster asks `join` once, to see whether it is still the same

_log = logging.getLogger("dynamo.node")


class Node:
    """A member of a cluster. Raises on entering: ConfigError (directory, address, another cluster), ConnectionFailed (nobody to join)."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self.address = ""
        self.name = ""
        self._random = Random(int.from_bytes(os.urandom(32), "big"))
        self._failure: Exception | None = None
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
                self._reactor = self._build(listener)
            except BaseException:
                listener.close()
                raise
        except BaseException:
            self._directory.close(self._directory.clean)  # nothing was minted, so it is as clean as it was
            raise
        self._manager = trio.open_nursery()
        self._nursery = await self._manager.__aenter__()
        self._nursery.start_soon(self._run)
        self._nursery.start_soon(self._be_known)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        hurried = isinstance(error, trio.Cancelled)
        try:
            if self._failure is None:
                with trio.CancelScope(shield=hurried):
                    await self._reactor.drain(HURRIED_DRAIN_S if hurried else DRAIN_S)
        finally:
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
        core = self._replica.core
        return {
            **self._reactor.counters,
            **core.counters,
            "requests_pending": len(core.pending),
            "members": len(self._membership.members),
            "ring_number": core.ring_number,
        }

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
        membership.start(
            self.name, self.address, self._actor.actor, self._actor.lease_end, FORMAT_MAX, zone=config.zone, capacity=capacity, status=NORMAL
        )
        membership.administer(
            membership.node_id,
            zone=config.zone if config.zone or "zone" in config.explicit else None,
            capacity=capacity if config.capacity != 1.0 or "capacity" in config.explicit else None,
        )
        identity.save(self._directory.engine, membership.node_id, self._cluster, membership.encode(), self._actor.encode())

    def _build(self, listener: Any) -> Reactor:
        """Put the parts together."""
        engine, cluster, membership = self._directory.engine, self._cluster, self._membership
        self._replica = replica = Replica(
            Settings(),
            membership.node_id,
            cluster,
            membership,
            self._actor,
            engine.read,
            lambda start, stop, limit: engine.scan("objects", start, stop, limit),
            self._random,
            lambda: time.time_ns() // 1000,
            DURABILITIES[self.config.durability],
        )
        self._spread = Spread(membership)
        threaded = self.config.durability == "synced"
        greeting = Hello(
            cluster_id=cluster.cluster_id,
            partitions=cluster.partitions,
            tree_shape=TREE_SHAPE,
            role=ROLE_PEER,
            node_id=membership.node_id,
            incarnation=membership.local.incarnation,
            boot_nonce=os.urandom(16),
            address=self.address,
        )
        desk = Desk(cluster, membership, lambda: replica.core.ring, self._reachable, lambda node: self._reactor.peers.connected(node))
        return Reactor(
            replica,
            commits=lambda notify: CommitThread(engine, notify) if threaded else InlineCommits(engine),
            refresh=engine.refresh,
            listener=listener,
            greeting=greeting,
            secret=cluster.secret,
            known_lease=self._known_lease,
            address_of=self._address_of,
            admin=desk.answer,
            idle=self._owes_nothing,
            lease_heard=self._lease_heard,
            follow=self._follow,
            random=self._random,
        )

    # --- running ------------------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """The reactor; if it fails the node is no more, and the block around it ends with that error."""
        try:
            await self._reactor.run(self._nursery)
        except Exception as error:
            self._failure = error
            self._nursery.cancel_scope.cancel()

    async def _be_known(self) -> None:
        me = self._membership.local
        others = [m for m in self._membership.members.values() if m.node_id != me.node_id and m.status != LEFT]
        try:
            await startup.be_known(others, me, self.cluster_id, self._reactor.refusals.get)
        except ConfigError as error:
            self._not_known = error
        self._known.set()

    def _follow(self, now: float) -> None:
        """In every step: if the membership changed, connect to whoever is new and pass the news on."""
        if self._spread.stale:
            others, messages = self._spread.look()
            for node in others:
                self._reactor.peers.want(node, now)
            self._reactor.send(messages, now)

    def _owes_nothing(self) -> bool:
        """Whether every request that was taken is answered; asked while stopping. What goes on behind an answer may be cut off."""
        core = self._replica.core
        owing = [fold for fold in core.pending.values() if not isinstance(fold, PendingHandoff) and not getattr(fold, "answered", False)]
        return not owing and not core.waiting_for_actor

    def _reachable(self, node: NodeId) -> bool:
        return self._reactor.peers.connected(node) and self._replica.core.liveness.up(node)

    def _address_of(self, node: NodeId) -> str | None:
        member = self._membership.members.get(node)
        return member.address if member is not None and member.status != LEFT and member.address else None

    def _known_lease(self, node: NodeId) -> tuple[int, int]:
        member = self._membership.members.get(node)
        return (member.actor, member.lease_end) if member is not None else (0, 0)

    def _lease_heard(self, actor: int, lease_end: int) -> None:
        """A peer knows a longer lease of our actor than we do: the directory is an old copy, and the actor must not be used again."""
        core = self._replica.core
        if actor == core.actor.actor and lease_end > core.actor.lease_end and core.actor.staged is None:
            _log.warning("peers know more of this node than its data directory, which must be an old copy; starting a new actor")
            core.actor.renew(self._random)
            core.stage_actor()

    def _close(self) -> None:
        clean = self._reactor.close() and self._failure is None
        self._directory.close(clean and self._actor.staged is None)
