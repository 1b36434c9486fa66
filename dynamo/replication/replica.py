"""The one thing a driver talks to: messages, time and commit reports go in, a `Ready` comes out.

    replica.receive(batch, now)      batch = [(source, message)], source = connection number of a client | node id of a peer
    replica.tick(now)                when `next_deadline` has come
    ready = replica.take_ready()     what to send and commit, and in which order
    replica.committed(group, now)    | replica.commit_failed(group, error, now)
    replica.flushed(number, error, now)    durability `buffered`: the groups up to this one have reached the disk, or could not
    replica.peer_up(node, now)       | replica.peer_down(node, now)

It dispatches and holds no policy: that is in `put`, `get`, `forward`, `local`, `handoff`. No I/O, no clock, no randomness of its own. Messages are
taken to be well formed, and of a type that their source may send (`wire.messages.check_all`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from dynamo._core import record as records
from dynamo.errors import DynamoError, ProtocolError, StorageFailed, Unavailable
from dynamo.membership.gossip import Gossip
from dynamo.membership.members import Membership
from dynamo.model import messages as m
from dynamo.model.cluster import Cluster
from dynamo.model.group import Group
from dynamo.model.messages import Message, Source
from dynamo.replication.actor import ActorLease
from dynamo.replication.anti_entropy import AntiEntropy
from dynamo.replication.batch import take_get_many, take_put_many
from dynamo.replication.core import Core, ReplyTo, Scan, Settings
from dynamo.replication.forward import take_put
from dynamo.replication.get import coordinate_get, repair_from_peers, repair_then
from dynamo.replication.handoff import Handoff
from dynamo.replication.hinted_handoff import Hints
from dynamo.replication.local import as_failed, receive_offer, receive_read, receive_replicate
from dynamo.replication.operations import Operations
from dynamo.replication.put import coordinate_put
from dynamo.replication.ready import Ready
from dynamo.replication.recovery import Recovery
from dynamo.replication.rows import KindOf, Read, Rows
from dynamo.replication.scan import receive_scan_read, take_scan
from dynamo.replication.standings import META as STANDINGS
from dynamo.replication.standings import Standings
from dynamo.replication.trees import Trees

if TYPE_CHECKING:
    from random import Random

_REPLIES = frozenset((m.REPLICATE_REPLY, m.READ_REPLY, m.FORWARD_REPLY, m.SCAN_READ_REPLY, m.TREE_ROOTS_REPLY, m.TREE_NODES_REPLY, m.TREE_KEYS_REPLY,
                      m.OFFER_REPLY, m.RECOVER_REPLY))  # fmt: skip
_META_RETRY_S = 0.5


def _kinds(cluster: Cluster) -> KindOf | None:
    """The kind of record that belongs under a row key; None where that is siblings for all."""
    if all(definition.record_kind == records.SIBLINGS for definition in (cluster.bucket(b"default"), *cluster.buckets.values())):
        return None
    return lambda row_key: cluster.bucket(row_key[2:].partition(b"\0")[0]).record_kind


class Replica:
    """One node's replication policy over its rows. See the module's text for how to drive it."""

    def __init__(
        self,
        settings: Settings,
        node_id: bytes,
        cluster: Cluster,
        membership: Membership,
        actor: ActorLease,
        read: Read,
        scan: Scan,
        scan_hints: Scan,
        random: Random,
        wall_us: Callable[[], int],
        durability: int,
        stored_operations: Iterable[tuple[bytes, bytes]],
        standings: Standings | None = None,
    ) -> None:
        """`read`, `scan`, `scan_hints`: the committed rows and hints. `stored_operations`: of the meta table, see `operations`. `standings`: what
        this node was to its partitions under the last ring that it knew; left out, it holds all that it owns."""
        standings = standings or Standings()
        rows = Rows(read, int.from_bytes(cluster.secret[:8], "big"), Operations(settings.operations_max, stored_operations), _kinds(cluster))
        self.core = Core(settings, node_id, cluster, membership, actor, rows, scan, Hints(scan_hints), random, wall_us, durability, standings)
        self.gossip = Gossip(membership, random, settings.gossip_interval_s)
        self.handoff = Handoff()
        self.trees = Trees()
        self.anti_entropy = AntiEntropy(self.trees)
        self.core.hints.count(self.core)
        self.recovery = Recovery(self.anti_entropy, self.trees)
        self._membership_version = membership.version
        self._standings_version = 0
        self._news_at: dict[bytes, float] = {}  # when a peer was last asked for a ring that it named
        self._meta_retry_at: float | None = None
        self._heartbeat_at = 0.0
        self._dispatch: dict[int, Callable[[Any, Message], None]] = {
            m.GET: self._get,
            m.PUT: self._put,
            m.GET_MANY: self._get_many,
            m.PUT_MANY: self._put_many,
            m.SCAN: self._scan,
            m.SCAN_READ: self._scan_read,
            m.TREE_ROOTS: self._tree,
            m.TREE_NODES: self._tree,
            m.TREE_KEYS: self._tree,
            m.RECOVER: self._recover,
            m.FORWARD: self._forward,
            m.REPLICATE: partial(receive_replicate, self.core, repair=repair_then),
            m.OFFER: partial(receive_offer, self.core),
            m.READ: partial(receive_read, self.core),
            m.GOSSIP: self._gossip,
            m.GOSSIP_REPLY: self._gossip,
            m.GOSSIP_PUSH: self._gossip,
        }

    # --- what goes in -------------------------------------------------------------------------------------------------------------

    def receive(self, batch: list[tuple[Source, Message]], now: float) -> None:
        """Take a batch of well-formed messages."""
        core = self.core
        self._at(now)
        pending, dispatch = core.pending, self._dispatch
        last: Source | None = None
        for source, message in batch:
            if source is not last and type(source) is bytes:
                if source != last:
                    core.liveness.heard(source, now)
                last = source
            kind = message[0]
            if kind in _REPLIES and type(source) is bytes:
                fold = pending.get(message[1])
                if fold is not None and fold.on_reply(core, source, message):
                    pending.pop(message[1], None)
                continue
            handler = dispatch.get(kind)
            if handler is None:
                self._unknown(source, message)
            else:
                handler(source, message)
        self._after_step()

    def _unknown(self, source: Source, message: Message) -> None:
        if type(source) is bytes:
            self.core.count("messages_unknown")  # no answer: two nodes that do not know each other's errors would never stop
        else:
            self.core.send(source, m.error_message(message[1], 11, f"message type {message[0]} is not known here", False))

    def tick(self, now: float) -> None:
        """Run what is due."""
        core = self.core
        self._at(now)
        for request_id in core.deadlines.due(now):
            fold = core.pending.get(request_id)
            if fold is not None and fold.on_timer(core):
                core.pending.pop(request_id, None)
        if now >= self.gossip.next_deadline:
            for destination, message in self.gossip.tick(now):
                core.send(destination, message)
        if now >= self._heartbeat_at:
            self._heartbeat()
        if self._meta_retry_at is not None and now >= self._meta_retry_at:
            self._meta_retry_at = None
            core.stage_actor()
            core.rows.stage_meta(b"membership", core.membership.encode())
            core.rows.stage_meta(STANDINGS, core.standings.encode())
        self.handoff.step(core)
        core.hints.step(core)
        self.trees.step(core)
        self.anti_entropy.step(core)
        self.recovery.step(core)
        self._after_step()

    def committed(self, group: Group, now: float) -> None:
        """The group is as durable as was asked, and the engine's reads show it."""
        core = self.core
        self._at(now)
        done = core.rows.committed(group)
        self.handoff.changed(core, done.changes)
        core.hints.committed(group.hints)
        core.outbox.extend(done.held.messages)
        self.trees.apply(core, done.changes)
        actor = group.meta.get(b"actor")
        if actor is not None:
            core.actor.durable(actor)
            core.membership.update(actor=core.actor.actor, lease_end=core.actor.lease_end)
            self._let_puts_in()
        for request_id, record in done.held.wakes:
            fold = core.pending.get(request_id)
            if fold is not None and fold.on_wake(core, record):
                core.pending.pop(request_id, None)
        self._after_step()

    def commit_failed(self, group: Group, error: DynamoError, now: float) -> None:
        """The group was not applied. What rested on it fails, and the actor goes: its dots may have left."""
        core = self.core
        self._at(now)
        core.count("commits_failed")
        core.storage_error = error
        held = core.rows.failed(group)
        for destination, message in (*held.messages, *core.flushes.failed_commit(group.number)):
            core.send(destination, as_failed(core, message, error))
        core.hints.recount(core)
        self.handoff.commit_failed(core)
        core.actor.renew(core.random)
        self._meta_retry_at = now + _META_RETRY_S  # not at once: a full disk would be asked without end
        waiting, core.waiting_for_actor = core.waiting_for_actor, []
        for reply_to, _ in waiting:
            core.refuse(reply_to, type(error)(str(error), maybe_applied=False))
        for request_id, _ in held.wakes:
            fold = core.pending.get(request_id)
            if fold is not None and fold.on_failure(core, core.node_id, error.code or StorageFailed.code):
                core.pending.pop(request_id, None)
        self._after_step()

    def flushed(self, number: int, error: DynamoError | None, now: float) -> None:
        """The write buffer's groups up to this number are on disk; or, with an error, they are not, and are where they were."""
        core = self.core
        self._at(now)
        if error is None:
            core.outbox.extend(core.flushes.done(number))
        else:
            core.count("flushes_failed")
            for destination, message in core.flushes.failed_flush(number):
                core.send(destination, as_failed(core, message, error))

    def peer_up(self, node: bytes, now: float) -> None:
        """The driver has a connection to the peer."""
        self._at(now)
        self.core.liveness.connected(node)

    def peer_down(self, node: bytes, now: float) -> None:
        """The driver lost its last connection to the peer, or could not make one."""
        core = self.core
        self._at(now)
        core.liveness.disconnected(node)
        for request_id, fold in list(core.pending.items()):
            if fold.on_failure(core, node, Unavailable.code):
                core.pending.pop(request_id, None)
        self._after_step()

    def actor_confirmed(self, now: float) -> None:
        """A peer knows of no other life of this node: a kept actor may go on."""
        self._at(now)
        if self.core.actor.unconfirmed:
            self.core.actor.unconfirmed = False
            self._let_puts_in()
            self._after_step()

    def stage_meta(self, name: bytes, value: bytes) -> None:
        """Put a row of the meta table into the next group."""
        self.core.rows.stage_meta(name, value)

    # --- what comes out -----------------------------------------------------------------------------------------------------------

    def take_ready(self) -> Ready:
        """What to do now. Never blocks; an empty Ready means there is nothing to do."""
        core = self.core
        messages, core.outbox = core.outbox, []
        taken = core.rows.take_group() if core.rows.in_flight is None else None
        if taken is None:
            return Ready(None, messages, [])
        taken[0].prompt = core.flushes.wanted(taken[0].number)
        return Ready(taken[0], messages, taken[1])

    @property
    def next_deadline(self) -> float | None:
        """When `tick` wants to be called, in the driver's monotonic seconds."""
        # Asked for after every step, hence without a list of what is mostly None.
        core = self.core
        earliest = self._heartbeat_at
        if self.gossip.next_deadline < earliest:
            earliest = self.gossip.next_deadline
        if (at := core.deadlines.next(core.pending)) is not None and at < earliest:
            earliest = at
        if (at := self.handoff.next_at) is not None and at < earliest:
            earliest = at
        if (at := core.hints.next_at) is not None and at < earliest:
            earliest = at
        if (at := self.trees.next_at) is not None and at < earliest:
            earliest = at
        if (at := self.anti_entropy.next_at) is not None and at < earliest:
            earliest = at
        if (at := self.recovery.next_at) is not None and at < earliest:
            earliest = at
        if (at := self._meta_retry_at) is not None and at < earliest:
            earliest = at
        return earliest

    def _at(self, now: float) -> None:
        """The time of the step that begins. After a stall the first one may be any: a commit that ended meanwhile, say."""
        core = self.core
        if now > self._heartbeat_at:  # else nothing is late
            core.stalls.notice(core, self._heartbeat_at, now)
        core.now = now

    # --- dispatch -----------------------------------------------------------------------------------------------------------------

    def _get(self, source: Source, message: Message) -> None:
        _, request_id, bucket, key, r, pr, time_ms = message[:7]
        coordinate_get(self.core, ReplyTo(source, request_id), bucket, key, r, pr, time_ms)

    def _put(self, source: Source, message: Message) -> None:
        take_put(self.core, ReplyTo(source, message[1]), message)

    def _get_many(self, source: Source, message: Message) -> None:
        take_get_many(self.core, source, message)

    def _put_many(self, source: Source, message: Message) -> None:
        take_put_many(self.core, source, message)

    def _scan(self, source: Source, message: Message) -> None:
        take_scan(self.core, ReplyTo(source, message[1]), message)

    def _scan_read(self, source: Source, message: Message) -> None:
        assert type(source) is bytes
        receive_scan_read(self.core, source, message)

    def _tree(self, source: Source, message: Message) -> None:
        assert type(source) is bytes
        self.anti_entropy.answer(self.core, source, message)

    def _recover(self, source: Source, message: Message) -> None:
        assert type(source) is bytes
        self.recovery.answer(self.core, source, message)

    def _forward(self, source: Source, message: Message) -> None:
        coordinate_put(self.core, ReplyTo(source, message[1], forwarded=True), message[2])

    def _gossip(self, source: bytes, message: Message) -> None:
        self.core.liveness.detector.heartbeat(source, self.core.now)
        if message[0] == m.GOSSIP and not message[3]:
            self.core.recovering_peers[source] = message[4] if len(message) > 4 and type(message[4]) is int else 0
        try:
            replies = self.gossip.receive(source, message, self.core.now)
        except ProtocolError:
            self.core.count("gossip_refused")  # a peer that says what no member can be; its other messages stand on their own
            return
        for destination, reply in replies:
            self.core.send(destination, reply)

    def _heartbeat(self) -> None:
        """Ask peers for a sign of life: a gossip of the digest alone, which is always answered."""
        core = self.core
        self._heartbeat_at = core.now + core.settings.heartbeat_interval_s
        peers = [node for node in core.ring.preference(0) if node != core.node_id] if core.ring.size else []
        core.liveness.step(peers, core.now)
        if len(peers) > core.settings.heartbeat_peers_max:
            peers = core.random.sample(peers, core.settings.heartbeat_peers_max)
        recovering = core.recovering() if core.standings.needs else 0
        for node in peers:
            for destination, message in self.gossip.probe(node):
                core.send(destination, (*message, recovering) if recovering else message)

    def _follow_ring(self) -> None:
        """Requests under way go on under the new ring; the others are to have it soon."""
        core = self.core
        core.ring_news.clear()
        self.recovery.step(core)
        for fold in list(core.pending.values()):
            on_ring = getattr(fold, "on_ring", None)
            if on_ring is not None and on_ring(core):
                core.pending.pop(fold.request_id, None)  # type: ignore[attr-defined]

    def _ask_for_news(self) -> None:
        """Ask peers for the ring that they named, each at most once in a heartbeat's tenth."""
        core = self.core
        for node in sorted(core.ring_news):
            if self._news_at.get(node, -math.inf) + core.settings.heartbeat_interval_s / 10 <= core.now:
                self._news_at[node] = core.now
                core.ring_news.discard(node)
                for destination, message in self.gossip.probe(node):
                    core.send(destination, message)

    def _let_puts_in(self) -> None:
        """The new actor is durable: the puts that waited for it go on."""
        waiting, self.core.waiting_for_actor = self.core.waiting_for_actor, []
        for reply_to, message in waiting:
            coordinate_put(self.core, reply_to, message)

    def _after_step(self) -> None:
        """What a step may have left to do: a new ring, damaged rows to fetch, rows to hand over."""
        core = self.core
        if core.membership.version != self._membership_version:
            self._membership_version = core.membership.version
            core.rows.stage_meta(b"membership", core.membership.encode())
            if core.rebuild_ring():
                self.trees.follow_ring(core)
                self.handoff.wake(core.now)
                self._follow_ring()
        if core.standings.version != self._standings_version:
            self._standings_version = core.standings.version
            core.rows.stage_meta(STANDINGS, core.standings.encode())
        if core.ring_news:
            self._ask_for_news()
        if core.repair_wanted:
            for bucket, key in core.begin_repairs():
                repair_from_peers(core, bucket, key)
        if core.unowned_rows_staged:
            core.unowned_rows_staged = False
            self.handoff.wake(core.now + core.settings.handoff_retry_s)  # their commit wakes it again: a pass sees committed rows only
