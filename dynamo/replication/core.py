"""What the coordinators of one node share: its identity and views, its rows, its pending requests and its outbox.

No policy lives here. `Replica` owns one `Core` and hands it to the parts (`local`, `put`, `get`, `forward`, `handoff`), which read and change it
and talk to the world only by the outbox.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dynamo._core import record as records
from dynamo._core import ring as ring_kernel
from dynamo._core import row as row_kernel
from dynamo.errors import CorruptRecord, DynamoError
from dynamo.membership.members import Membership
from dynamo.membership.ring import Ring
from dynamo.model import messages as m
from dynamo.model.cluster import BucketDefinition, Cluster
from dynamo.model.key import could_be_row_key, is_hashed, row_key, split_row_key
from dynamo.model.member import LEFT
from dynamo.model.messages import Message, Source
from dynamo.model.row import Row, decode_row
from dynamo.replication.actor import ActorLease
from dynamo.replication.adoption import Adopted
from dynamo.replication.deadlines import Deadlines
from dynamo.replication.flushes import Flushes
from dynamo.replication.liveness import Liveness
from dynamo.replication.routes import Route, Routes
from dynamo.replication.rows import Rows
from dynamo.replication.stalls import Stalls
from dynamo.replication.standings import Standings

if TYPE_CHECKING:
    from random import Random

    from dynamo.replication.hinted_handoff import Hints

Place = tuple[BucketDefinition, bytes, Route]  # definition of the bucket, row key, route
Scan = Callable[[bytes, bytes | None, int], list[tuple[bytes, bytes]]]


@dataclass(frozen=True, slots=True)
class Settings:
    """Times and bounds of one node's policy. They decide routing and load, never correctness (P9)."""

    fallback_after_s: float = 0.2  # a put short of W goes on to the next node; longer spares fallbacks, shorter spares latency
    hedge_after_s: float = 0.05  # a get short of R asks one more replica; a few times the usual latency
    hedge_pending_max: int = 128  # with more requests in flight a late answer is that of a long queue, which hedging makes longer
    suspect_after_s: float = 1.0  # a peer silent this long under a request is passed over until it speaks
    heartbeat_interval_s: float = 0.5  # how often each peer is asked for a sign of life; what the failure detector learns from
    stall_s: float = 0.25  # a step so late says that this node was stopped: what clients asked meanwhile may be out of date
    gossip_interval_s: float = 1.0  # how often the membership is compared with that of one random other member
    heartbeat_peers_max: int = 32  # peers asked at a time; of more, a random choice
    request_time_s_max: float = 60.0  # the longest a request may stay pending, whatever its client asked
    pending_max: int = 20_000  # requests in flight; beyond it new ones are refused as busy
    operations_max: int = 20_000  # operation ids remembered against retries
    record_bytes_max: int = 2 << 20  # a client's put that grows a record past this is refused; four sides of a partition still fit into a frame
    keys_per_request_max: int = 1024
    answer_bytes_max: int = 7 << 20  # of one key in an answer: of a record that is larger a part is shown, see `fitting`; clients take frames of 8 MiB
    reading_bytes_max: int = 128 << 20  # of records held by gets that wait for others; beyond it new ones are refused as busy
    handoff_window: int = 64  # rows handed over at a time
    handoff_retry_s: float = 2.0
    hint_bytes_max: int = 256 << 20  # of records held back for nodes that are down; beyond it new hints are refused
    hint_window: int = 64  # hints replayed to one node at a time; its acknowledgements, sent after its commits, set the pace
    hint_retry_s: float = 1.0
    exchange_interval_s: float = 10.0  # how often two owners compare their trees
    keys_per_listing: int = 1024  # keys of a partition that one message of an exchange lists, at most; a receiver takes four times as many
    repair_window: int = 16  # keys repaired at a time in one exchange; more refill sooner, and clients wait behind larger commits
    tree_slice_rows: int = 512  # rows read at a time while the trees are built after a start
    tree_slice_s: float = 0.01  # pause between two of them


@dataclass(slots=True)
class ReplyTo:
    """Where the answer to a request goes: a client, a node that forwarded, one slot of a batch, or nobody (a repair of our own)."""

    source: Source | None
    request_id: int
    forwarded: bool = False
    batch: Batch | None = None
    maybe_applied: bool = False  # an earlier attempt at the same request may have taken effect: the OR of P10

    @property
    def reply_id(self) -> int:
        """The request id that the reply carries; one in a batch has none."""
        return self.request_id if self.batch is None else 0


class Batch(Protocol):
    """Collects the answers of a request for many keys; the request id is the slot."""

    def add(self, slot: int, reply: Message) -> Message | None:
        """Take one answer; the whole reply once all are there."""


class Fold(Protocol):
    """A pending request: replies are added to it until it is answered and done."""

    def on_reply(self, core: Core, source: bytes, message: Message) -> bool: ...
    def on_wake(self, core: Core, record: bytes | None) -> bool: ...
    def on_failure(self, core: Core, node: bytes, code: int) -> bool: ...
    def on_timer(self, core: Core) -> bool: ...

    # Each returns whether the fold is finished and leaves the table of pending requests.


class Core:
    """The shared state of one node's policy. `now` is the driver's monotonic time of the current step, in seconds."""

    def __init__(
        self,
        settings: Settings,
        node_id: bytes,
        cluster: Cluster,
        membership: Membership,
        actor: ActorLease,
        rows: Rows,
        scan: Scan,
        hints: Hints,
        random: Random,
        wall_us: Callable[[], int],
        durability: int,
        standings: Standings,
    ) -> None:
        self.settings = settings
        self.node_id = node_id
        self.cluster = cluster
        self.membership = membership
        self.actor = actor
        self.rows = rows
        self.scan = scan
        self.hints = hints
        self.random = random
        self.durability = durability
        # What others must give before a copy is dropped here for theirs: a write buffer is no place for the only one.
        self.durability_to_drop = m.DURABILITY_RELAXED if durability == m.DURABILITY_BUFFERED else durability
        self.flushes = Flushes()
        self.standings = standings
        self.adopted = Adopted(node_id, standings)
        self.recovering_peers: dict[bytes, int] = {}  # of how many of its partitions a peer said that it does not hold all yet
        self.ring_news: set[bytes] = set()  # peers that know another ring, as late as this one's or later
        self.now = 0.0
        self.stalls = Stalls()
        self.liveness = Liveness(settings.heartbeat_interval_s)
        self.deadlines = Deadlines()
        self.pending: dict[int, Fold] = {}
        self.reading_bytes = 0  # of the records that pending gets hold
        self.outbox: list[tuple[Source, Message]] = []
        self.waiting_for_actor: list[tuple[ReplyTo, Message]] = []
        self.alone = False  # set by the driver of a store that never had a peer: nobody can bring back what its own past actors wrote
        self.unowned_rows_staged = False
        self.repair_wanted: list[tuple[bytes, bytes]] = []  # keys whose own row is damaged, to be read from peers
        self._repairs: dict[tuple[bytes, bytes], float] = {}  # when the repair of a damaged row was last begun
        self.storage_error: DynamoError | None = None  # the last one that this node's own storage gave
        self.counters: dict[str, int] = {}
        self._wall_us = wall_us
        self._time = 0
        self._next_request = random.getrandbits(40)
        self.ring: Ring
        self.ring_number, self.ring_hash = -1, 0
        self.rebuild_ring()

    def rebuild_ring(self) -> bool:
        """Derive the ring from the membership after that changed; whether it is another one. Most changes are longer leases, which leave it alone."""
        if self.membership.ring_id == (self.ring_number, self.ring_hash):
            return False
        self.ring = Ring.of(self.membership, self.cluster)
        self.ring_number, self.ring_hash = self.membership.ring_id
        self.definitions = (self.cluster.bucket(b"default"), *self.cluster.buckets.values())
        self.adopted.begin()
        self.standings.follow(self.node_id, self.ring, self.cluster, self.definitions, self.adopted.known)
        self.standings.without({member.node_id for member in self.membership.in_status(LEFT)})
        self._routes = Routes(self.node_id, self.ring, self.liveness, self.standings)
        return True

    # --- naming -------------------------------------------------------------------------------------------------------------------

    def locate(self, bucket: bytes, key: bytes) -> tuple[int, bytes]:
        """(partition, row key) of a key."""
        position = ring_kernel.position(bucket, key, self.cluster.seed)
        partition = ring_kernel.partition_of(position, self.cluster.partitions)
        return partition, row_key(partition, bucket, key, self.cluster.secret)

    def is_row_key(self, row_key: bytes) -> bool:
        """Whether a row of this cluster can lie there, as far as the row key alone tells. One that cannot is counted; whoever met it leaves it alone."""
        if could_be_row_key(row_key, self.cluster.partitions):
            if is_hashed(row_key):
                return True
            _, bucket, key = split_row_key(row_key)
            if row_kernel.inline_key(bucket, key, self.cluster.seed, self.cluster.partitions) == row_key:
                return True
        self.count("rows_misplaced")
        return False

    def decode(self, row_key: bytes, data: bytes) -> Row:
        """A row as it came from a scan, under a row key that passed `is_row_key`. Raises CorruptRecord, and sees to the row's repair."""
        try:
            row = self.rows.checked(row_key, decode_row(row_key, data))
            if row.full_key:
                bucket, _, key = row.full_key.partition(b"\0")
                if self.locate(bucket, key)[1] != row_key:
                    raise CorruptRecord("a row lies under the hash of another key")
        except CorruptRecord:
            self.want_repair(row_key)
            raise
        return row

    def place(self, bucket: bytes, key: bytes) -> Place:
        """(definition of the bucket, row key, route) of a key: what every request begins with, on each node that it meets."""
        cluster, routes = self.cluster, self._routes
        definition = cluster.bucket(bucket)
        at = row_kernel.inline_key(bucket, key, cluster.seed, cluster.partitions)
        if at is None:
            partition, at = self.locate(bucket, key)
        else:
            partition = at[0] << 8 | at[1]
        if routes.version != self.liveness.version:
            routes.forget()
        return definition, at, routes[definition.n << 16 | partition]

    def standing_changed(self) -> None:
        """This node needs less than it did."""
        self._routes.forget()

    def recovering(self) -> int:
        """Of how many partitions that this node owns it does not hold all yet."""
        owned = {partition for n, partition in self.standings.needs if self.node_id in self.ring.owners(partition, n)}
        return len(owned)

    def is_news(self, source: bytes, ring_number: int) -> bool:
        """Whether a peer that named another ring than this node's knows something that this node does not; it is then asked for it."""
        if ring_number < self.ring_number:
            return False
        self.ring_news.add(source)
        return True

    def route(self, partition: int, definition: BucketDefinition) -> Route:
        """Where requests for a partition go right now."""
        if self._routes.version != self.liveness.version:
            self._routes.forget()
        return self._routes[definition.n << 16 | partition]

    def owners(self, partition: int, definition: BucketDefinition) -> tuple[bytes, ...]:
        """The current owners of the partition under the bucket's N."""
        return self.ring.owners(partition, definition.n or None)

    def request_id(self) -> int:
        """A fresh id for a request of this node's own."""
        self._next_request += 1
        return self._next_request

    def hlc(self, at_least: int = 0) -> int:
        """The next hybrid logical time: unix microseconds << 12, never going back, above `at_least`. It orders last-write-wins and labels
        versions; no promise rests on it."""
        self._time = max(self._time + 1, at_least + 1, self._wall_us() << 12)
        return self._time

    # --- talking ------------------------------------------------------------------------------------------------------------------

    def send(self, destination: Source, message: Message) -> None:
        """Send now."""
        self.outbox.append((destination, message))

    def answer(self, reply_to: ReplyTo, reply: Message) -> None:
        """Give the reply, which has `reply_id` in its second place, to whoever asked."""
        if reply_to.batch is not None:
            whole = reply_to.batch.add(reply_to.request_id, reply)
            if whole is not None and reply_to.source is not None:
                self.outbox.append((reply_to.source, whole))
        elif reply_to.source is not None:
            if reply_to.forwarded:
                reply = (m.FORWARD_REPLY, reply_to.request_id, reply)
            self.outbox.append((reply_to.source, reply))

    def refuse(self, reply_to: ReplyTo, error: DynamoError) -> None:
        """Answer with an error. Its `maybe_applied` must already tell the truth about this attempt."""
        maybe_applied = error.maybe_applied or reply_to.maybe_applied
        required, received = getattr(error, "required", 0), getattr(error, "received", 0)
        self.answer(reply_to, m.error_message(reply_to.reply_id, error.code, str(error), maybe_applied, required, received))

    def count(self, name: str, by: int = 1) -> None:
        """Count an event that operators should hear of."""
        self.counters[name] = self.counters.get(name, 0) + by

    # --- pending requests ---------------------------------------------------------------------------------------------------------

    def want_repair(self, row_key: bytes) -> None:
        """A damaged row was met: have it read from the owners. Of a long key the row itself held the name; that one waits for whoever names it."""
        self.count("rows_corrupt")
        if not is_hashed(row_key):
            self.repair_wanted.append(split_row_key(row_key)[1:])

    def begin_repairs(self) -> list[tuple[bytes, bytes]]:
        """The keys to be repaired now, each at most once in `suspect_after_s`: two owners whose rows are both damaged must not set each other off."""
        wanted, self.repair_wanted = sorted(set(self.repair_wanted)), []
        if len(self._repairs) > 10_000:
            self._repairs.clear()
        due = [key for key in wanted if self._repairs.get(key, -math.inf) + self.settings.suspect_after_s <= self.now]
        self._repairs.update(dict.fromkeys(due, self.now))
        return due

    def finish_if(self, request_id: int, finished: bool) -> None:
        """Forget a pending request that said it is finished."""
        if finished:
            self.pending.pop(request_id, None)

    def note_silence(self, started: float, silent: list[bytes]) -> None:
        """Requests begun at `started` are still unanswered by these peers: suspect those that said nothing at all meanwhile."""
        if self.now - started < self.settings.suspect_after_s:
            return
        for node in silent:
            if node != self.node_id and self.liveness.silent_since(node, started) and self.liveness.up(node):
                self.liveness.suspect(node)
                self.count("peers_suspected")

    # --- the actor ----------------------------------------------------------------------------------------------------------------

    def contradicts_actor(self, context: bytes, row: Row | None) -> bool:
        """Whether a genuine context knows dots of our current actor that we do not: then our memory has a hole and the actor must go."""
        highest = records.context_highest(context, self.actor.actor)
        if highest == 0:
            return False
        if highest > self.actor.issued:
            return True
        if row is None or row.since == 0 or row.since_actor != self.actor.actor:
            return False
        return records.context_gap(records.context(row.record), context, self.actor.actor, row.since)

    def renew_actor(self) -> None:
        """Begin a new actor; puts wait until it is durable."""
        self.actor.renew(self.random)
        self.count("actors_renewed")
        self.stage_actor()

    def stage_actor(self) -> None:
        """Put the actor's newest lease into the next group."""
        self.rows.stage_meta(b"actor", self.actor.encode())
