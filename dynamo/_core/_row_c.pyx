# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, auto_pickle=False
"""Rows: the compiled twin of `_row_py.py`, which holds the layout and the words.

What is read through a pointer lies within the size of the bytes: the head is there before its length field is read, and the checksum before it is
compared. `view_of` proves the record.
"""

from cpython.buffer cimport PyBUF_READ
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsUnsignedLongLongMask
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

from dynamo._core._ranges cimport load64, store64
from dynamo._core._views cimport View, view_of
from dynamo._core._xxh3 cimport XXH3_SHORT_BYTES, xxh3_64_short

from xxhash import xxh3_64_intdigest

from dynamo.errors import CorruptRecord

FORMAT = 2
QUARANTINE = 2
HASHED_ROW_KEY_BYTES = 511
INLINE_ROW_KEY_BYTES_MAX = 494

cdef enum:
    FORMAT_2 = 2
    STATUS_MAX = 2
    SINCE_ACTOR_AT = 2
    SINCE_AT = 10
    DIGEST_AT = 18
    DIGEST_BYTES = 16
    LENGTH_AT = 34
    HEAD_BYTES = 36
    CHECKSUM_BYTES = 8
    HASHED_BYTES = 511
    FULL_KEY_BYTES_MAX = 65535
    INLINE_BYTES_MAX = 494
    PARTITION_BYTES = 2


cdef inline const uint8_t* bytes_at(bytes data) noexcept:
    return <const uint8_t*> PyBytes_AS_STRING(data)


cdef inline bytes tail_of(bytes data, Py_ssize_t start):
    # What Cython makes of data[start:] goes by a slice object.
    return PyBytes_FromStringAndSize(PyBytes_AS_STRING(data) + start, PyBytes_GET_SIZE(data) - start)


cdef uint64_t hash_of(const uint8_t* data, Py_ssize_t size) except? 0:
    if size <= XXH3_SHORT_BYTES:
        return xxh3_64_short(data, size, 0)
    return xxh3_64_intdigest(PyMemoryView_FromMemory(<char*> data, size, PyBUF_READ))


cdef uint64_t checksum_of(bytes row_key, const uint8_t* head, Py_ssize_t size) except? 0:
    # Of the row key and the head, which lie apart.
    cdef uint8_t[XXH3_SHORT_BYTES] text
    cdef Py_ssize_t named = PyBytes_GET_SIZE(row_key)
    if named + size <= XXH3_SHORT_BYTES:
        memcpy(text, bytes_at(row_key), named)
        memcpy(text + named, head, size)
        return xxh3_64_short(text, named + size, 0)
    return xxh3_64_intdigest(row_key + PyBytes_FromStringAndSize(<const char*> head, size))


def inline_key(bytes bucket not None, bytes key not None, seed, Py_ssize_t partitions):
    """The row key of a key, u16 partition | bucket | 0x00 | key; None for one that is too long for that. `partitions` is a power of two up to 2^16."""
    return inlined(bucket, key, PyLong_AsUnsignedLongLongMask(seed), partitions)


cdef bytes inlined(bytes bucket, bytes key, uint64_t seed, Py_ssize_t partitions):
    cdef Py_ssize_t named = PyBytes_GET_SIZE(bucket), size = named + 1 + PyBytes_GET_SIZE(key)
    cdef uint64_t position, partition
    cdef bytes out
    cdef uint8_t* p
    if PARTITION_BYTES + size > INLINE_BYTES_MAX:
        return None
    out = PyBytes_FromStringAndSize(NULL, PARTITION_BYTES + size)
    p = <uint8_t*> PyBytes_AS_STRING(out) + PARTITION_BYTES
    memcpy(p, bytes_at(bucket), named)
    p[named] = 0
    memcpy(p + named + 1, bytes_at(key), size - named - 1)
    if size <= XXH3_SHORT_BYTES:
        position = xxh3_64_short(p, size, seed)
    else:
        position = xxh3_64_intdigest(PyMemoryView_FromMemory(<char*> p, size, PyBUF_READ), seed)
    # The top bits: the high half of the product. A power of two up to 2^16, so that it fits.
    partition = (position >> 32) * <uint64_t> partitions >> 32
    p -= PARTITION_BYTES
    p[0], p[1] = partition >> 8, partition & 255
    return out


def encode(bytes row_key not None, fields):
    """The bytes to store under `row_key`."""
    cdef uint64_t since_actor, since
    cdef int status
    cdef bytes digest, full_key, record, out
    cdef Py_ssize_t head
    cdef uint8_t* p
    status, since_actor, since, digest, full_key, record = fields
    # Invariant: exactly the rows under a hashed row key carry their full key; only a quarantined one may lack a record.
    assert (record or status == STATUS_MAX) and 0 <= status <= 255
    if digest is None or full_key is None or record is None or PyBytes_GET_SIZE(digest) != DIGEST_BYTES or PyBytes_GET_SIZE(full_key) > FULL_KEY_BYTES_MAX:
        raise AssertionError("a row has a digest of 16 bytes, a full key of less than 64 KiB, and a record")  # also under -O: memory depends on it
    assert (PyBytes_GET_SIZE(full_key) > 0) == (PyBytes_GET_SIZE(row_key) == HASHED_BYTES)
    head = HEAD_BYTES + PyBytes_GET_SIZE(full_key)
    out = PyBytes_FromStringAndSize(NULL, head + CHECKSUM_BYTES + PyBytes_GET_SIZE(record))
    p = <uint8_t*> PyBytes_AS_STRING(out)
    p[0], p[1] = FORMAT_2, status
    store64(p + SINCE_ACTOR_AT, since_actor)
    store64(p + SINCE_AT, since)
    memcpy(p + DIGEST_AT, bytes_at(digest), DIGEST_BYTES)
    p[LENGTH_AT], p[LENGTH_AT + 1] = PyBytes_GET_SIZE(full_key) >> 8, PyBytes_GET_SIZE(full_key) & 255
    memcpy(p + HEAD_BYTES, bytes_at(full_key), PyBytes_GET_SIZE(full_key))
    store64(p + head, checksum_of(row_key, p, head))
    memcpy(p + head + CHECKSUM_BYTES, bytes_at(record), PyBytes_GET_SIZE(record))
    return out


def decode(bytes row_key not None, bytes data not None, bint verify):
    """The fields of the row stored as `data` under `row_key`. Raises CorruptRecord for a damaged header or, with `verify`, record."""
    cdef const uint8_t* p = bytes_at(data)
    cdef Py_ssize_t record_at = proved(row_key, data, verify), head_end = record_at - CHECKSUM_BYTES
    return (
        p[1], load64(p + SINCE_ACTOR_AT), load64(p + SINCE_AT), PyBytes_FromStringAndSize(<const char*> p + DIGEST_AT, DIGEST_BYTES),
        data[HEAD_BYTES:head_end] if head_end > HEAD_BYTES else b"", tail_of(data, record_at),
    )


cdef class Look:
    """How to read the rows of one engine with nothing around it; the words are in the twin."""

    cdef public object read
    cdef public bint open

    def __init__(self, read):
        self.read = read
        self.open = False


cdef class Reader:
    """Reads records of one bucket by way of a Look, while nobody else holds the engine's lock."""

    cdef Look look
    cdef object acquire, release
    cdef uint64_t seed
    cdef Py_ssize_t partitions
    cdef bytes bucket

    def __init__(self, Look look not None, lock, seed, Py_ssize_t partitions, bytes bucket not None):
        self.look, self.acquire, self.release = look, lock.acquire, lock.release
        self.seed, self.partitions, self.bucket = PyLong_AsUnsignedLongLongMask(seed), partitions, bucket

    def record(self, bytes key not None):
        """The record of the key, b"" where it is absent; None where more has to be seen to. What `read` raises is raised."""
        cdef Look look = self.look
        cdef bytes row_key
        cdef Py_ssize_t record_at
        if PyBytes_GET_SIZE(key) == 0 or look is None or not look.open:  # None before __init__
            return None
        row_key = inlined(self.bucket, key, self.seed, self.partitions)
        if row_key is None or not self.acquire(False):
            return None
        try:  # a Ctrl-C cannot come in between: signals are heard between instructions of Python's
            if not look.open:
                return None
            data = look.read(row_key)
        finally:
            self.release()
        if type(data) is not bytes:
            return b"" if data is None else None
        try:
            record_at = proved(row_key, data, True)
        except CorruptRecord:
            return None
        return tail_of(data, record_at) or None


cdef Py_ssize_t proved(bytes row_key, bytes data, bint verify) except -1:
    # Where the record of a row begins. Raises CorruptRecord unless the row is sound.
    cdef const uint8_t* p = bytes_at(data)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(data), full_length, head_end, record_at
    if size < HEAD_BYTES + CHECKSUM_BYTES:
        raise CorruptRecord(f"a row of {size} bytes is too short")
    full_length = (p[LENGTH_AT] << 8) | p[LENGTH_AT + 1]
    head_end = HEAD_BYTES + full_length
    record_at = head_end + CHECKSUM_BYTES
    # Invariant: no field is believed before the checksum.
    if record_at > size or load64(p + head_end) != checksum_of(row_key, p, head_end):
        raise CorruptRecord("the header of a row does not match its checksum")
    if p[0] != FORMAT_2 or p[1] > STATUS_MAX:
        raise CorruptRecord(f"a row of format {p[0]}, status {p[1]} is not understood")
    if record_at == size and p[1] != STATUS_MAX:
        raise CorruptRecord("a row has lost its record")
    if (full_length > 0) != (PyBytes_GET_SIZE(row_key) == HASHED_BYTES):
        raise CorruptRecord("a row has a full key where none belongs, or lacks one")
    if verify and record_at < size:
        check(p + record_at, size - record_at)
    return record_at


cdef int check(const uint8_t* record, Py_ssize_t size) except -1:
    # As `check` of the kernel `record` does it.
    cdef View view
    if not view_of(record, size, &view):
        raise CorruptRecord(f"a record of {size} bytes is not canonical")
    if load64(record + size - CHECKSUM_BYTES) != hash_of(record, size - CHECKSUM_BYTES):
        raise CorruptRecord("the checksum of a record is wrong")
    return 0
