"""The Merkle tree of one partition: 1,024 leaves under 32 nodes under one root. Pure-Python twin of `_merkle_c`.

A leaf is the sum, mod 2^128, of the 16-byte item digests of its rows, so a commit updates it by subtracting the old digest and adding the new one,
in any order and without looking at the other rows; nothing is ever rebuilt as a routine. A node is the 128-bit hash of its 32 leaves, the root that
of the nodes; both are computed when asked for. The digests are keyed by the cluster's secret, which is what makes a sum safe against a client that
chooses its keys. For comparison between replicas, hashes are cut to 8 bytes: a collision would hide a difference until the next write to that leaf.
"""

from __future__ import annotations

from collections.abc import Iterable

from xxhash import xxh3_128_digest

LEAVES = 1024
FANOUT = 32
HASH_BYTES = 8
_ITEM = 16
_MASK = (1 << 128) - 1
# A node makes hundreds of trees at once when the ring changes, most of them for few rows.
_EMPTY_NODE = xxh3_128_digest(bytes(FANOUT * _ITEM))
_EMPTY_ROOT = xxh3_128_digest(_EMPTY_NODE * FANOUT)


class Tree:
    """One partition's tree; empty at first."""

    __slots__ = ("_leaves", "_nodes", "_root")

    def __init__(self) -> None:
        self._leaves = bytearray(LEAVES * _ITEM)
        self._nodes: list[bytes | None] = [_EMPTY_NODE] * FANOUT  # None: to be computed
        self._root: bytes | None = _EMPTY_ROOT

    def update(self, leaf: int, old: bytes, new: bytes) -> None:
        """Take one row's digest out and another one in; b"" for none. Digests have 16 bytes, leaves run from 0 to 1,023. ValueError otherwise."""
        _check_leaf(leaf)
        _check_digest(old)
        _check_digest(new)
        at = leaf * _ITEM
        total = int.from_bytes(self._leaves[at : at + _ITEM], "big") + int.from_bytes(new, "big") - int.from_bytes(old, "big")
        self._leaves[at : at + _ITEM] = (total & _MASK).to_bytes(_ITEM, "big")
        self._nodes[leaf // FANOUT] = None
        self._root = None

    def set_leaf(self, leaf: int, digests: Iterable[bytes]) -> bool:
        """Make the leaf what the digests of all its rows say; whether it was something else."""
        _check_leaf(leaf)
        total = 0
        for digest in digests:
            _check_digest(digest)
            total += int.from_bytes(digest, "big")
        at = leaf * _ITEM
        value = (total & _MASK).to_bytes(_ITEM, "big")
        if self._leaves[at : at + _ITEM] == value:
            return False
        self._leaves[at : at + _ITEM] = value
        self._nodes[leaf // FANOUT] = None
        self._root = None
        return True

    def root(self) -> bytes:
        """16 bytes."""
        if self._root is None:
            self._root = xxh3_128_digest(b"".join(self._node(node) for node in range(FANOUT)))
        return self._root

    def nodes(self) -> bytes:
        """32 hashes of 8 bytes."""
        return b"".join(self._node(node)[:HASH_BYTES] for node in range(FANOUT))

    def leaves_of(self, node: int) -> bytes:
        """The 32 leaves under a node, 8 bytes each."""
        if not 0 <= node < FANOUT:
            raise ValueError(f"there is no node {node}")
        first = node * FANOUT
        return b"".join(_cut(self._leaves[at * _ITEM : (at + 1) * _ITEM]) for at in range(first, first + FANOUT))

    def _node(self, node: int) -> bytes:
        known = self._nodes[node]
        if known is None:
            at = node * FANOUT * _ITEM
            known = self._nodes[node] = xxh3_128_digest(bytes(self._leaves[at : at + FANOUT * _ITEM]))
        return known


def roots(trees: list[Tree]) -> bytes:
    """The roots of the trees, 8 bytes each."""
    return b"".join([tree.root()[:HASH_BYTES] for tree in trees])


def differing(a: bytes, b: bytes) -> list[int]:
    """The indexes at which two rows of 8-byte hashes differ. ValueError unless both are of one length, a multiple of 8."""
    if len(a) != len(b) or len(a) % HASH_BYTES:
        raise ValueError("rows of hashes of different lengths")
    if a == b:
        return []
    return [at // HASH_BYTES for at in range(0, len(a), HASH_BYTES) if a[at : at + HASH_BYTES] != b[at : at + HASH_BYTES]]


def leaf_of(position: int, partitions: int) -> int:
    """The leaf of a position: the ten bits behind those that name the partition."""
    return ((position * partitions) & ((1 << 64) - 1)) >> 54


def _cut(leaf: bytearray) -> bytes:
    # The low half: a sum's carries run upwards, so every digest reaches it.
    return bytes(leaf[_ITEM - HASH_BYTES :])


def _check_leaf(leaf: int) -> None:
    if not 0 <= leaf < LEAVES:
        raise ValueError(f"there is no leaf {leaf}")


def _check_digest(digest: bytes) -> None:
    if len(digest) not in (0, _ITEM):
        raise ValueError(f"a digest has {_ITEM} bytes, not {len(digest)}")
