"""Replica and reactor of one node put together, with the few decisions that need both: who is reachable, what a changed membership calls for,
whether an old copy of the data directory was started, whether all is answered. `dynamo.node` owns the lifetime around it."""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterable
from random import Random
from typing import Any, Literal, Protocol

from dynamo._core import CORE
from dynamo.membership.joining import Seeking, held
from dynamo.membership.members import Membership
from dynamo.model.cluster import Cluster
from dynamo.model.group import Group
from dynamo.model.member import LEFT
from dynamo.model.messages import ROLE_PEER, NodeId
from dynamo.net import identity
from dynamo.net.admin import Desk
from dynamo.net.commits import Commits
from dynamo.net.reactor import Reactor
from dynamo.net.spread import Spread
from dynamo.replication import ActorLease, Replica, Settings
from dynamo.replication.rows import Read
from dynamo.replication.standings import Standings
from dynamo.wire.hello import CAPABILITY_COMPILED, PARTS, TREE_SHAPE, Hello

CONFIRM_TIMEOUT_S = 1.0  # for which a kept actor waits for a peer's word

_log = logging.getLogger("dynamo.node")


class Engine(Protocol):
    """What is needed of a storage engine."""

    @property
    def read(self) -> Read: ...
    def scan(self, table: Literal["objects", "hints", "meta"], start: bytes, stop: bytes | None, limit: int, /) -> list[tuple[bytes, bytes]]: ...
    def count(self, table: Literal["objects", "hints"], /) -> int: ...
    def commit(self, group: Group) -> None: ...
    def refresh(self) -> None: ...


class Assembly:
    """The parts of a node that run."""

    def __init__(
        self,
        cluster: Cluster,
        membership: Membership,
        actor: ActorLease,
        engine: Engine,
        commits: Callable[[Callable[[], None]], Commits],
        durability: int,
        listener: socket.socket,
        random: Random,
        standings: Standings,
        join: Iterable[str] = (),
    ) -> None:
        """The membership has been started: it knows this node's address. `commits(notify)`: see `Reactor`. `join`: addresses to ask while a member
        cannot be reached."""
        self._membership = membership
        self._random = random
        self._engine = engine
        self._spread = Spread(membership)
        self.replica = Replica(
            Settings(),
            membership.node_id,
            cluster,
            membership,
            actor,
            engine.read,
            lambda start, stop, limit: engine.scan("objects", start, stop, limit),
            lambda start, stop, limit: engine.scan("hints", start, stop, limit),
            random,
            lambda: time.time_ns() // 1000,
            durability,
            identity.stored_operations(engine),
            standings,
        )
        core = self.replica.core
        others = [member for member in membership.members.values() if member.node_id != membership.node_id and member.status != LEFT]
        actor.unconfirmed = actor.kept and bool(others)
        self._confirm_by: float | None = None  # in the reactor's time, from its first step on
        desk = Desk(cluster, membership, lambda: core.ring, self._reachable, self._connected, self.metrics, self._recovering)
        self.reactor = Reactor(
            self.replica,
            commits=commits,
            refresh=engine.refresh,
            listener=listener,
            greeting=Hello(
                cluster_id=cluster.cluster_id,
                partitions=cluster.partitions,
                tree_shape=TREE_SHAPE,
                role=ROLE_PEER,
                node_id=membership.node_id,
                incarnation=membership.local.incarnation,
                boot_nonce=os.urandom(16),
                address=membership.local.address,
                capabilities=PARTS | (CAPABILITY_COMPILED if CORE == "compiled" else 0),
            ),
            secret=cluster.secret,
            known_lease=self._known_lease,
            address_of=self._address_of,
            admin=desk.answer,
            idle=self._owes_nothing,
            lease_heard=self._lease_heard,
            follow=self._follow,
            random=random,
        )
        self._seeking = Seeking(join, random)
        self.reactor.timers.at(0.0, self._seek)

    def _seek(self, now: float) -> None:
        """Ask where the members are that cannot be reached, and come back."""
        peers, refusals = self.reactor.peers, self.reactor.refusals
        look = self._seeking.look(now, self._membership, self._connected, lambda node: str(refusals.get(node, "")))
        for address in look.ask:
            peers.ask(address, now)
        if look.complaint:
            _log.warning(look.complaint)
        self.reactor.timers.at(self._seeking.next_deadline, self._seek)

    def _recovering(self, node: NodeId) -> int:
        """Of how many partitions that the node owns it does not hold all yet, as far as is known here."""
        core = self.replica.core
        return core.recovering() if node == self._membership.node_id else core.recovering_peers.get(node, 0)

    def metrics(self) -> dict[str, Any]:
        """Counts since the start, by name; what STATS answers."""
        core = self.replica.core
        return {
            **self.reactor.counters,
            **core.counters,
            "requests_pending": len(core.pending),
            "agreement_age_s": round(self.replica.anti_entropy.agreement_age(core.now), 3),
            "rows": self._engine.count("objects"),
            "hints": self._engine.count("hints"),
            "members": len(self._membership.members),
            "ring_number": core.ring_number,
        }

    def close(self) -> bool:
        """Close everything but the engine, once `Reactor.run` has ended. Returns whether the store is in order: all is on disk, and the actor may go
        on."""
        return self.reactor.close() and self.replica.core.actor.staged is None

    def _follow(self, now: float) -> None:
        """In every step: if the membership changed, connect to whoever is new and pass the news on."""
        if self.replica.core.actor.unconfirmed:
            self._confirm_by = self._confirm_by or now + CONFIRM_TIMEOUT_S
            if now > self._confirm_by:
                self._confirm_by = math.inf
                self._begin_new_actor("no peer has answered yet, so nobody can tell whether the data directory is an old copy; starting a new actor")
        if self._spread.stale:
            others, messages = self._spread.look()
            for node in others:
                self.reactor.peers.want(node, now)
            self.reactor.send(messages, now)

    def _owes_nothing(self) -> bool:
        """Whether every request that was taken is answered; asked while stopping. What goes on behind an answer may be cut off."""
        core = self.replica.core
        owing = [fold for fold in core.pending.values() if not getattr(fold, "answered", False)]
        return not owing and not core.waiting_for_actor

    def _connected(self, node: NodeId) -> bool:
        return self.reactor.peers.connected(node)

    def _reachable(self, node: NodeId) -> bool:
        return self._connected(node) and self.replica.core.liveness.up(node)

    def _address_of(self, node: NodeId) -> str | None:
        member = self._membership.members.get(node)
        if member is None or member.status == LEFT or not member.address:
            return None
        return "" if held(self._membership, node, self._connected) else member.address

    def _known_lease(self, node: NodeId) -> tuple[int, int]:
        member = self._membership.members.get(node)
        return (member.actor, member.lease_end) if member is not None else (0, 0)

    def _lease_heard(self, actor: int, lease_end: int) -> None:
        """A peer says which lease of ours it knows."""
        core = self.replica.core
        if core.actor.contradicted_by(actor, lease_end):
            self._begin_new_actor("peers know more of this node than its data directory, which must be an old copy; starting a new actor")
        else:
            self.replica.actor_confirmed(core.now)

    def _begin_new_actor(self, why: str) -> None:
        _log.warning(why)
        self.replica.core.renew_actor()
