"""A whole cluster in one process and in virtual time: the real `Replica` objects over simulated disks and links.

Safety first: clients work while nodes crash, links are cut and messages are lost. Then everything heals, every key is read from all its owners
until they agree, and the checkers of `history` judge what is left. Same seed, same commit: same trace, whatever the hash seed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from dynamo._core import record as records
from dynamo.errors import DynamoError, StorageFailed
from dynamo.membership.members import Membership
from dynamo.model import messages as m
from dynamo.model.cluster import Cluster
from dynamo.model.group import Group
from dynamo.model.member import Member
from dynamo.model.messages import Message, Source
from dynamo.model.row import decode_row
from dynamo.replication import ActorLease, Replica, Settings
from dynamo.testing.events import Faults, World
from dynamo.testing.history import History


@dataclass(slots=True)
class Disk:
    """What survives a crash: the groups whose commit was completed."""

    objects: dict[bytes, bytes] = field(default_factory=dict)
    hints: dict[bytes, bytes] = field(default_factory=dict)
    meta: dict[bytes, bytes] = field(default_factory=dict)

    def apply(self, group: Group) -> None:
        """Make a group durable."""
        for table, changes in ((self.objects, group.objects), (self.hints, group.hints), (self.meta, group.meta)):
            for key, value in changes.items():
                if value is None:
                    table.pop(key, None)
                else:
                    table[key] = value

    def scan(self, start: bytes, stop: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        """Rows in key order."""
        keys = sorted(key for key in self.objects if key >= start and (stop is None or key < stop))
        return [(key, self.objects[key]) for key in keys[:limit]]

    def scan_hints(self, start: bytes, stop: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        """Hints in key order."""
        keys = sorted(key for key in self.hints if key >= start and (stop is None or key < stop))
        return [(key, self.hints[key]) for key in keys[:limit]]


class Node:
    """One node: a disk, and while it is up a replica. The driver's part, in virtual time."""

    def __init__(self, cluster: SimulatedCluster, node_id: bytes, members: list[Member]) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.node_id = node_id
        self.members = members
        self.disk = Disk()
        self.boots = 0
        self.replica: Replica | None = None
        self._flying: tuple[Group, list[tuple[Source, Message]]] | None = None
        self._tick_at = float("inf")
        self.start(clean=False)

    def start(self, clean: bool) -> None:
        """Boot: a new actor unless the stop was clean, and its lease durable before anything is minted."""
        self.boots += 1
        lease = ActorLease.load(self.disk.meta.get(b"actor"), clean, self.world.rng)
        self.disk.meta[b"actor"] = lease.encode()
        membership = Membership(self.node_id)
        known = self.disk.meta.get(b"membership")
        if known is not None:
            membership.load(known)
        membership.merge_all(self.members)
        mine = membership.local
        membership.start(mine.name, mine.address, lease.actor, lease.lease_end, 1)
        self.replica = Replica(
            self.cluster.settings, self.node_id, self.cluster.definition, membership, lease, self.disk.objects.get, self.disk.scan,
            self.disk.scan_hints, random.Random(self.world.rng.getrandbits(64)), self._wall_us, m.DURABILITY_SYNCED,
        )  # fmt: skip
        self._flying = None
        self._tick_at = float("inf")
        self.world.note("boot", self.node_id.hex()[:4], self.boots, "clean" if clean else "new actor")
        self._pump()

    def crash(self, keep_group: bool) -> None:
        """Die. The group in flight may have reached the disk or not; nobody was told either way."""
        if self._flying is not None and keep_group:
            self.disk.apply(self._flying[0])
        self.replica = None
        self._flying = None

    def stop_cleanly(self) -> None:
        """Stop after finishing the group in flight; the actor may go on."""
        while self._flying is not None and self.replica is not None:
            self._complete(self.boots)
        self.replica = None

    def deliver(self, boot: int, source: Source, message: Message) -> None:
        """A message arrives; one sent to an earlier boot of this node over a connection that died with it does not."""
        if self.replica is None or boot != self.boots:
            return
        self.world.delivered += 1
        self.world.note("to", self.node_id.hex()[:4], source if type(source) is int else bytes(source).hex()[:4], message[0], message[1])
        self.replica.receive([(source, message)], self.world.now)
        self._pump()

    def _wall_us(self) -> int:
        return 1_700_000_000_000_000 + int(self.world.now * 1e6)

    def _pump(self) -> None:
        assert self.replica is not None
        ready = self.replica.take_ready()
        for destination, message in ready.messages:
            self._send(destination, message)
        if ready.group is not None:
            assert self._flying is None, "two groups in flight"
            self._flying = (ready.group, ready.messages_after_commit)
            self.world.after(self.world.rng.expovariate(1 / self.world.faults.commit_s), self._complete, self.boots)
        due = self.replica.next_deadline
        if due is not None and due < self._tick_at - 1e-9:
            self._tick_at = max(due, self.world.now + 1e-6)
            self.world.at(self._tick_at, self._tick, self.boots, self._tick_at)

    def _tick(self, boot: int, scheduled: float) -> None:
        if boot != self.boots or self.replica is None or scheduled != self._tick_at:
            return
        self._tick_at = float("inf")
        self.replica.tick(self.world.now)
        self._pump()

    def _complete(self, boot: int) -> None:
        if boot != self.boots or self.replica is None or self._flying is None:
            return
        (group, messages), self._flying = self._flying, None
        if not self.world.healed and self.world.rng.random() < self.world.faults.commit_failure:
            self.world.note("commit failed", self.node_id.hex()[:4])
            self.replica.commit_failed(group, StorageFailed("a simulated I/O error"), self.world.now)
        else:
            self.disk.apply(group)
            self.replica.committed(group, self.world.now)
            for destination, message in messages:
                self._send(destination, message)
        self._pump()

    def _send(self, destination: Source, message: Message) -> None:
        if isinstance(destination, int):
            self.world.carry(self.node_id, destination, True, self.cluster.to_client, destination, self.node_id, message)
            return
        if message[0] == m.REPLICATE:
            self.cluster.inspect(message[2], message[3], message[4])
        node = self.cluster.nodes[destination]
        self.world.carry(self.node_id, destination, False, node.deliver, node.boots, self.node_id, message)


class SimulatedCluster:
    """Nodes, their faults, and what clients need to reach them."""

    def __init__(self, seed: int, *, nodes: int = 3, faults: Faults | None = None, log: bool = False) -> None:
        rng = random.Random(seed)
        self.world = World(seed, faults or Faults.draw(rng), rng, log=[] if log else None)
        self.history = History()
        self.settings = Settings(fallback_after_s=0.2, hedge_after_s=0.1, suspect_after_s=0.5)
        self.definition = Cluster(cluster_id=rng.randbytes(16), secret=rng.randbytes(32), seed=rng.getrandbits(64), partitions=8, n=min(3, nodes))
        ids = [rng.randbytes(16) for _ in range(nodes)]
        members = [Member(node_id, f"n{i}", 0, 0, 1, f"127.0.0.1:{7000 + i}", "", 1000, "normal", 0, 0, 1) for i, node_id in enumerate(ids)]
        self.clients: dict[int, Client] = {}
        self.nodes: dict[bytes, Node] = {}
        for node_id in ids:
            self.nodes[node_id] = Node(self, node_id, members)
        self._schedule_faults()

    def to_client(self, number: int, node: bytes, message: Message) -> None:
        """A reply reaches its client."""
        self.world.note("reply", number, message[0], message[1])
        self.clients[number].receive(message)

    def inspect(self, bucket: bytes, key: bytes, record: bytes) -> None:
        """Look at a record passing by: its dots must name one value each."""
        for actor, counter, _, operation, _, value_hash, _, _ in records.versions(record):
            self.history.check_dot(key, actor, counter, operation, value_hash)

    # --- faults -------------------------------------------------------------------------------------------------------------------

    def _schedule_faults(self) -> None:
        faults, rng = self.world.faults, self.world.rng
        if faults.crash_interval_s:
            self.world.after(rng.expovariate(1 / faults.crash_interval_s), self._crash_some)
        if faults.cut_interval_s:
            self.world.after(rng.expovariate(1 / faults.cut_interval_s), self._cut_some)

    def _crash_some(self) -> None:
        if self.world.healed:
            return
        rng, faults = self.world.rng, self.world.faults
        everyone = list(self.nodes.values())
        blackout = rng.random() < faults.blackout  # the power fails for all at once: what was acknowledged must be on their disks
        for node in everyone if blackout else [rng.choice(everyone)]:
            if node.replica is not None:
                self._stop(node, clean=not blackout and rng.random() < 0.25)
        self.world.after(rng.expovariate(1 / faults.crash_interval_s), self._crash_some)

    def _stop(self, node: Node, clean: bool) -> None:
        if clean:
            node.stop_cleanly()
        else:
            node.crash(keep_group=self.world.rng.random() < 0.5)
        self.world.note("stop" if clean else "crash", node.node_id.hex()[:4])
        self.world.after(self.world.rng.expovariate(1 / self.world.faults.outage_s), self._restart, node, clean)

    def _restart(self, node: Node, clean: bool) -> None:
        if node.replica is None:
            node.start(clean)

    def _cut_some(self) -> None:
        if self.world.healed:
            return
        rng, faults = self.world.rng, self.world.faults
        one, other = rng.sample(list(self.nodes), 2)
        self.world.note("cut", one.hex()[:4], other.hex()[:4])
        self.world.cut(one, other)
        self.world.after(rng.expovariate(1 / faults.outage_s), self.world.join, one, other)
        self.world.after(rng.expovariate(1 / faults.cut_interval_s), self._cut_some)

    def heal(self) -> None:
        """End all faults: links mend, nodes come back."""
        self.world.note("heal")
        self.world.healed = True
        for one in self.nodes:
            for other in self.nodes:
                self.world.join(one, other)
        for node in self.nodes.values():
            self._restart(node, clean=False)

    # --- judgement ----------------------------------------------------------------------------------------------------------------

    def final_records(self, bucket: bytes, key: bytes) -> list[bytes]:
        """The durable record of the key on each of its owners (b"" = absent); damaged rows raise."""
        found = []
        for node in self.nodes.values():
            assert node.replica is not None
            core = node.replica.core
            partition, row_key = core.locate(bucket, key)
            if node.node_id in core.ring.owners(partition):
                data = node.disk.objects.get(row_key)
                found.append(b"" if data is None else decode_row(row_key, data).record)
        return found


class Client:
    """A client's side of the network: one request at a time, a time-out, and the token and values it was shown for each key."""

    def __init__(self, cluster: SimulatedCluster, number: int) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.number = number
        self._request = 0
        self._waiting: dict[int, object] = {}
        cluster.clients[number] = self

    def ask(self, node: bytes, message: Message, timeout_s: float, then: object) -> None:
        """Send a request (its id is filled in); `then(reply | None)` is called once, None on time-out."""
        self._request += 1
        request_id = self._request
        self._waiting[request_id] = then
        target = self.cluster.nodes[node]
        self.world.carry(self.number, node, True, target.deliver, target.boots, self.number, (message[0], request_id, *message[2:]))
        self.world.after(timeout_s, self._finish, request_id, None)

    def receive(self, message: Message) -> None:
        """A reply arrived; late and repeated ones find nobody waiting."""
        self._finish(message[1], message)

    def _finish(self, request_id: int, reply: Message | None) -> None:
        then = self._waiting.pop(request_id, None)
        if then is not None:
            then(reply)  # type: ignore[operator]


def error_of(reply: Message) -> DynamoError:
    """The error an ERROR message stands for."""
    from dynamo.errors import from_wire

    return from_wire(*reply[2:7])
