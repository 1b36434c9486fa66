# Packed ranges, read and united in place: the compiled twin of what is inside `_ranges_py.py`.
#
# Canonical ranges are sorted, so each question about them is a merge of two sorted lists: cursors only move forward,
# nothing is looked up and nothing is stored. Nothing here checks a size: whoever makes a `Ranges` has proved that
# `count` entries lie at `at`.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp


cdef enum:
    RANGE_BYTES = 24
    DOT_BYTES = 16


cdef struct Ranges:
    const uint8_t* at
    Py_ssize_t count


cdef inline uint64_t load64(const uint8_t* p) noexcept nogil:
    # Compilers turn this into one load and one byte swap, on any endianness and alignment.
    return (
        (<uint64_t> p[0] << 56) | (<uint64_t> p[1] << 48) | (<uint64_t> p[2] << 40) | (<uint64_t> p[3] << 32)
        | (<uint64_t> p[4] << 24) | (<uint64_t> p[5] << 16) | (<uint64_t> p[6] << 8) | <uint64_t> p[7]
    )


cdef inline uint32_t load32(const uint8_t* p) noexcept nogil:
    return (<uint32_t> p[0] << 24) | (<uint32_t> p[1] << 16) | (<uint32_t> p[2] << 8) | <uint32_t> p[3]


cdef inline void store64(uint8_t* p, uint64_t number) noexcept nogil:
    cdef int i
    for i in range(8):
        p[i] = <uint8_t> (number >> (56 - 8 * i))


cdef inline void store32(uint8_t* p, uint32_t number) noexcept nogil:
    cdef int i
    for i in range(4):
        p[i] = <uint8_t> (number >> (24 - 8 * i))


cdef inline void store_range(uint8_t* out, uint64_t actor, uint64_t first, uint64_t last) noexcept nogil:
    store64(out, actor)
    store64(out + 8, first)
    store64(out + 16, last)


cdef inline bint is_canonical(Ranges ranges) noexcept nogil:
    cdef uint64_t actor, first, last, actor_before = 0, last_before = 0
    cdef const uint8_t* p = ranges.at
    cdef Py_ssize_t i
    for i in range(ranges.count):
        actor, first, last = load64(p), load64(p + 8), load64(p + 16)
        if actor == 0 or first == 0 or last < first:
            return False
        if actor < actor_before or (actor == actor_before and first - 1 <= last_before):
            return False
        actor_before, last_before = actor, last
        p += RANGE_BYTES
    return True


cdef inline bint contains(Ranges ranges, Py_ssize_t* cursor, uint64_t actor, uint64_t counter) noexcept nogil:
    # Whether the dot is in the ranges. Ask for dots in ascending order, with one cursor that begins at 0; when True,
    # the cursor is at the range with the dot.
    cdef const uint8_t* p = ranges.at + cursor[0] * RANGE_BYTES
    cdef uint64_t owner
    while cursor[0] < ranges.count:
        owner = load64(p)
        if owner > actor or (owner == actor and load64(p + 16) >= counter):
            return owner == actor and load64(p + 8) <= counter
        cursor[0] += 1
        p += RANGE_BYTES
    return False


cdef inline bint covers(Ranges ranges, Ranges others) noexcept nogil:
    # Coalesced: a range that is covered lies within a single range.
    cdef const uint8_t* p = others.at
    cdef Py_ssize_t i, cursor = 0
    for i in range(others.count):
        if not contains(ranges, &cursor, load64(p), load64(p + 8)):
            return False
        if load64(ranges.at + cursor * RANGE_BYTES + 16) < load64(p + 16):
            return False
        p += RANGE_BYTES
    return True


cdef inline Py_ssize_t unite(Ranges a, Ranges b, uint8_t* out) noexcept nogil:
    # Write the coalesced union to `out` (NULL: only count); returns the number of ranges, at most a.count + b.count.
    cdef uint64_t actor, first, last, open_actor = 0, open_first = 0, open_last = 0
    cdef Py_ssize_t i = 0, j = 0, count = 0
    cdef const uint8_t* p
    while i < a.count or j < b.count:
        if j == b.count or (i < a.count and memcmp(a.at + i * RANGE_BYTES, b.at + j * RANGE_BYTES, DOT_BYTES) <= 0):
            p = a.at + i * RANGE_BYTES
            i += 1
        else:
            p = b.at + j * RANGE_BYTES
            j += 1
        actor, first, last = load64(p), load64(p + 8), load64(p + 16)
        if count and actor == open_actor and first - 1 <= open_last:
            if last > open_last:
                open_last = last
        else:
            open_actor, open_first, open_last = actor, first, last
            count += 1
        if out != NULL:
            store_range(out + (count - 1) * RANGE_BYTES, open_actor, open_first, open_last)
    return count
