# Bytes being written, and the heads of msgpack: what `_frame_c.pyx` encodes into. `reserve` is the only place that gives
# room, and nothing is written but to what it gave. Whoever begins a writer discards it, come what may.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, _PyBytes_Resize
from cpython.long cimport PyLong_AsUnsignedLongLong
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from dynamo._core._ranges cimport store32, store64

cdef extern from "Python.h":
    long long PyLong_AsLongLongAndOverflow(object number, int* overflow) except? -1


cdef enum:
    SCRATCH_BYTES = 1024


cdef struct Writer:
    # Bytes being written: to a scratch on the stack, then to a bytes object that nobody else has seen.
    uint8_t* to
    Py_ssize_t size
    Py_ssize_t room
    PyObject* spilled  # NULL while it is the scratch
    uint8_t[SCRATCH_BYTES] scratch


cdef inline void begin(Writer* writer) noexcept:
    writer.to, writer.size, writer.room, writer.spilled = writer.scratch, 0, SCRATCH_BYTES, NULL


cdef inline void discard(Writer* writer) noexcept:
    Py_XDECREF(writer.spilled)
    writer.spilled = NULL


cdef inline bytes finish(Writer* writer):
    cdef bytes done
    if writer.spilled == NULL:
        return PyBytes_FromStringAndSize(<const char*> writer.to, writer.size)
    _PyBytes_Resize(&writer.spilled, writer.size)
    done = <bytes> writer.spilled
    discard(writer)  # our reference; `done` has its own
    return done


cdef inline int grow(Writer* writer, Py_ssize_t more) except -1:
    cdef Py_ssize_t wanted = writer.size + more + (writer.size + more) // 4 + SCRATCH_BYTES
    if writer.spilled == NULL:
        fresh = PyBytes_FromStringAndSize(NULL, wanted)
        memcpy(PyBytes_AS_STRING(fresh), writer.scratch, writer.size)
        Py_INCREF(fresh)
        writer.spilled = <PyObject*> fresh
    else:
        _PyBytes_Resize(&writer.spilled, wanted)
    writer.to = <uint8_t*> PyBytes_AS_STRING(<object> writer.spilled)
    writer.room = wanted
    return 0


cdef inline uint8_t* reserve(Writer* writer, Py_ssize_t more) except NULL:
    # Where the next `more` bytes go.
    if writer.room - writer.size < more:
        grow(writer, more)
    writer.size += more
    return writer.to + writer.size - more


cdef inline int write_head(Writer* writer, uint8_t head) except -1:
    reserve(writer, 1)[0] = head
    return 0


cdef inline int write_head8(Writer* writer, uint8_t head, uint64_t number) except -1:
    cdef uint8_t* out = reserve(writer, 2)
    out[0], out[1] = head, <uint8_t> number
    return 0


cdef inline int write_head16(Writer* writer, uint8_t head, uint64_t number) except -1:
    cdef uint8_t* out = reserve(writer, 3)
    out[0], out[1], out[2] = head, <uint8_t> (number >> 8), <uint8_t> number
    return 0


cdef inline int write_head32(Writer* writer, uint8_t head, uint64_t number) except -1:
    cdef uint8_t* out = reserve(writer, 5)
    out[0] = head
    store32(out + 1, <uint32_t> number)
    return 0


cdef inline int write_head64(Writer* writer, uint8_t head, uint64_t number) except -1:
    cdef uint8_t* out = reserve(writer, 9)
    out[0] = head
    store64(out + 1, number)
    return 0


cdef inline int write_raw(Writer* writer, const char* data, Py_ssize_t size) except -1:
    memcpy(reserve(writer, size), data, size)
    return 0


cdef inline int write_length(Writer* writer, Py_ssize_t size, int short_head, int short_max, int head8, int head16, int head32) except -1:
    # In the shortest of the forms there are; a head of 0 means: there is none.
    if size <= short_max:
        return write_head(writer, short_head | <int> size)
    if head8 and size <= 0xFF:
        return write_head8(writer, head8, size)
    if size <= 0xFFFF:
        return write_head16(writer, head16, size)
    if <uint64_t> size > 0xFFFFFFFF:
        raise ValueError("more than 2^32 - 1 bytes or elements")
    return write_head32(writer, head32, size)


cdef inline int write_integer(Writer* writer, object value) except -1:
    cdef int overflow = 0
    cdef int64_t number = PyLong_AsLongLongAndOverflow(value, &overflow)
    cdef uint64_t magnitude
    if overflow:
        magnitude = PyLong_AsUnsignedLongLong(value)  # OverflowError when it does not fit either
        return write_head64(writer, 0xCF, magnitude)
    if number >= 0:
        magnitude = number
        if magnitude < 0x80:
            return write_head(writer, <uint8_t> magnitude)
        if magnitude <= 0xFF:
            return write_head8(writer, 0xCC, magnitude)
        if magnitude <= 0xFFFF:
            return write_head16(writer, 0xCD, magnitude)
        if magnitude <= 0xFFFFFFFF:
            return write_head32(writer, 0xCE, magnitude)
        return write_head64(writer, 0xCF, magnitude)
    magnitude = <uint64_t> number
    if number >= -0x20:
        return write_head(writer, <uint8_t> magnitude)
    if number >= -0x80:
        return write_head8(writer, 0xD0, magnitude)
    if number >= -0x8000:
        return write_head16(writer, 0xD1, magnitude)
    if number >= -0x80000000:
        return write_head32(writer, 0xD2, magnitude)
    return write_head64(writer, 0xD3, magnitude)
