# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Records and contexts as bytes: the compiled twin of `_record_py.py`, which holds the layout, the rules and the words.

Works in place on the bytes: no object for a version or a range, one allocation for a result. Why that is safe:
`view_of` proves that every count and length adds up to the size of the bytes before anything else reads through a
pointer, and that ranges and versions are canonical; all loops run over those proved counts; every output is written by
the same walk that counted it, and `assemble` asserts that the two agree.
"""

from cpython.buffer cimport PyBUF_READ
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from dynamo._core._ranges cimport (
    DOT_BYTES, RANGE_BYTES, Ranges, contains, covers, is_canonical, load32, load64, store32, store64, store_range,
    unite,
)
from dynamo._core._views cimport (
    CHECKSUM_BYTES, EXPIRY_AT, FLAG_TOMBSTONE, FLAGS_AT, FORMAT_1, HEAD_BYTES, KEPT, KIND_LAST_WRITE_WINS,
    KIND_SIBLINGS, LENGTH_AT, OPERATION_AT, OPERATION_BYTES, TIME_AT, VALUE_HASH_AT, VERSION_BYTES, Tally, View, Walk,
    clear, compare_last_write_wins, step, tally, view_of,
)

from xxhash import xxh3_64_intdigest, xxh3_128_digest

from dynamo.errors import CorruptRecord, InvalidContext

FORMAT = 1
SIBLINGS, LAST_WRITE_WINS = 1, 2
TOMBSTONE = 1
EQUAL, BEFORE, AFTER, CONCURRENT = 0, 1, 2, 3

cdef object NO_DIGEST = bytes(16)


cdef uint64_t u64(object number) except? 0:
    try:
        return <uint64_t> number
    except OverflowError:
        raise ValueError(f"{number} is not an unsigned 64-bit integer") from None


cdef inline const uint8_t* bytes_at(bytes data) noexcept:
    return <const uint8_t*> PyBytes_AS_STRING(data)


cdef inline uint8_t* writable(bytes fresh) noexcept:
    # Only for bytes made here that nobody else has seen.
    return <uint8_t*> PyBytes_AS_STRING(fresh)


cdef uint64_t hash_of(const uint8_t* data, Py_ssize_t size) except? 0:
    return xxh3_64_intdigest(PyMemoryView_FromMemory(<char*> data, size, PyBUF_READ))


cdef int check_range(uint64_t actor, uint64_t first, uint64_t last) except -1:
    if actor == 0 or first == 0 or last < first:
        raise ValueError(f"actor {actor}, counters {first} to {last} are no range")
    return 0


cdef Ranges open_context(bytes context) except *:
    cdef Ranges ranges
    ranges.at = bytes_at(context)
    ranges.count = PyBytes_GET_SIZE(context) // RANGE_BYTES
    if PyBytes_GET_SIZE(context) % RANGE_BYTES or not is_canonical(ranges):
        raise InvalidContext(f"a context of {len(context)} bytes is not canonical")
    return ranges


cdef bytes united(Ranges a, Ranges b):
    cdef bytes out = PyBytes_FromStringAndSize(NULL, unite(a, b, NULL) * RANGE_BYTES)
    unite(a, b, writable(out))
    return out


cdef int open_record(bytes record, View* view) except -1:
    if not view_of(bytes_at(record), PyBytes_GET_SIZE(record), view):
        raise CorruptRecord(f"a record of {len(record)} bytes is not canonical")
    return 0


cdef int open_kind(bytes record, int kind, View* view) except -1:
    # Like open_record, with nothing in it for b"".
    clear(view, kind)
    if PyBytes_GET_SIZE(record) == 0:
        return 0
    open_record(record, view)
    if view.kind != kind:
        raise CorruptRecord(f"a record of kind {view.kind} where kind {kind} belongs")
    return 0


cdef int open_any(bytes record, View* view) except -1:
    clear(view, KIND_SIBLINGS)
    if PyBytes_GET_SIZE(record):
        open_record(record, view)
    return 0


cdef int new_version(
    View* view, uint8_t* header, uint64_t actor, uint64_t counter, uint64_t time, bytes operation, bytes value,
    bint tombstone,
) except -1:
    # Make `view` show one new version, without ranges, whose header is written to the given 61 bytes.
    check_range(actor, counter, counter)
    if PyBytes_GET_SIZE(operation) != OPERATION_BYTES:
        raise ValueError(f"an operation id has 16 bytes, not {len(operation)}")
    if <uint64_t> PyBytes_GET_SIZE(value) > 0xFFFFFFFF or (tombstone and PyBytes_GET_SIZE(value) != 0):
        raise ValueError(f"a value of {len(value)} bytes does not fit, or comes with a tombstone")
    store64(header, actor)
    store64(header + 8, counter)
    store64(header + TIME_AT, time)
    memcpy(header + OPERATION_AT, bytes_at(operation), OPERATION_BYTES)
    store64(header + EXPIRY_AT, 0)
    store64(header + VALUE_HASH_AT, xxh3_64_intdigest(value))
    header[FLAGS_AT] = FLAG_TOMBSTONE if tombstone else 0
    store32(header + LENGTH_AT, <uint32_t> PyBytes_GET_SIZE(value))
    clear(view, KIND_SIBLINGS)
    view.headers, view.values, view.count = header, bytes_at(value), 1
    return 0


cdef bytes assemble(int kind, Ranges some, Ranges more, Walk* walk, Tally kept):
    # The record of what the walk keeps, with the union of the ranges.
    cdef Py_ssize_t range_count = unite(some, more, NULL)
    cdef Py_ssize_t values_at = HEAD_BYTES + range_count * RANGE_BYTES + kept.count * VERSION_BYTES
    cdef Py_ssize_t end = values_at + kept.value_bytes
    cdef bytes record = PyBytes_FromStringAndSize(NULL, end + CHECKSUM_BYTES)
    cdef uint8_t* out = writable(record)
    cdef uint8_t* header = out + HEAD_BYTES + range_count * RANGE_BYTES
    cdef uint8_t* value = out + values_at
    cdef int met
    out[0], out[1], out[2], out[3] = FORMAT_1, kind, 0, 0
    store32(out + 4, <uint32_t> range_count)
    store32(out + 8, <uint32_t> kept.count)
    unite(some, more, out + HEAD_BYTES)
    met = step(walk)
    while met:
        if met & KEPT:
            memcpy(header, walk.header, VERSION_BYTES)
            memcpy(value, walk.value, load32(walk.header + LENGTH_AT))
            header += VERSION_BYTES
            value += load32(walk.header + LENGTH_AT)
        met = step(walk)
    assert header == out + values_at and value == out + end
    store64(out + end, hash_of(out, end))
    return record


# --- records ----------------------------------------------------------------------------------------------------------


def put(
    bytes record not None, bytes context not None, actor, counter, since, time, bytes operation not None,
    bytes value not None, bint tombstone,
):
    """Write one version under the new dot (actor, counter), in the place of the versions that `context` contains."""
    cdef View present, fresh
    cdef uint8_t[VERSION_BYTES] header
    cdef uint8_t[RANGE_BYTES] claim
    cdef Ranges own, united_ranges, minted
    cdef Walk walk
    cdef Tally kept
    cdef uint64_t owner = u64(actor), number = u64(counter), first = u64(since)
    cdef uint8_t* scratch
    check_range(owner, first, number)
    new_version(&fresh, header, owner, number, u64(time), operation, value, tombstone)
    open_kind(record, KIND_SIBLINGS, &present)
    # A merge in which the new version's side has seen what the client has seen, and the record's side nothing of it.
    fresh.ranges = open_context(context)
    own = present.ranges
    present.ranges.count = 0
    kept = tally(&walk, &present, &fresh)
    store_range(claim, owner, first, number)
    minted.at, minted.count = claim, 1
    scratch = <uint8_t*> PyMem_Malloc((own.count + fresh.ranges.count) * RANGE_BYTES)
    if scratch == NULL:
        raise MemoryError
    try:
        united_ranges.at, united_ranges.count = scratch, unite(own, fresh.ranges, scratch)
        return assemble(KIND_SIBLINGS, united_ranges, minted, &walk, kept)
    finally:
        PyMem_Free(scratch)


def put_last_write_wins(
    bytes record not None, actor, counter, time, bytes operation not None, bytes value not None, bint tombstone
):
    """The record with the larger version, by (time, actor, counter, header), of the one there and the new one."""
    cdef View present, fresh, nothing
    cdef uint8_t[VERSION_BYTES] header
    cdef Walk walk
    cdef Tally kept
    new_version(&fresh, header, u64(actor), u64(counter), u64(time), operation, value, tombstone)
    open_kind(record, KIND_LAST_WRITE_WINS, &present)
    if present.count and compare_last_write_wins(present.headers, fresh.headers) >= 0:
        return record
    clear(&nothing, KIND_LAST_WRITE_WINS)
    kept = tally(&walk, &nothing, &fresh)
    return assemble(KIND_LAST_WRITE_WINS, nothing.ranges, nothing.ranges, &walk, kept)


def forget(bytes record not None, tuple actors not None):
    """The record without the ranges of other actors than these, except those in which one of its versions lies."""
    cdef View view, nothing
    cdef Walk walk
    cdef Tally kept
    cdef Ranges left
    cdef Py_ssize_t i, j = 0
    cdef bint needed
    cdef const uint8_t* p
    cdef set known = actors_of(actors)
    if not PyBytes_GET_SIZE(record):
        return record
    open_any(record, &view)
    if not view.ranges.count:
        return record
    cdef uint8_t* scratch = <uint8_t*> PyMem_Malloc(view.ranges.count * RANGE_BYTES)
    if scratch == NULL:
        raise MemoryError
    try:
        left.at, left.count = scratch, 0
        for i in range(view.ranges.count):
            p = view.ranges.at + i * RANGE_BYTES
            needed = False
            while j < view.count and is_within(p, view.headers + j * VERSION_BYTES):
                needed = True
                j += 1
            if needed or load64(p) in known:
                memcpy(scratch + left.count * RANGE_BYTES, p, RANGE_BYTES)
                left.count += 1
        if left.count == view.ranges.count:
            return record
        clear(&nothing, KIND_SIBLINGS)
        view.ranges.count = 0
        kept = tally(&walk, &nothing, &view)
        return assemble(KIND_SIBLINGS, left, nothing.ranges, &walk, kept)
    finally:
        PyMem_Free(scratch)


cdef set actors_of(tuple actors):
    cdef set known = set()
    for actor in actors:
        known.add(u64(actor))
    return known


def merge(bytes a not None, bytes b not None):
    """The join of two records."""
    cdef View x, y
    cdef Walk walk
    cdef Tally kept
    if a == b:
        return a
    if not a or not b:
        open_record(a or b, &x)
        return a or b
    open_record(a, &x)
    open_kind(b, x.kind, &y)
    if x.kind == KIND_LAST_WRITE_WINS:
        return a if compare_last_write_wins(x.headers, y.headers) >= 0 else b
    kept = tally(&walk, &x, &y)
    if kept.count == x.count and kept.from_a == x.count and covers(x.ranges, y.ranges):
        return a
    if kept.count == y.count and kept.from_b == y.count and covers(y.ranges, x.ranges):
        return b
    return assemble(KIND_SIBLINGS, x.ranges, y.ranges, &walk, kept)


def compare(bytes a not None, bytes b not None):
    """EQUAL, BEFORE (merging `a` into `b` changes nothing), AFTER or CONCURRENT."""
    cdef View x, y
    cdef Walk walk
    cdef Tally kept
    cdef int order
    cdef bint before, after
    if a == b:
        return EQUAL
    if not a or not b:
        open_record(a or b, &x)
        return AFTER if a else BEFORE
    open_record(a, &x)
    open_kind(b, x.kind, &y)
    if x.kind == KIND_LAST_WRITE_WINS:
        order = compare_last_write_wins(x.headers, y.headers)
        return EQUAL if order == 0 else BEFORE if order < 0 else AFTER
    kept = tally(&walk, &x, &y)
    before = kept.count == y.count and kept.from_b == y.count and covers(y.ranges, x.ranges)
    after = kept.count == x.count and kept.from_a == x.count and covers(x.ranges, y.ranges)
    return (EQUAL if after else BEFORE) if before else (AFTER if after else CONCURRENT)


def versions(bytes record not None):
    """(actor, counter, time, operation, expiry, value_hash, tombstone, value) of each version, sorted by dot."""
    cdef View view
    cdef const uint8_t* p
    cdef const uint8_t* value
    cdef Py_ssize_t i
    cdef list found = []
    open_any(record, &view)
    p, value = view.headers, view.values
    for i in range(view.count):
        found.append((
            load64(p), load64(p + 8), load64(p + TIME_AT),
            PyBytes_FromStringAndSize(<char*> p + OPERATION_AT, OPERATION_BYTES),
            load64(p + EXPIRY_AT), load64(p + VALUE_HASH_AT), p[FLAGS_AT] == FLAG_TOMBSTONE,
            PyBytes_FromStringAndSize(<char*> value, load32(p + LENGTH_AT)),
        ))
        value += load32(p + LENGTH_AT)
        p += VERSION_BYTES
    return found


def visible(bytes record not None):
    """(live versions, tombstones, newest time), as a reader is shown them."""
    cdef View view
    cdef const uint8_t* p
    cdef const uint8_t* value
    cdef Py_ssize_t i
    cdef uint64_t newest = 0, time
    cdef list live = [], tombstones = []
    cdef set shown = set()
    open_any(record, &view)
    p, value = view.headers, view.values
    for i in range(view.count):
        time = load64(p + TIME_AT)
        newest = max(newest, time)
        if p[FLAGS_AT] == FLAG_TOMBSTONE:
            tombstones.append((load64(p), load64(p + 8), time))
        else:
            operation = PyBytes_FromStringAndSize(<char*> p + OPERATION_AT, OPERATION_BYTES) if view.count > 1 else None
            if operation not in shown:
                shown.add(operation)
                live.append((PyBytes_FromStringAndSize(<char*> value, load32(p + LENGTH_AT)), load64(p), load64(p + 8), time))
        value += load32(p + LENGTH_AT)
        p += VERSION_BYTES
    return tuple(live), tuple(tombstones), newest


def single_value(bytes record not None):
    """The value of a record that has one version, and a live one; None for any other."""
    cdef View view
    open_any(record, &view)
    if view.count != 1 or view.headers[FLAGS_AT] & FLAG_TOMBSTONE:
        return None
    return PyBytes_FromStringAndSize(<const char*> view.values, load32(view.headers + LENGTH_AT))


def version_count(bytes record not None):
    """How many versions the record has, tombstones included."""
    cdef View view
    open_any(record, &view)
    return view.count


def context(bytes record not None):
    """The record's context, packed."""
    cdef View view
    open_any(record, &view)
    return PyBytes_FromStringAndSize(<char*> view.ranges.at, view.ranges.count * RANGE_BYTES)


def find_operation(bytes record not None, bytes operation not None):
    """(actor, counter, time) of the first version that this operation wrote, or None."""
    cdef View view
    cdef const uint8_t* p
    cdef Py_ssize_t i
    if PyBytes_GET_SIZE(operation) != OPERATION_BYTES:
        raise ValueError(f"an operation id has 16 bytes, not {len(operation)}")
    open_any(record, &view)
    p = view.headers
    for i in range(view.count):
        if memcmp(p + OPERATION_AT, bytes_at(operation), OPERATION_BYTES) == 0:
            return load64(p), load64(p + 8), load64(p + TIME_AT)
        p += VERSION_BYTES
    return None


def duplicate_dots(bytes record not None):
    """How many versions share the dot of the version before them."""
    cdef View view
    cdef Py_ssize_t i, count = 0
    open_any(record, &view)
    for i in range(1, view.count):
        count += memcmp(view.headers + (i - 1) * VERSION_BYTES, view.headers + i * VERSION_BYTES, DOT_BYTES) == 0
    return count


def check(bytes record not None):
    """Raises CorruptRecord unless the form and the checksum are right."""
    cdef View view
    cdef Py_ssize_t end = PyBytes_GET_SIZE(record) - CHECKSUM_BYTES
    open_any(record, &view)
    if view.count and load64(bytes_at(record) + end) != hash_of(bytes_at(record), end):
        raise CorruptRecord("the checksum of a record is wrong")


def verify(bytes record not None):
    """Raises CorruptRecord unless the form, the checksum and the hash of each value are right."""
    cdef View view
    cdef const uint8_t* p
    cdef const uint8_t* value
    cdef Py_ssize_t i
    check(record)
    open_any(record, &view)
    p, value = view.headers, view.values
    for i in range(view.count):
        if load64(p + VALUE_HASH_AT) != hash_of(value, load32(p + LENGTH_AT)):
            raise CorruptRecord("the hash of a value is wrong")
        value += load32(p + LENGTH_AT)
        p += VERSION_BYTES


def digest(bytes key not None, bytes record not None, seed):
    """16 bytes that name the key, the context and the versions."""
    cdef View view
    cdef Py_ssize_t named
    cdef bytes text
    u64(seed)
    open_any(record, &view)
    if view.count == 0:
        return NO_DIGEST
    named = view.values - bytes_at(record)
    text = PyBytes_FromStringAndSize(NULL, PyBytes_GET_SIZE(key) + named)
    memcpy(writable(text), bytes_at(key), PyBytes_GET_SIZE(key))
    memcpy(writable(text) + PyBytes_GET_SIZE(key), bytes_at(record), named)
    return xxh3_128_digest(text, seed)


def token_context(bytes record not None, bytes context not None, actor, counter):
    """The context for a client that put (actor, counter) under `context`, and how many siblings it has not seen."""
    cdef View view
    cdef Ranges seen, minted, known, shown
    cdef uint8_t[RANGE_BYTES] dot
    cdef Py_ssize_t unseen = 0
    cdef uint64_t owner = u64(actor), number = u64(counter)
    check_range(owner, number, number)
    store_range(dot, owner, number, number)
    minted.at, minted.count = dot, 1
    open_any(record, &view)
    seen = open_context(context)
    cdef uint8_t* scratch = <uint8_t*> PyMem_Malloc((seen.count + 1 + view.ranges.count) * RANGE_BYTES)
    if scratch == NULL:
        raise MemoryError
    try:
        known.at, known.count = scratch, unite(seen, minted, scratch)
        shown.at = scratch + known.count * RANGE_BYTES
        shown.count = shown_ranges(&view, dot, <uint8_t*> shown.at, &unseen)
        return united(known, shown), unseen
    finally:
        PyMem_Free(scratch)


cdef inline bint is_within(const uint8_t* entry, const uint8_t* dot) noexcept nogil:
    return memcmp(entry, dot, 8) == 0 and memcmp(entry + 8, dot + 8, 8) <= 0 and memcmp(dot + 8, entry + 16, 8) <= 0


cdef Py_ssize_t shown_ranges(const View* view, const uint8_t* dot, uint8_t* out, Py_ssize_t* unseen) noexcept nogil:
    # Write the ranges without a version of another dot than the given one; count those versions.
    cdef Py_ssize_t i, j = 0, count = 0
    cdef bint hidden
    cdef const uint8_t* p
    for i in range(view.ranges.count):
        p = view.ranges.at + i * RANGE_BYTES
        hidden = False
        while j < view.count and is_within(p, view.headers + j * VERSION_BYTES):
            hidden |= memcmp(view.headers + j * VERSION_BYTES, dot, DOT_BYTES) != 0
            j += 1
        if not hidden:
            memcpy(out + count * RANGE_BYTES, p, RANGE_BYTES)
            count += 1
    unseen[0] = 0
    for j in range(view.count):
        unseen[0] += memcmp(view.headers + j * VERSION_BYTES, dot, DOT_BYTES) != 0
    return count


# --- contexts ---------------------------------------------------------------------------------------------------------


def context_verify(bytes context not None):
    """Raises InvalidContext unless the context is canonical."""
    open_context(context)


def context_union(bytes a not None, bytes b not None):
    """The context of everything in either."""
    cdef Ranges ours = open_context(a), others = open_context(b)
    return united(ours, others)


def context_add(bytes context not None, actor, first, last):
    """The context with the dots (actor, first) to (actor, last) added."""
    cdef Ranges ours, added
    cdef uint8_t[RANGE_BYTES] entry
    cdef uint64_t owner = u64(actor), lowest = u64(first), highest = u64(last)
    check_range(owner, lowest, highest)
    store_range(entry, owner, lowest, highest)
    added.at, added.count = entry, 1
    ours = open_context(context)
    return united(ours, added)


def context_contains(bytes context not None, actor, counter):
    """Whether the dot is in the context."""
    cdef uint64_t owner = u64(actor), number = u64(counter)
    cdef Ranges ours = open_context(context)
    cdef Py_ssize_t cursor = 0
    return contains(ours, &cursor, owner, number)


def context_covers(bytes a not None, bytes b not None):
    """Whether every dot of `b` is in `a`."""
    cdef Ranges ours = open_context(a), others = open_context(b)
    return covers(ours, others)


def context_highest(bytes context not None, actor):
    """The highest counter of the actor in the context; 0 if there is none."""
    cdef uint64_t owner = u64(actor), highest = 0
    cdef Ranges ours = open_context(context)
    cdef Py_ssize_t i
    for i in range(ours.count):
        if load64(ours.at + i * RANGE_BYTES) == owner:
            highest = load64(ours.at + i * RANGE_BYTES + 16)
    return highest


def context_keep(bytes context not None, tuple actors not None):
    """The ranges of these actors."""
    cdef set known = actors_of(actors)
    cdef Ranges ours = open_context(context)
    cdef Py_ssize_t i
    cdef list kept = []
    for i in range(ours.count):
        if load64(ours.at + i * RANGE_BYTES) in known:
            kept.append(context[i * RANGE_BYTES : (i + 1) * RANGE_BYTES])
    return b"".join(kept)


def context_gap(bytes have not None, bytes want not None, actor, since):
    """Whether `want` holds a counter of `actor` that is at least `since` and not in `have`."""
    cdef uint64_t owner = u64(actor), least = u64(since), first, last
    cdef Ranges ours = open_context(have), wanted = open_context(want)
    cdef Py_ssize_t i, cursor = 0
    for i in range(wanted.count):
        first, last = load64(wanted.at + i * RANGE_BYTES + 8), load64(wanted.at + i * RANGE_BYTES + 16)
        if load64(wanted.at + i * RANGE_BYTES) != owner or last < least:
            continue
        if not contains(ours, &cursor, owner, first if first > least else least):
            return True
        if load64(ours.at + cursor * RANGE_BYTES + 16) < last:
            return True
    return False
