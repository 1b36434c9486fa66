"""Anti-entropy: owners compare their Merkle trees and repair just what differs (paper 4.7; DESIGN section 4).

Every `exchange_interval_s`, the node with the smaller id of each pair of owners sends the roots of all trees both hold. For a tree whose root
differs they descend: 32 nodes, the 32 leaves under each that differs, the keys and digests in the leaves that differ. Every key found is then read
from both and repaired as by a get. So a comparison that finds nothing costs 8 bytes a partition, and one that finds something costs in
proportion to the difference. A leaf that differs without a differing key is recomputed from its rows, and counted.

Keys are listed in pages, in the order of their row keys, for there may be any number of them, in one leaf too. A page has `keys_per_listing` keys at
most at either end: the leader says up to which row key its own part goes, the other one up to where its answer does, and what lies before both is
compared. A listing begins with a look at all rows of the partition, which the leaves are checked against; each further page reads on from its place.

An exchange is a fold like any other request: one message at a time, given up when the peer is silent, begun anew at the next interval.
"""

from __future__ import annotations

from dynamo._core import merkle
from dynamo.errors import DynamoError, InvalidRequest, Unavailable
from dynamo.model import messages as m
from dynamo.model.messages import Message
from dynamo.replication.core import Core
from dynamo.replication.get import PendingGet, begin_repair
from dynamo.replication.landing import begin_landing
from dynamo.replication.trees import Listing, Place, Trees

_TREES_PER_ANSWER = 256
_PREFIX = 8  # bytes of a digest that are compared; a difference they hide shows at the next write to the key


class AntiEntropy:
    """Begins exchanges, and answers those of others."""

    __slots__ = ("_agreed", "_led", "_ring_hash", "_running", "_trees", "next_at")

    def __init__(self, trees: Trees) -> None:
        self._trees = trees
        self._running: set[bytes] = set()  # peers an exchange is under way with
        self._ring_hash: int | None = None
        self._led: dict[bytes, list[Place]] = {}  # peers this node compares itself with, and the trees both hold
        self._agreed: dict[bytes, float] = {}  # peer -> when the last exchange that closed every difference began; until then, when we met
        self.next_at: float | None = 0.0

    def step(self, core: Core) -> None:
        """Begin the exchanges that are due."""
        if core.ring_hash != self._ring_hash:
            self._ring_hash = core.ring_hash
            peers = [peer for peer in core.ring.preference(0) if peer > core.node_id] if core.ring.size else []
            self._led = {peer: shared for peer in sorted(peers) if (shared := self._trees.shared_with(core, peer))}
            for peer in self._led:
                self._agreed.setdefault(peer, core.now)
        if self.next_at is None or core.now < self.next_at:
            return
        # Not all nodes of a cluster at the same moment, nor a pair of them in lockstep for ever.
        self.next_at = core.now + core.settings.exchange_interval_s * (0.75 + 0.5 * core.random.random())
        if not self._trees.built:
            self.next_at = core.now + min(1.0, core.settings.exchange_interval_s)
            return
        for peer, shared in self._led.items():
            if peer not in self._running and core.liveness.up(peer):
                self._running.add(peer)
                PendingExchange(core, self, self._trees, peer, shared).begin(core)

    def ended(self, peer: bytes, agreed_since: float | None) -> None:
        """An exchange is over; `agreed_since`: when it began, if it closed everything it found."""
        self._running.discard(peer)
        if agreed_since is not None:
            self._agreed[peer] = agreed_since

    def agreement_age(self, now: float) -> float:
        """Seconds since this node agreed with each of the peers it compares itself with: the longest such time, 0 where there is none. All nodes of a
        cluster together say since when all owners hold the same."""
        return max((now - self._agreed[peer] for peer in self._led), default=0.0)

    # --- answering ----------------------------------------------------------------------------------------------------------------

    def answer(self, core: Core, source: bytes, message: Message) -> None:
        """Answer the node that leads an exchange."""
        kind, request_id = message[:2]
        try:
            if not self._trees.built:
                raise Unavailable("the trees are being built")
            if kind == m.TREE_ROOTS:
                core.send(source, (m.TREE_ROOTS_REPLY, request_id, 0, self._compare_roots(core, source, message)))
            elif kind == m.TREE_NODES:
                core.send(source, (m.TREE_NODES_REPLY, request_id, 0, *self._compare_nodes(core, message)))
            else:
                core.send(source, (m.TREE_KEYS_REPLY, request_id, 0, *self._list_keys(core, message)))
        except DynamoError as error:
            empty: dict[int, Message] = {
                m.TREE_ROOTS: (m.TREE_ROOTS_REPLY, request_id, error.code, ()),
                m.TREE_NODES: (m.TREE_NODES_REPLY, request_id, error.code, (), b""),
                m.TREE_KEYS: (m.TREE_KEYS_REPLY, request_id, error.code, (), b""),
            }
            core.send(source, empty[kind])

    def _compare_roots(self, core: Core, source: bytes, message: Message) -> tuple[int, ...]:
        _, _, _, ring_hash, roots = message[:5]
        mine = self._trees.roots_shared_with(core, source)
        if ring_hash != core.ring_hash or len(roots) != len(mine):
            raise InvalidRequest("the two nodes do not see the same ring")
        return tuple(merkle.differing(roots, mine)[:_TREES_PER_ANSWER])

    def _compare_nodes(self, core: Core, message: Message) -> tuple[tuple[int, ...], bytes]:
        _, _, partition, n, nodes = message[:5]
        _known(core, n, partition)
        tree = self._trees.held(core, n, partition)
        if len(nodes) != merkle.FANOUT * merkle.HASH_BYTES:
            raise InvalidRequest("32 hashes of nodes were expected")
        found = merkle.differing(nodes, tree.nodes())
        return tuple(found), b"".join(tree.leaves_of(node) for node in found)

    def _list_keys(self, core: Core, message: Message) -> tuple[tuple[tuple[bytes, bytes, bytes], ...], bytes]:
        """(a page of keys in these leaves, the row key it was cut behind; b"" where it was not)."""
        _, _, partition, n, leaves, after, until = message[:7]
        if len(leaves) > merkle.LEAVES or any(not 0 <= leaf < merkle.LEAVES for leaf in leaves):
            raise InvalidRequest(f"{merkle.LEAVES} leaves at most, numbered from 0")
        _known(core, n, partition)
        rows, whole = self._trees.listed(core, (n, partition), frozenset(leaves), after, until, core.settings.keys_per_listing)
        return tuple((bucket, key, digest[:_PREFIX]) for _, bucket, key, digest in rows), b"" if whole else rows[-1][0]


class PendingExchange:
    """One comparison with one peer, led by this node."""

    answered = True  # nobody waits for it: a node that stops does not

    __slots__ = (
        "_after", "_awaits", "_entropy", "_filling", "_keys", "_leaves", "_mine", "_place", "_places", "_repairing", "_shared", "_trees", "_until", "begun",
        "peer", "request_id", "spoken", "whole",
    )  # fmt: skip

    def __init__(self, core: Core, entropy: AntiEntropy, trees: Trees, peer: bytes, shared: list[Place]) -> None:
        self._entropy = entropy
        self._trees = trees
        self._shared = shared
        self._places: list[Place] = []  # trees that differ and were not descended into yet
        self._place: Place = (0, 0)
        self._leaves: frozenset[int] = frozenset()  # leaves of `_place` that are being listed; none when all was compared
        self._after = b""  # rows up to here were compared
        self._until = b""  # the page of our own ends here; b"" where it is the last
        self._keys: list[tuple[bytes, bytes]] = []  # keys that differ and were not repaired yet
        self._mine: Listing = []  # that page
        self._repairing = 0
        self._filling = False
        self._awaits = False  # a reply
        self.peer = peer
        self.request_id = core.request_id()
        self.begun = self.spoken = core.now
        self.whole = True  # nothing was given up so far

    def begin(self, core: Core) -> None:
        """Send the roots."""
        core.count("exchanges")
        self._ask(core, (m.TREE_ROOTS, self.request_id, core.ring_number, core.ring_hash, self._trees.roots_shared_with(core, self.peer)))

    def on_reply(self, core: Core, source: bytes, message: Message) -> bool:
        if source != self.peer or not self._awaits:
            return False
        self._awaits = False
        self.spoken = core.now
        kind, code = message[0], message[2]
        if code or not self._trees.built:
            return self._end(core, agreed=False)
        if kind == m.TREE_ROOTS_REPLY:
            self._places = [self._shared[index] for index in message[3] if index < len(self._shared)]
            # Of a node that lost its rows all trees differ, from those of both other owners: these should not repair the same keys side by side.
            core.random.shuffle(self._places)
            self.whole = len(message[3]) < _TREES_PER_ANSWER
            return self._next_tree(core)
        if kind == m.TREE_NODES_REPLY:
            return self._take_nodes(core, message[3], message[4])
        if kind == m.TREE_KEYS_REPLY:
            return self._take_keys(core, message[3], message[4])
        return False

    def _next_tree(self, core: Core) -> bool:
        if not self._places:
            return self._end(core, agreed=self.whole)
        self._place = n, partition = self._places.pop()
        self._ask(core, (m.TREE_NODES, self.request_id, partition, n, self._trees.get(n, partition).nodes()))
        return False

    def _take_nodes(self, core: Core, nodes: tuple[int, ...], leaves: bytes) -> bool:
        tree, width = self._trees.get(*self._place), merkle.FANOUT * merkle.HASH_BYTES
        if len(leaves) != len(nodes) * width or any(not 0 <= node < merkle.FANOUT for node in nodes):
            return self._end(core, agreed=False)
        self._after = b""
        self._leaves = frozenset(
            node * merkle.FANOUT + leaf
            for at, node in enumerate(nodes)
            for leaf in merkle.differing(leaves[at * width : (at + 1) * width], tree.leaves_of(node))
        )
        return self._next_page(core)

    def _next_page(self, core: Core) -> bool:
        """List the next keys of the leaves that differ, and ask the peer for its own up to the same place."""
        if not self._leaves:
            return self._next_tree(core)
        n, partition = self._place
        try:
            self._mine, whole = self._trees.listed(core, self._place, self._leaves, self._after, b"", core.settings.keys_per_listing)
        except DynamoError:
            core.count("background_reads_failed")
            return self._end(core, agreed=False)
        self._until = b"" if whole else self._mine[-1][0]
        self._ask(core, (m.TREE_KEYS, self.request_id, partition, n, tuple(sorted(self._leaves)), self._after, self._until))
        return False

    def _take_keys(self, core: Core, entries: tuple[tuple[bytes, bytes, bytes], ...], cut: bytes) -> bool:
        """Compare as far as both pages go: ours to `_until`, the peer's to `cut` (b"": as far as it was asked)."""
        bound = cut or self._until
        if bound and not (self._after < bound <= (self._until or bound)):
            return self._end(core, agreed=False)  # it says that it went back, or beyond what it was asked for
        mine = {(bucket, key): digest[:_PREFIX] for row_key, bucket, key, digest in self._mine if not bound or row_key <= bound}
        theirs = {(bucket, key): digest for bucket, key, digest in entries}
        self._keys = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
        self._mine, self._after = [], bound
        if not bound:
            self._leaves = frozenset()
        core.count("keys_differing", len(self._keys))
        return self._repair_more(core)

    def _repair_more(self, core: Core) -> bool:
        """Keep the window of repairs full; go on to the next page when all are done."""
        if self._filling:
            return False  # a repair that was over at once: the loop below, which began it, goes on
        self._filling = True
        while self._keys and self._repairing < core.settings.repair_window and core.liveness.up(self.peer):
            bucket, key = self._keys.pop()
            self._repairing += 1
            begin_repair(core, bucket, key, [core.node_id, self.peer], self._repaired)
        self._filling = False
        if self._repairing:
            return False
        return self._end(core, agreed=False) if self._keys else self._next_page(core)

    def _repaired(self, core: Core, repair: PendingGet, request_id: int, behind: list[bytes]) -> None:
        self.whole = self.whole and len(repair.replies) == 2
        begin_landing(core, request_id, repair.row_key, behind, self._landed)

    def _landed(self, core: Core, stored: bool) -> None:
        self._repairing -= 1
        self.spoken = core.now
        self.whole = self.whole and stored
        if self.request_id in core.pending:
            core.finish_if(self.request_id, self._repair_more(core))

    def on_wake(self, core: Core, record: bytes | None) -> bool:
        return False

    def on_failure(self, core: Core, node: bytes, code: int) -> bool:
        return node == self.peer and self._end(core, agreed=False)

    def on_timer(self, core: Core) -> bool:
        silent_s = core.now - self.spoken
        core.note_silence(self.spoken, [self.peer])
        if silent_s >= 2 * core.settings.suspect_after_s:
            return self._end(core, agreed=False)
        core.deadlines.add(core.now, core.settings.suspect_after_s, self.request_id)
        return False

    def _ask(self, core: Core, message: Message) -> None:
        """Ask the next thing, under an id of its own: a reply that comes twice, or late, must not pass for the next one's."""
        core.pending.pop(self.request_id, None)
        self.request_id = core.request_id()
        self._awaits = True
        core.pending[self.request_id] = self
        core.deadlines.add(core.now, core.settings.suspect_after_s, self.request_id)
        core.send(self.peer, (message[0], self.request_id, *message[2:]))

    def _end(self, core: Core, agreed: bool) -> bool:
        core.pending.pop(self.request_id, None)
        self._entropy.ended(self.peer, self.begun if agreed else None)
        core.count("exchanges_agreed" if agreed else "exchanges_unfinished")
        return True


def _known(core: Core, n: int, partition: int) -> None:
    """Raises InvalidRequest where there is no such tree."""
    numbers = {definition.n or core.cluster.n for definition in core.definitions}
    if n not in numbers or not 0 <= partition < core.cluster.partitions:
        raise InvalidRequest("there is no such tree")
