"""A whole cluster in one process and in virtual time: the real `Replica` objects, the clients' real core, over simulated disks, links and clocks.

    SimulatedCluster   the nodes, what connects them, and what all parts need to know of each other
      World              clock, heap, trace                 Network    links
      Node, Disk         one driver and its storage         Nemesis    what goes wrong
      SimulatedClient    verbs, retries, the history        Observer   what nodes say against what disks hold

The configuration is drawn from the seed like everything else: N, R, W, how many nodes and partitions, intervals, limits, kinds of buckets.
"""

from __future__ import annotations

from random import Random
from typing import Any

from dynamo._core import record as records
from dynamo.client.core import RetryPolicy
from dynamo.errors import CorruptRecord, DynamoError
from dynamo.model import messages as m
from dynamo.model.cluster import BucketDefinition, Cluster
from dynamo.model.key import is_hashed
from dynamo.model.member import NORMAL, STATUSES, Member
from dynamo.model.messages import Message, Source
from dynamo.model.row import decode_row
from dynamo.replication import Settings
from dynamo.replication.quorum import needed
from dynamo.testing.buffered import BufferedNode
from dynamo.testing.checkers import Violation, place_text
from dynamo.testing.client import SimulatedClient
from dynamo.testing.events import World
from dynamo.testing.faults import Faults
from dynamo.testing.history import Dot, Final, History, Version
from dynamo.testing.nemesis import Nemesis
from dynamo.testing.network import Link, Network
from dynamo.testing.node import Node
from dynamo.testing.observer import Observer

_LOOKS_AGAIN_S = 5.0  # after which an administrator looks whether a change stands

_KINDS = {value: name for name, value in vars(m).items() if name.isupper() and isinstance(value, int) and name not in (
    "OWNER", "FALLBACK", "RECOVERING") and not name.startswith(("MODE_", "PURPOSE_", "DURABILITY_", "ROLE_"))}  # fmt: skip


class SimulatedCluster:
    """One cluster and everything that happens to it. `storm`: clients are busy, faults strike."""

    def __init__(
        self, world: World, faults: Faults, *, nodes: int, definition: Cluster, settings: Settings, retry: RetryPolicy, clients: int,
        pinned: float = 0.0, buffered: bool = False,
    ) -> None:  # fmt: skip
        """`pinned`: share of clients that know only a few of the nodes, as clients with a short list of addresses do. `buffered`: the durability of
        all nodes; else it is `synced`."""
        self.pinned = pinned
        self.buffered = buffered
        self.world = world
        self.faults = faults
        self.definition = definition
        self.settings = settings
        self.storm = False
        self.history = History(kinds={name.decode(): bucket.kind for name, bucket in definition.buckets.items()})
        self.history_names: dict[Dot, str] = {}
        self.history_times: dict[Dot, int] = {}
        self.requests: dict[tuple[int, int], list[tuple[bytes, bytes, int, str]]] = {}  # (client, request id) -> what was asked: bucket, key, W, operation
        self.acknowledged = 0
        self.reads = 0
        self.rotten: set[bytes] = set()
        self.leaving: set[bytes] = set()
        self.network = Network(world, faults)
        self.ring_changes = bool(faults.late_joiners or faults.leavers or faults.losses_max)
        self.observer = Observer(self)
        self.nodes: dict[bytes, Node] = {}
        self.addresses: dict[str, Node] = {}
        self.clients: dict[int, SimulatedClient] = {}
        self._rng = world.stream("cluster")
        self._row_keys: dict[tuple[bytes, bytes], bytes] = {}
        self.places: dict[bytes, tuple[bytes, bytes]] = {}  # row key -> (bucket, key)
        self._disconnected: set[Link] = set()  # (node, peer): the node's driver has been told that it has no connection
        self._least_members = nodes - faults.leavers - faults.losses_max
        self.nemesis = Nemesis(self)
        made = [self._make_node() for _ in range(nodes)]
        members = [Member(n.node_id, n.name, 0, 0, 1, n.address, "", 1000, NORMAL, 0, 0, 1) for n in made]
        for node in made:
            node.start(members)
        for number in range(1, clients + 1):
            SimulatedClient(self, number, retry)

    # --- nodes ------------------------------------------------------------------------------------------------------------------------

    def _make_node(self) -> Node:
        node = (BufferedNode if self.buffered else Node)(self, self._rng.randbytes(16), len(self.nodes))
        self.nodes[node.node_id] = node
        self.addresses[node.address] = node
        return node

    def add_node(self) -> Node:
        """A new node joins through one that is up."""
        node = self._make_node()
        node.newcomer = True
        self.world.note("join", node)
        node.start(self.known_members())
        for client in self.clients.values():
            client.learn()
        return node

    def known_members(self) -> list[Member]:
        """The membership as some node that is up knows it; empty when none is."""
        up = [node for node in self.nodes.values() if node.replica is not None]
        if not up:
            return []
        replica = self._rng.choice(up).replica
        assert replica is not None
        return list(replica.core.membership.members.values())

    def administer(self, node_id: bytes, status: str) -> bool:
        """An administrator changes a member's status, on some node that is up, and looks later whether it stands; False when there is none."""
        up = [node for node in self.nodes.values() if node.replica is not None and not node.paused and node.node_id != node_id]
        up = [node for node in up if node.replica is not None and node_id in node.replica.core.membership.members]
        if not up:
            return False
        node = self._rng.choice(up)
        assert node.replica is not None
        node.replica.core.membership.administer(node_id, status=status)
        self.world.note("administer", self.name_of(node_id), status, "on", node)
        self.world.after(_LOOKS_AGAIN_S, self._see_to, node_id, status)
        return True

    def _see_to(self, node_id: bytes, status: str) -> None:
        """The node that was told may have died before it told anybody or had it on disk: nobody knows then, and it is done again."""
        others = [node.replica.core.membership for node in self.nodes.values() if node.replica is not None and node.node_id != node_id]
        found = [membership.members[node_id].status for membership in others if node_id in membership.members]
        know = [STATUSES.index(known) >= STATUSES.index(status) for known in found]
        if not any(know) and self.administer(node_id, status):
            return
        if not know or not all(know):
            self.world.after(_LOOKS_AGAIN_S, self._see_to, node_id, status)

    def started(self, node: Node) -> None:
        """A node is up: connections to it and from it come about."""
        for other in self.nodes.values():
            if other is not node:
                self._look(node.node_id, other.node_id)
                self._look(other.node_id, node.node_id)

    def stopped(self, node: Node) -> None:
        """A node is down: connections break."""
        for client in self.clients.values():
            client.node_died(node.node_id, node.boots)
        for other in self.nodes.values():
            if other is not node:
                self._look(other.node_id, node.node_id)

    def links_changed(self, links: list[Link]) -> None:
        """Links were cut or mended: drivers notice after a while."""
        for one, other in links:
            if type(one) is bytes and type(other) is bytes:
                self._look(one, other)
                self._look(other, one)

    def _look(self, at: bytes, peer: bytes) -> None:
        if self.faults.notice_s:
            self.world.after(self._rng.expovariate(1 / self.faults.notice_s), self._noticed, at, peer)

    def _noticed(self, at: bytes, peer: bytes) -> None:
        """The driver of `at` finds out whether it has a connection to `peer`."""
        node, other = self.nodes[at], self.nodes[peer]
        if node.replica is None:
            self._disconnected.discard((at, peer))
            return
        up = other.replica is not None and self.network.passes(at, peer) and self.network.passes(peer, at)
        if up != ((at, peer) not in self._disconnected):
            if node.paused:
                self.world.after(0.1, self._noticed, at, peer)
                return
            (self._disconnected.discard if up else self._disconnected.add)((at, peer))
            node.peer(peer, up)

    def heal(self) -> None:
        """End all faults."""
        self.world.note("heal")
        self.world.healed = True
        self.network.mend_all()
        self.nemesis.heal()
        for one in self.nodes:
            for other in self.nodes:
                if one != other:
                    self._look(one, other)

    def dismantle(self) -> None:
        """Take the cluster apart when all is judged: its parts know each other, and would stay until somebody looks for cycles."""
        for node in self.nodes.values():
            node.forget()
        for part in (*self.nodes.values(), *self.clients.values(), self.observer, self.nemesis, self):
            vars(part).clear()

    def live(self) -> list[Node]:
        """The nodes that are there to stay."""
        return [node for node in self.nodes.values() if not node.removed]

    # --- names ------------------------------------------------------------------------------------------------------------------------

    def row_key(self, bucket: bytes, key: bytes) -> bytes:
        """The row key of a key."""
        known = self._row_keys.get((bucket, key))
        if known is None:
            node = next(node for node in self.nodes.values() if node.replica is not None)
            assert node.replica is not None
            known = self._row_keys[bucket, key] = node.replica.core.locate(bucket, key)[1]
            self.places[known] = bucket, key
        return known

    def required(self, bucket: bytes, w: int) -> int:
        """The W of a write, at the least: the ring may have shrunk."""
        definition = self.definition.bucket(bucket)
        return needed(w, definition.w, self.definition.w, definition.n or self.definition.n, max(1, self._least_members))

    @staticmethod
    def key_name(key: bytes) -> str:
        """A key as histories have it."""
        return key.decode("utf-8", "surrogateescape")

    @staticmethod
    def key_bytes(name: str) -> bytes:
        """The inverse of `key_name`."""
        return name.encode("utf-8", "surrogateescape")

    def key_text(self, bucket: bytes, key: bytes) -> str:
        """A key for people."""
        return place_text(bucket.decode(), self.key_name(key))

    def name_of(self, source: Source) -> str:
        """A node or client for people."""
        if type(source) is int:
            return f"c{source}"
        return str(self.nodes[source]) if type(source) is bytes and source in self.nodes else "?"

    def describe(self, message: Message) -> str:
        """A message for people: its type, request id, key, and the operations it is about."""
        kind = message[0]
        text = f"{_KINDS.get(kind, kind)} {message[1]}"
        if kind in (m.GET, m.PUT, m.READ, m.REPLICATE):
            text += f" {self.key_text(message[2], message[3])}"
        if kind == m.PUT:
            text += f" {message[10].hex()[:8]}"
        elif kind == m.REPLICATE:
            text += f" {self.describe_record(message[4])}"
        elif kind == m.READ_REPLY:
            text += f" code={message[2]} " + ("=" if message[5] is None else self.describe_record(message[5]))
        elif kind == m.GET_REPLY:
            text += " " + " ".join(f"{s[0][:4].hex()}({s[1] >> 48:04x}:{s[2]})" for s in message[6]) + f" +{len(message[7])} deleted"
        elif kind == m.PUT_REPLY:
            text += f" ({message[5] >> 48:04x}:{message[6]}) confirmed={message[8]}"
        elif kind in (m.FORWARD, m.FORWARD_REPLY):
            text += f" [{self.describe(message[2])}]"
        elif kind in (m.ERROR, m.REPLICATE_REPLY):
            text += " " + " ".join(str(part) for part in message[2:5])
        return text

    @staticmethod
    def describe_record(record: bytes) -> str:
        """The versions of a record for people: the first digits of operation and actor, the counter, and x for a tombstone."""
        if not record:
            return "-"
        return " ".join(f"{v[3].hex()[:8]}({v[0] >> 48:04x}:{v[1]}{'x' if v[6] else ''})" for v in records.versions(record))

    # --- judgement --------------------------------------------------------------------------------------------------------------------

    def differences(self) -> list[Violation]:
        """What keeps the cluster from having converged: different records at owners, hints, rows at nodes that do not own them, different views
        of the membership."""
        found: list[Violation] = []
        live = self.live()
        views = {node.replica.core.membership.digest() if node.replica is not None else b"" for node in live}
        if len(views) > 1:
            found.append(Violation("converge", f"{len(views)} views of the membership", time=self.world.now))
        hopeless = set()
        for key in sorted({key for node in live for key in node.view()[0]}):
            if self._is_hopeless(key, live):
                hopeless.add(key)
            else:
                found.extend(self._differences_of(key, live))
        for node in live:
            hints = [hint for hint, value in node.view()[1].items() if (value[4:] or hint[16:]) not in hopeless]
            if hints:
                found.append(Violation("converge", f"{node} still has {len(hints)} hints", time=self.world.now))
        return found

    def _is_hopeless(self, key: bytes, live: list[Node]) -> bool:
        """Whether the key cannot be repaired: because no owner has a good copy of it and one has a rotten one (with N = 1, say); because the rotten one
        is the only one there is; or because a stand-in for its owners has a rotten row that does not even say any more which key it is of."""
        owners = self._owners(int.from_bytes(key[:2], "big"), self.places[key][0])
        rotten = [node for node in live if key in node.disk.damaged]
        good = {node.node_id for node in live if node.held(key) is not None and key not in node.disk.damaged}
        unnamed = is_hashed(key) and any(node.node_id not in owners for node in rotten)
        return unnamed or (bool(rotten) and not good) or (good.isdisjoint(owners) and any(node.node_id in owners for node in rotten))

    def _differences_of(self, key: bytes, live: list[Node]) -> list[Violation]:
        bucket, name = self.places[key]
        partition = int.from_bytes(key[:2], "big")
        owners = self._owners(partition, bucket)
        held: dict[bytes, list[str]] = {}
        place, damaged_rows = self.key_text(bucket, name), []
        for node in live:
            data = node.held(key)
            owned = node.node_id in owners
            if data is not None and not owned:
                damaged = ", and damaged" if key in node.disk.damaged else ""
                return [Violation("converge", f"{node} still has a row of {place}, which it does not own{damaged}", time=self.world.now)]
            try:
                record = b"" if data is None else decode_row(key, data).record
            except CorruptRecord as error:
                damaged_rows.append(Violation("converge", f"{node} has a damaged row of {place}: {error}", time=self.world.now))
                continue
            if owned:
                held.setdefault(record, []).append(node.name)
        if len(held) <= 1:
            return damaged_rows
        text = "; ".join(f"{' '.join(names)}: {self.describe_record(record)}" for record, names in held.items())
        return [Violation("converge", f"owners of {place} differ: {text}", time=self.world.now)]

    def _owners(self, partition: int, bucket: bytes) -> tuple[bytes, ...]:
        replica = next(node.replica for node in self.live() if node.replica is not None)
        return replica.core.owners(partition, self.definition.bucket(bucket))

    def values_of(self, node: Node, bucket: bytes, key: bytes) -> dict[str, bytes]:
        """The live values a node's disk holds of a key, by operation."""
        data = node.held(self.row_key(bucket, key))
        versions = records.versions(decode_row(self.row_key(bucket, key), data).record) if data is not None else ()
        return {version[3].hex(): version[7] for version in versions if not version[6]}

    def record_final(self) -> None:
        """Put what the owners hold into the history, joined where they differ, for every key that was ever written to."""
        names = sorted({(write.bucket, write.key) for write in self.history.writes.values()})
        for bucket, key in names:
            merged = b""
            place = self.row_key(bucket.encode(), self.key_bytes(key))
            for node in self.live():
                data = node.held(place)
                try:
                    merged = records.merge(merged, decode_row(place, data).record) if data is not None else merged
                except DynamoError:
                    continue  # reported as a difference
            versions = [
                Version((actor, counter), operation.hex(), time, tombstone)
                for actor, counter, time, operation, _, _, tombstone, _ in (records.versions(merged) if merged else ())
            ]
            self.world.fold_bytes(merged)
            self.history.add(Final(bucket, key, versions))


# --- drawing a configuration ------------------------------------------------------------------------------------------------------------


def draw_cluster(rng: Random, nodes: int) -> Cluster:
    """The document of a random cluster: N, R, W, Q and buckets of several kinds."""
    n = min(nodes, rng.choice((1, 2, 3, 3, 3, 3, 4, 5)))

    def quorum(name_chance: float) -> int:
        dice, number = rng.random(), rng.randint(1, n)
        return number if dice < name_chance else 0

    small = min(nodes, rng.choice((1, 2, 3)))
    buckets = {
        b"lww": BucketDefinition(kind="last_write_wins", version=1),
        b"sets": BucketDefinition(version=1),
        b"few": BucketDefinition(siblings_max=rng.choice((2, 4, 10)), value_bytes_max=300, version=1),
        b"small": BucketDefinition(n=small, w=rng.choice((0, 1)), r=rng.choice((0, 1)), version=1),
        b"strict": BucketDefinition(pw=n // 2 + 1, pr=n // 2 + 1, version=1),
    }
    # Fewer than the usual in both, or W could ask for more copies than a small bucket has.
    return Cluster(cluster_id=rng.randbytes(16), secret=rng.randbytes(32), seed=rng.getrandbits(64), partitions=rng.choice((8, 16, 32, 64)), n=n,
                   r=min(quorum(0.2), small), w=min(quorum(0.2), small), buckets=buckets)  # fmt: skip


def draw_settings(rng: Random) -> Settings:
    """Random intervals and limits."""
    drawn: dict[str, Any] = {
        "fallback_after_s": rng.choice((0.03, 0.1, 0.2, 0.5)),
        "hedge_after_s": rng.choice((0.02, 0.05, 0.2)),
        "suspect_after_s": rng.choice((0.3, 1.0, 2.0)),
        "heartbeat_interval_s": rng.choice((1.0, 4.0, 4.0, 8.0)),
        "gossip_interval_s": rng.choice((1.0, 4.0)),
        "pending_max": rng.choice((20, 20_000, 20_000)),
        "operations_max": rng.choice((4, 20_000, 20_000)),
        "record_bytes_max": rng.choice((8_000, 4 << 20)),
        "handoff_window": rng.choice((1, 4, 64)),
        "handoff_retry_s": rng.choice((0.5, 2.0)),
        "hint_bytes_max": rng.choice((2_000, 256 << 20, 256 << 20)),
        "hint_window": rng.choice((1, 4, 64)),
        "hint_retry_s": rng.choice((0.3, 1.0, 3.0)),
        "exchange_interval_s": rng.choice((2.0, 5.0, 10.0)),
        "repair_window": rng.choice((1, 4, 64)),
        "tree_slice_rows": rng.choice((1, 3, 512)),
        "tree_slice_s": rng.choice((0.01, 0.2)),
        "hedge_pending_max": rng.choice((0, 128)),
    }
    return Settings(**drawn)
