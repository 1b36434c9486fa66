"""The Merkle trees of this node: one for each partition it owns, over its committed rows, tombstones included.

Built by one scan after the start, in slices: a commit at or behind the scan's cursor updates its tree, one ahead of it is met by the scan. From then
on every commit keeps them current; they are never rebuilt as a routine. A slice is read only while no group is in flight, so that what the scan
sees is exactly what has been reported.

Buckets whose N differs from the cluster's have trees of their own, for a tree must cover the rows that all its holders own and no others.
"""

from __future__ import annotations

from collections.abc import Collection

from dynamo._core import merkle
from dynamo._core import ring as ring_kernel
from dynamo.errors import CorruptRecord, DynamoError
from dynamo.model.key import ROW_KEY_BYTES_MAX, split_row_key
from dynamo.replication.core import Core
from dynamo.replication.rows import NO_DIGEST

Place = tuple[int, int]  # (n, partition): which tree
Listing = list[tuple[bytes, bytes, bytes, bytes]]  # row key, bucket, key, digest
_DIGEST_MASK = (1 << 128) - 1


class Trees:
    """The trees by (n, partition), and how far the scan that builds them has come."""

    __slots__ = ("_cursor", "_ring_hash", "_shared", "_shared_trees", "_trees", "built", "next_at")

    def __init__(self) -> None:
        self._trees: dict[Place, merkle.Tree] = {}
        self._cursor = b""  # rows up to here are in the trees
        self._ring_hash: int | None = None
        self._shared: dict[bytes, list[Place]] = {}  # by peer, under the present ring
        self._shared_trees: dict[bytes, list[merkle.Tree]] = {}
        self.built = False
        self.next_at: float | None = 0.0

    def follow_ring(self, core: Core) -> None:
        """The ring changed, and with it perhaps what this node owns: build anew."""
        if core.ring_hash != self._ring_hash:
            self._ring_hash = core.ring_hash
            self._trees, self._cursor, self.built = {}, b"", False
            self._shared.clear()
            self._shared_trees.clear()
            self.next_at = core.now

    def get(self, n: int, partition: int) -> merkle.Tree:
        """The tree of a partition; an empty one where there is no row."""
        tree = self._trees.get((n, partition))
        if tree is None:
            tree = self._trees[n, partition] = merkle.Tree()
        return tree

    def held(self, core: Core, n: int, partition: int) -> merkle.Tree:
        """The tree of what this node holds of a partition; read anew from the rows where it is no owner, or not any more."""
        if core.node_id in core.ring.owners(partition, n):
            return self.get(n, partition)
        tree = merkle.Tree()
        start, stop = _range(partition)
        while page := core.scan(start, stop, core.settings.tree_slice_rows):
            for row_key, data in page:
                where, leaf = self._place(core, row_key)
                if where == (n, partition):
                    try:
                        tree.update(leaf, b"", core.decode(row_key, data).digest)
                    except CorruptRecord:
                        continue  # found by whoever reads it
            start = page[-1][0] + b"\0"
        return tree

    def shared_with(self, core: Core, peer: bytes) -> list[Place]:
        """The trees that both this node and the peer hold, in an order both derive from the ring."""
        known = self._shared.get(peer)
        if known is None:
            numbers = sorted({definition.n or core.cluster.n for definition in core.definitions})
            known = self._shared[peer] = [
                (n, partition) for n in numbers for partition in range(core.cluster.partitions)
                if core.node_id in (owners := core.ring.owners(partition, n)) and peer in owners
            ]  # fmt: skip
        return known

    def roots_shared_with(self, core: Core, peer: bytes) -> bytes:
        """The roots of those trees, 8 bytes each."""
        known = self._shared_trees.get(peer)
        if known is None:
            known = self._shared_trees[peer] = [self.get(*place) for place in self.shared_with(core, peer)]
        return merkle.roots(known)

    def apply(self, core: Core, changes: list[tuple[bytes, bytes | None, bytes]]) -> None:
        """Take a commit in. The full key of a row under a hashed row key is not at hand then: its leaf comes from the row key's hash."""
        unknown: dict[Place, list[int]] = {}
        for row_key, before, after in changes:
            if before == after or not (self.built or row_key <= self._cursor):
                continue
            place, leaf = self._locate(core, row_key)
            if place is None:
                continue
            if before is None:
                unknown.setdefault(place, []).append(leaf)
                continue
            self.get(*place).update(leaf, b"" if before == NO_DIGEST else before, b"" if after == NO_DIGEST else after)
        for place, leaves in unknown.items():  # last: a leaf is then read with all of this commit in it
            try:
                self.listed(core, place, frozenset(leaves))
            except DynamoError:
                core.count("background_reads_failed")  # an exchange will find the leaf

    def step(self, core: Core) -> None:
        """Read the next slice of rows."""
        if self.built or self.next_at is None or core.now < self.next_at:
            return
        self.next_at = core.now + core.settings.tree_slice_s
        if core.rows.in_flight is not None:
            return
        if self._ring_hash is None:
            self._ring_hash = core.ring_hash
        try:
            page = core.scan(self._cursor + b"\0" if self._cursor else b"", None, core.settings.tree_slice_rows)
        except DynamoError:
            core.count("background_reads_failed")
            return  # the next slice begins at the same place
        for row_key, data in page:
            place, leaf = self._locate(core, row_key)
            if place is not None:
                try:
                    self.get(*place).update(leaf, b"", core.decode(row_key, data).digest)
                except CorruptRecord:
                    continue  # it enters its tree when it has been repaired
        if page:
            self._cursor = page[-1][0]
        if len(page) < core.settings.tree_slice_rows:
            self.built, self.next_at = True, None

    def listed(self, core: Core, place: Place, leaves: Collection[int], after: bytes = b"", until: bytes = b"", limit: int = 0) -> tuple[Listing, bool]:
        """(the committed rows of some leaves in order of row keys, whether that was all), of those behind `after` and up to `until`; b"" is no bound.

        At most `limit` of them, 0 for none at all. A listing from the start makes these leaves what their rows say; one that was something else is
        counted. Raises the disk's error: a part of the rows would pass for the whole.
        """
        sums = dict.fromkeys(leaves, 0) if not after else None
        found: Listing = []
        start, stop = _range(place[1])
        whole, start = True, max(start, after + b"\0" if after else b"")
        while page := core.scan(start, stop, core.settings.tree_slice_rows):
            for row_key, data in page:
                beyond = bool(until) and row_key > until
                if sums is None and (beyond or not whole):
                    return found, whole
                where, leaf = self._place(core, row_key)
                if leaf not in leaves or where != place:
                    continue
                try:
                    row = core.decode(row_key, data)
                except CorruptRecord:
                    continue  # it must not hide the rest of the leaf
                if sums is not None:
                    sums[leaf] += int.from_bytes(row.digest, "big")
                if beyond or not limit:
                    continue
                if len(found) < limit:
                    found.append((row_key, *split_row_key(row_key, row.full_key)[1:], row.digest))
                else:
                    whole = False
            start = page[-1][0] + b"\0"
        owned = core.node_id in core.ring.owners(place[1], place[0])
        if owned and sums is not None and core.rows.in_flight is None:  # else the rows may be ahead of the tree by that group
            tree = self.get(*place)
            changed = sum(tree.set_leaf(leaf, [(total & _DIGEST_MASK).to_bytes(16, "big")]) for leaf, total in sums.items())
            if changed:
                core.count("leaves_recomputed", changed)
        return found, whole

    def _locate(self, core: Core, row_key: bytes) -> tuple[Place | None, int]:
        """(the tree a row belongs to, None where this node does not own it or it is none of this cluster's; its leaf)."""
        if not core.is_row_key(row_key):
            return None, 0
        partition, bucket, key = split_row_key(row_key, row_key[2:])
        definition = core.cluster.bucket(bucket)
        if core.node_id not in core.owners(partition, definition):
            return None, 0
        return (definition.n or core.cluster.n, partition), _leaf(core, row_key, bucket, key)

    def _place(self, core: Core, row_key: bytes) -> tuple[Place | None, int]:
        """(the tree that a row belongs to at its owners, None where it is none of this cluster's; its leaf)."""
        if not core.is_row_key(row_key):
            return None, 0
        partition, bucket, key = split_row_key(row_key, row_key[2:])
        return (core.cluster.bucket(bucket).n or core.cluster.n, partition), _leaf(core, row_key, bucket, key)


def _range(partition: int) -> tuple[bytes, bytes | None]:
    """Where the row keys of a partition begin, and what is behind the last one."""
    return partition.to_bytes(2, "big"), (partition + 1).to_bytes(2, "big") if partition < 0xFFFF else None


def _leaf(core: Core, row_key: bytes, bucket: bytes, key: bytes) -> int:
    """The leaf of a row. Long keys are placed by the hash in their row key, which every replica has alike."""
    if len(row_key) == ROW_KEY_BYTES_MAX:
        return int.from_bytes(row_key[-2:], "big") % merkle.LEAVES
    return merkle.leaf_of(ring_kernel.position(bucket, key, core.cluster.seed), core.cluster.partitions)
