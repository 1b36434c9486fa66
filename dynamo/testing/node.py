"""One simulated node: a disk, and while it is up a real `Replica` over it. This is the driver's part, `dynamo.node`'s in virtual time.

It does what the driver contract says and nothing else: messages, time and commit reports go in, a `Ready` comes out, its messages leave at once,
its group is committed, what waited for the group leaves after it. A node can die at any moment, be paused, and have clocks of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import log
from typing import TYPE_CHECKING

from dynamo.errors import DynamoError, StorageFailed
from dynamo.membership.members import Membership
from dynamo.membership.ring import ring_members
from dynamo.model import messages as m
from dynamo.model.group import Group
from dynamo.model.member import LEFT, NORMAL, Member
from dynamo.model.messages import Message, Source
from dynamo.net.spread import Spread
from dynamo.replication import ActorLease, Replica
from dynamo.replication.core import Scan
from dynamo.replication.rows import Read
from dynamo.replication.standings import META as STANDINGS
from dynamo.replication.standings import Standings
from dynamo.testing.disk import Disk, Table
from dynamo.testing.observer import WATCHED

if TYPE_CHECKING:
    from dynamo.testing.simulator import SimulatedCluster

_WALL_START_US = 1_700_000_000_000_000
_START_RETRY_S = 0.5
_LAST_COMMITS_MAX = 20
COMMIT_S_MAX = 10.0
_NEVER = float("inf")


class Node:
    """One node of a simulated cluster. `boots` counts its starts; what was meant for an earlier boot does not arrive."""

    def __init__(self, cluster: SimulatedCluster, node_id: bytes, number: int) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.node_id = node_id
        self.number = number
        self.name = f"n{number}"
        self.address = f"127.0.0.1:{7000 + number}"
        self.rng = self.world.stream(f"node/{number}")
        self.disk = Disk(self.rng)
        self.boots = 0
        self.newcomer = False  # joins a cluster that has data, under an id that is new
        self.replica: Replica | None = None
        self.removed = False  # by an administrator, for good
        self.paused = False
        self.ambushed = False  # the next group of writes will not make it
        self._ambush_fails = False
        self.wall_offset_s = 0.0
        drift = cluster.faults.clock_drift
        self._rate = 1.0 + self.rng.uniform(-drift, drift)  # of the monotonic clock
        self._origin = self.rng.uniform(0.0, 1e6)
        self._poll_s = cluster.faults.poll_s
        self._inbox: list[tuple[Source, Message]] = []
        self._draining = False
        self._flying: tuple[Group, list[tuple[Source, Message]]] | None = None
        self._finished = False  # the group in flight is done, but nobody has been told
        self._tick_at = _NEVER
        self._spread: Spread | None = None

    def __repr__(self) -> str:
        return self.name

    # --- starting and stopping ------------------------------------------------------------------------------------------------------

    def start(self, members: Iterable[Member], clean: bool = False) -> None:
        """Boot: a new actor unless the stop was clean, and its lease durable before anything is minted."""
        if self.replica is not None or self.removed:
            return
        if self.disk.refusal() is not None:  # a node that cannot write who it is does not start
            self.world.after(_START_RETRY_S, self.start, list(members), clean)
            return
        self.boots += 1
        lease = ActorLease.load(self.disk.meta.get(b"actor"), clean, self.rng)
        membership = Membership(self.node_id)
        members = list(members)
        known = self.disk.meta.get(b"membership")
        standings = self._standings(members)
        if known is not None:
            membership.load(known)
        membership.merge_all(members)
        if self.node_id in membership.members and membership.local.status == LEFT:
            self.removed = True
            return
        membership.start(self.name, self.address, lease.actor, lease.lease_end, 1, status=NORMAL)
        self.disk.meta[b"actor"] = lease.encode()
        self.disk.meta[b"membership"] = membership.encode()
        self.disk.meta[STANDINGS] = standings.encode()
        read, scan, scan_hints, durability = self._open()
        self.replica = Replica(
            self.cluster.settings, self.node_id, self.cluster.definition, membership, lease, read, scan, scan_hints,
            self.world.stream(f"replica/{self.number}/{self.boots}"), self._wall_us, durability, self.disk.stored_operations(),
            standings,
        )  # fmt: skip
        self._spread = Spread(membership)
        self._flying, self._finished, self._inbox, self._draining, self.paused = None, False, [], False, False
        self.ambushed = self._ambush_fails = False
        self._tick_at = _NEVER
        self.world.note("boot", self.name, self.boots, "clean" if clean else "new actor", f"{lease.actor:016x}")
        self.cluster.started(self)
        self._pump()

    def _standings(self, members: list[Member]) -> Standings:
        """What the node is to its partitions, as its driver has to tell its replica: what its disk says; a founder holds all, a newcomer nothing."""
        stored = self.disk.meta.get(STANDINGS)
        if stored is not None:
            return Standings.decode(stored)
        others = ring_members(member for member in members if member.node_id != self.node_id)
        return Standings(others if self.newcomer or self.boots > 1 else None)

    def _open(self) -> tuple[Read, Scan, Scan, int]:
        """What the replica reads through, and the durability it gives."""
        return self.disk.read, self.disk.scan, self.disk.scan_hints, m.DURABILITY_SYNCED

    def crash(self, keep_group: bool) -> None:
        """Die. The group in flight may have reached the disk or not; nobody was told either way."""
        if self._flying is not None and (self._finished or (keep_group and self.disk.refusal() is None)):
            self._apply(self._flying[0])
        self._down()

    def stop_cleanly(self) -> bool:
        """Stop in order; whether the actor may go on, because all that was staged is on disk."""
        clean = True
        for _ in range(_LAST_COMMITS_MAX):
            if self.replica is None or self._flying is None:
                break
            self.paused = False
            clean = self._complete(self.boots) and clean
        if self.replica is None:
            return False
        clean = clean and self._flying is None and self.replica.core.actor.staged is None
        self._down()
        return clean

    def _down(self) -> None:
        self.forget()
        self.replica, self._flying, self._finished, self._spread = None, None, False, None
        self._inbox = []
        self.cluster.stopped(self)

    def forget(self) -> None:
        """Let go of what a replica holds. It refers to itself: only a search for cycles would find it."""
        if self.replica is not None:
            vars(self.replica.core).clear()
            vars(self.replica).clear()

    def pause(self, length_s: float) -> None:
        """Handle nothing for a while (SIGSTOP, a long garbage collection, a stalled machine), then everything that came meanwhile."""
        if self.replica is not None and not self.paused:
            self.paused = True
            self.world.note("pause", self.name, f"{length_s:.2f}")
            self.world.after(length_s, self.resume, self.boots)

    def resume(self, boot: int) -> None:
        """Go on after a pause."""
        if boot != self.boots or self.replica is None or not self.paused:
            return
        self.paused = False
        self.world.note("resume", self.name, len(self._inbox))
        if self._finished and self.rng.random() < 0.5:
            self._report()
        if self._inbox:
            self._drain(boot)
        if self._finished:
            self._report()
        if self.replica is not None:
            self._tick_at = _NEVER
            self._pump()

    # --- what it holds --------------------------------------------------------------------------------------------------------------

    def held(self, row_key: bytes) -> bytes | None:
        """The encoded row as reads see it."""
        return self.disk.objects.get(row_key)

    def view(self) -> tuple[Table, Table]:
        """Objects and hints as reads see them."""
        return self.disk.objects, self.disk.hints

    # --- what goes in ---------------------------------------------------------------------------------------------------------------

    def now(self) -> float:
        """This node's monotonic time."""
        return self._origin + self.world.now * self._rate

    def arrive(self, boot: int, source: Source, message: Message) -> None:
        """A message arrives; one sent over a connection that died with an earlier boot does not."""
        if self.replica is None or boot != self.boots:
            return
        world = self.world
        world.delivered += 1
        world.fold(self.number, message[0] + (message[1] << 8))
        if message[0] == m.REPLICATE_REPLY:
            self.cluster.observer.quiet.arrived(self, source, message)
        if world.log is not None:
            world.log.append(f"{world.now:11.6f} {self.cluster.name_of(source)} -> {self.name} {self.cluster.describe(message)}")
        if self.paused or self._poll_s:
            self._inbox.append((source, message))
            if not self.paused and not self._draining:
                self._draining = True
                world.after(self._poll_s * self.rng.random(), self._drain, boot)
            return
        self.replica.receive([(source, message)], self._origin + world.now * self._rate)
        self._pump()

    def _drain(self, boot: int) -> None:
        if boot != self.boots or self.replica is None:
            return
        self._draining = False
        if self.paused or not self._inbox:
            return
        batch, self._inbox = self._inbox, []
        self.replica.receive(batch, self.now())
        self._pump()

    def peer(self, node_id: bytes, up: bool) -> None:
        """The driver gained or lost its connection to a peer."""
        if self.replica is not None and not self.paused:
            (self.replica.peer_up if up else self.replica.peer_down)(node_id, self.now())
            self._pump()

    def _tick(self, boot: int, scheduled: float) -> None:
        if boot != self.boots or self.replica is None or scheduled != self._tick_at or self.paused:
            return
        self._tick_at = _NEVER
        self.replica.tick(self.now())
        self._pump()

    def _wall_us(self) -> int:
        """The wall clock, which jumps and drifts; never below 0."""
        return max(0, _WALL_START_US + int((self.world.now * self._rate + self.wall_offset_s) * 1e6))

    # --- what comes out -------------------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        replica, world = self.replica, self.world
        if replica is None:
            return
        ready = replica.take_ready()
        send = self._send
        for destination, message in ready.messages:
            send(destination, message)
        assert self._spread is not None
        if self._spread.stale:
            for destination, message in self._spread.look()[1]:
                self._send(destination, message)
        if ready.group is not None:
            # Invariant: one group at a time.
            assert self._flying is None, "two groups in flight"
            self._flying = (ready.group, ready.messages_after_commit)
            self._begin_commit(any(message[0] == m.REPLICATE and message[5] == m.PURPOSE_WRITE for _, message in ready.messages))
        due = replica.next_deadline
        if due is not None:
            at = (due - self._origin) / self._rate + 1e-7  # a hair late, so that rounding cannot make it early
            if at < self._tick_at - 1e-6:
                at = max(at, world.now + 1e-6)
                self._tick_at = at
                world.at(at, self._tick, self.boots, at)

    def _begin_commit(self, writes: bool) -> None:
        """`writes`: what was sent at once has writes in it that only this group makes durable here."""
        self.world.after(self._commit_s(writes), self._commit_ends, self.boots)

    def _commit_s(self, writes: bool) -> float:
        """How long the disk takes."""
        world, faults, rng = self.world, self.cluster.faults, self.rng
        delay = -log(1.0 - rng.random()) * faults.commit_s * self.disk.slow
        if world.fault_point("commit.slow", faults.commit_slow, rng):
            delay *= 100
        delay = min(delay, COMMIT_S_MAX)
        if self.ambushed and writes:
            # What was sent ahead arrives and is stored by the others, while this disk lags.
            self.ambushed, self._ambush_fails = False, True
            delay = min(max(delay, 10.0 * (faults.delay_mean_s + faults.commit_s)), COMMIT_S_MAX)
            if world.fault_point("ambush.crash", 0.7, rng):
                world.after(delay * rng.uniform(0.5, 1.0), self.cluster.nemesis.stop, self, False, self.boots, 0.85)
        return delay

    def _commit_ends(self, boot: int) -> None:
        self._complete(boot)

    def _complete(self, boot: int) -> bool:
        """The group in flight is done, for better or worse; whether it was for better."""
        if boot != self.boots or self.replica is None or self._flying is None:
            return False
        group = self._flying[0]
        error = self._commit_error()
        if error is not None:
            if self.paused:
                self.world.after(0.05, self._commit_ends, boot)
                return False
            self.world.note("commit failed", self.name, type(error).__name__)
            self._flying = None
            self.replica.commit_failed(group, error, self.now())
            self._pump()
            return False
        if self.paused:
            self._finished = True  # the disk went on, the process did not
        else:
            self._report()
        return True

    def _commit_error(self) -> DynamoError | None:
        """What the disk says to what it was given."""
        error = self.disk.refusal()
        failure = 1.0 if self._ambush_fails else self.cluster.faults.commit_failure
        self._ambush_fails = False
        if error is None and self.world.fault_point("commit.fail", failure, self.rng):
            error = StorageFailed("a simulated I/O error")
        return error

    def _report(self) -> None:
        assert self._flying is not None and self.replica is not None
        (group, messages), self._flying, self._finished = self._flying, None, False
        self._apply(group)
        self.replica.committed(group, self.now())
        for destination, message in messages:
            self._send(destination, message)
        self._pump()

    def _apply(self, group: Group) -> None:
        self.cluster.observer.applying(self, group)
        self.disk.apply(group)

    def _send(self, destination: Source, message: Message) -> None:
        cluster, kind = self.cluster, message[0]
        if kind in WATCHED:
            cluster.observer.sending(self, destination, message)
        if type(destination) is bytes:
            node = cluster.nodes.get(destination)
            if node is not None:
                # A request that is passed on is not doubled: connections do not do that, and its refusal rests on there being but one.
                cluster.network.carry(self.node_id, destination, kind == m.FORWARD, node.arrive, node.boots, self.node_id, message)
            return
        assert type(destination) is int
        client = cluster.clients.get(destination)
        if client is not None:
            cluster.network.carry(self.node_id, destination, True, client.receive, self.node_id, message)
