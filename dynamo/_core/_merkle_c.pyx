# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Compiled twin of `_merkle_py`; see there for what a tree is. The leaves are 128-bit sums in one C array, big-endian halves as integers."""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp, memset
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from dynamo._core._ranges cimport load64, store64

from xxhash import xxh3_128_digest as _xxh3_128_digest

LEAVES = 1024
FANOUT = 32
HASH_BYTES = 8

cdef enum:
    _LEAVES = 1024
    _FANOUT = 32

# A node makes hundreds of trees at once when the ring changes, most of them for few rows.
_EMPTY_NODE = _xxh3_128_digest(bytes(_FANOUT * 16))
_EMPTY_ROOT = _xxh3_128_digest(_EMPTY_NODE * _FANOUT)


cdef int _check_digest(bytes digest) except -1:
    if PyBytes_GET_SIZE(digest) != 0 and PyBytes_GET_SIZE(digest) != 16:
        raise ValueError(f"a digest has 16 bytes, not {len(digest)}")
    return 0


cdef int _check_leaf(object leaf) except -1:
    if not 0 <= leaf < _LEAVES:
        raise ValueError(f"there is no leaf {leaf}")
    return <int>leaf


cdef class Tree:
    """One partition's tree; empty at first."""

    cdef uint64_t _high[_LEAVES]
    cdef uint64_t _low[_LEAVES]
    cdef uint8_t _stale[_FANOUT]
    cdef list _nodes
    cdef bytes _root

    def __cinit__(self):
        memset(self._high, 0, sizeof(self._high))
        memset(self._low, 0, sizeof(self._low))
        memset(self._stale, 0, sizeof(self._stale))
        self._nodes = [_EMPTY_NODE] * _FANOUT
        self._root = _EMPTY_ROOT

    cdef inline void _add(self, int leaf, const uint8_t *digest) noexcept:
        cdef uint64_t low = self._low[leaf] + load64(digest + 8)
        self._high[leaf] += load64(digest) + (low < self._low[leaf])
        self._low[leaf] = low

    cdef inline void _subtract(self, int leaf, const uint8_t *digest) noexcept:
        cdef uint64_t take = load64(digest + 8)
        self._high[leaf] -= load64(digest) + (self._low[leaf] < take)
        self._low[leaf] -= take

    cdef inline void _touch(self, int leaf) noexcept:
        self._stale[leaf // _FANOUT] = 1
        self._root = None

    def update(self, leaf, bytes old not None, bytes new not None):
        """Take one row's digest out and another one in; b"" for none. Digests have 16 bytes, leaves run from 0 to 1,023. ValueError otherwise."""
        cdef int at = _check_leaf(leaf)
        _check_digest(old)
        _check_digest(new)
        if PyBytes_GET_SIZE(new):
            self._add(at, <const uint8_t *>PyBytes_AS_STRING(new))
        if PyBytes_GET_SIZE(old):
            self._subtract(at, <const uint8_t *>PyBytes_AS_STRING(old))
        self._touch(at)

    def set_leaf(self, leaf, digests):
        """Make the leaf what the digests of all its rows say; whether it was something else."""
        cdef int at = _check_leaf(leaf)
        cdef bytes digest
        cdef uint64_t high, low
        cdef list rows = list(digests)
        for digest in rows:
            _check_digest(digest)
        high, low = self._high[at], self._low[at]
        self._high[at] = self._low[at] = 0
        for digest in rows:
            if PyBytes_GET_SIZE(digest):
                self._add(at, <const uint8_t *>PyBytes_AS_STRING(digest))
        if self._high[at] == high and self._low[at] == low:
            return False
        self._touch(at)
        return True

    cdef bytes _node(self, int node):
        cdef uint8_t buffer[_FANOUT * 16]
        cdef int leaf
        if self._stale[node]:
            for leaf in range(_FANOUT):
                store64(buffer + leaf * 16, self._high[node * _FANOUT + leaf])
                store64(buffer + leaf * 16 + 8, self._low[node * _FANOUT + leaf])
            self._nodes[node] = _xxh3_128_digest(PyBytes_FromStringAndSize(<char *>buffer, sizeof(buffer)))
            self._stale[node] = 0
        return self._nodes[node]

    def root(self):
        """16 bytes."""
        if self._root is None:
            self._root = _xxh3_128_digest(b"".join([self._node(node) for node in range(_FANOUT)]))
        return self._root

    def nodes(self):
        """32 hashes of 8 bytes."""
        return b"".join([self._node(node)[:8] for node in range(_FANOUT)])

    def leaves_of(self, node):
        """The 32 leaves under a node, 8 bytes each."""
        cdef uint8_t buffer[_FANOUT * 8]
        cdef int at, first
        if not 0 <= node < _FANOUT:
            raise ValueError(f"there is no node {node}")
        first = <int>node * _FANOUT
        for at in range(_FANOUT):
            store64(buffer + at * 8, self._low[first + at])
        return PyBytes_FromStringAndSize(<char *>buffer, sizeof(buffer))


def roots(list trees not None):
    """The roots of the trees, 8 bytes each."""
    cdef Tree tree
    return b"".join([tree.root()[:8] if tree._root is None else tree._root[:8] for tree in trees])


def differing(bytes a not None, bytes b not None):
    """The indexes at which two rows of 8-byte hashes differ. ValueError unless both are of one length, a multiple of 8."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(a), at
    cdef const char *p = PyBytes_AS_STRING(a)
    cdef const char *q = PyBytes_AS_STRING(b)
    if size != PyBytes_GET_SIZE(b) or size % 8:
        raise ValueError("rows of hashes of different lengths")
    if memcmp(p, q, size) == 0:
        return []
    return [at // 8 for at in range(0, size, 8) if memcmp(p + at, q + at, 8)]


def leaf_of(position, partitions):
    """The leaf of a position: the ten bits behind those that name the partition."""
    return ((position * partitions) & 0xFFFFFFFFFFFFFFFF) >> 54
