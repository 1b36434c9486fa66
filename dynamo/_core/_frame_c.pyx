# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""Frames and msgpack values: the compiled twin of `_frame_py.py`, which has the form, the limits and the words.

One pass over the bytes where they lie: text and bytes are copied once, into the object that stays. Why that is safe:
every read is preceded by a comparison of what it needs with `stop`, up to which the value may reach; nested values get
a `stop` that leaves the values behind them a byte each, so a claim that does not fit is found before anything is
allocated; recursion ends at NESTING_MAX. Values of unusual types are left to msgpack's packer, as the twin does.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Check, PyDict_Contains, PyDict_New, PyDict_SetItem
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_Check, PyFloat_FromDouble
from cpython.list cimport PyList_Check
from cpython.long cimport PyLong_Check, PyLong_FromLong, PyLong_FromLongLong, PyLong_FromUnsignedLongLong
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_Check, PyTuple_CheckExact, PyTuple_GET_ITEM, PyTuple_GET_SIZE, PyTuple_New, PyTuple_SET_ITEM
from cpython.unicode cimport PyUnicode_Check, PyUnicode_DecodeUTF8
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from dynamo._core._ranges cimport load32, load64, store32
from dynamo._core._writer cimport (
    Writer, begin, discard, finish, reserve, write_head, write_head64, write_integer, write_length, write_raw,
)

import msgpack

from dynamo._core import _frame_py
from dynamo.errors import ProtocolError, ValueTooLarge

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL

HEADER_BYTES = _frame_py.HEADER_BYTES
FRAME_BYTES_MAX = _frame_py.FRAME_BYTES_MAX
NESTING_MAX = _frame_py.NESTING_MAX
TEXT_BYTES_MAX = _frame_py.TEXT_BYTES_MAX

cdef enum:
    HEADER = 4
    PACK_NESTING_MAX = 1024  # msgpack's own

cdef uint64_t FRAME_MAX = FRAME_BYTES_MAX
cdef int NESTING = NESTING_MAX
cdef uint64_t TEXT_MAX = TEXT_BYTES_MAX
assert HEADER_BYTES == HEADER

cdef object _pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack
cdef object ExtType = msgpack.ExtType


# --- decoding ---------------------------------------------------------------------------------------------------------


cdef struct Reader:
    const uint8_t* at
    uint64_t array_elements_max
    uint64_t elements_left
    uint64_t text_bytes_max
    bint maps


cdef int refuse(str why) except -1:
    raise ProtocolError(why)


cdef inline const uint8_t* take(Reader* reader, const uint8_t* stop, uint64_t size) except NULL:
    # The next `size` bytes; the reader is behind them then.
    if <uint64_t> (stop - reader.at) < size:
        refuse("a value is cut short")
    reader.at += size
    return reader.at - size


cdef inline uint16_t load16(const uint8_t* p) noexcept nogil:
    return <uint16_t> ((p[0] << 8) | p[1])


cdef object read(Reader* reader, const uint8_t* stop, int nesting):
    # The value at the reader, which must end at `stop` or before; leaves the reader where it ends.
    cdef uint8_t head
    cdef float single
    cdef double number
    cdef uint32_t bits32
    cdef uint64_t bits64
    head = take(reader, stop, 1)[0]
    if head <= 0x7F:
        return PyLong_FromLong(head)
    if head >= 0xE0:
        return PyLong_FromLong(<int8_t> head)
    if head <= 0x8F:
        return read_map(reader, stop, head & 0x0F, nesting)
    if head <= 0x9F:
        return read_array(reader, stop, head & 0x0F, nesting)
    if head <= 0xBF:
        return read_text(reader, stop, head & 0x1F)
    if head == 0xC0:
        return None
    elif head == 0xC2:
        return False
    elif head == 0xC3:
        return True
    elif head == 0xC4:
        return read_bytes(reader, stop, take(reader, stop, 1)[0])
    elif head == 0xC5:
        return read_bytes(reader, stop, load16(take(reader, stop, 2)))
    elif head == 0xC6:
        return read_bytes(reader, stop, load32(take(reader, stop, 4)))
    elif head == 0xCA:
        bits32 = load32(take(reader, stop, 4))
        memcpy(&single, &bits32, 4)
        return PyFloat_FromDouble(single)
    elif head == 0xCB:
        bits64 = load64(take(reader, stop, 8))
        memcpy(&number, &bits64, 8)
        return PyFloat_FromDouble(number)
    elif head == 0xCC:
        return PyLong_FromLong(take(reader, stop, 1)[0])
    elif head == 0xCD:
        return PyLong_FromLong(load16(take(reader, stop, 2)))
    elif head == 0xCE:
        return PyLong_FromUnsignedLongLong(load32(take(reader, stop, 4)))
    elif head == 0xCF:
        return PyLong_FromUnsignedLongLong(load64(take(reader, stop, 8)))
    elif head == 0xD0:
        return PyLong_FromLong(<int8_t> take(reader, stop, 1)[0])
    elif head == 0xD1:
        return PyLong_FromLong(<int16_t> load16(take(reader, stop, 2)))
    elif head == 0xD2:
        return PyLong_FromLong(<int32_t> load32(take(reader, stop, 4)))
    elif head == 0xD3:
        return PyLong_FromLongLong(<int64_t> load64(take(reader, stop, 8)))
    elif head == 0xD9:
        return read_text(reader, stop, take(reader, stop, 1)[0])
    elif head == 0xDA:
        return read_text(reader, stop, load16(take(reader, stop, 2)))
    elif head == 0xDB:
        return read_text(reader, stop, load32(take(reader, stop, 4)))
    elif head == 0xDC:
        return read_array(reader, stop, load16(take(reader, stop, 2)), nesting)
    elif head == 0xDD:
        return read_array(reader, stop, load32(take(reader, stop, 4)), nesting)
    elif head == 0xDE:
        return read_map(reader, stop, load16(take(reader, stop, 2)), nesting)
    elif head == 0xDF:
        return read_map(reader, stop, load32(take(reader, stop, 4)), nesting)
    refuse(f"a value that begins with 0x{head:02x} has no place here")


cdef inline object read_bytes(Reader* reader, const uint8_t* stop, uint64_t size):
    return PyBytes_FromStringAndSize(<const char*> take(reader, stop, size), <Py_ssize_t> size)


cdef object read_text(Reader* reader, const uint8_t* stop, uint64_t size):
    cdef const uint8_t* text = take(reader, stop, size)
    if size > reader.text_bytes_max:
        refuse(f"a text of {size} bytes")
    try:
        return PyUnicode_DecodeUTF8(<const char*> text, <Py_ssize_t> size, NULL)
    except UnicodeDecodeError:
        raise ProtocolError("text that is not UTF-8") from None


cdef inline int claim(Reader* reader, const uint8_t* stop, uint64_t count, int nesting) except -1:
    # Before `count` elements are made room for: they are few enough, and can be there.
    if count > reader.array_elements_max or count > reader.elements_left:
        refuse(f"an array of {count} elements, or too many with those before")
    if count > <uint64_t> (stop - reader.at):
        refuse("an array is cut short")
    if nesting == 0:
        refuse(f"more than {NESTING_MAX} arrays within each other")
    reader.elements_left -= count
    return 0


cdef tuple read_array(Reader* reader, const uint8_t* stop, uint64_t count, int nesting):
    cdef tuple values
    cdef Py_ssize_t i, size = <Py_ssize_t> count
    claim(reader, stop, count, nesting)
    values = PyTuple_New(size)
    for i in range(size):
        value = read(reader, stop - (size - 1 - i), nesting - 1)
        Py_INCREF(value)
        PyTuple_SET_ITEM(values, i, value)
    return values


cdef dict read_map(Reader* reader, const uint8_t* stop, uint64_t count, int nesting):
    cdef dict entries
    cdef Py_ssize_t i, size = 2 * <Py_ssize_t> count
    if not reader.maps:
        refuse("a map has no place here")
    claim(reader, stop, 2 * count, nesting)
    entries = PyDict_New()
    for i in range(0, size, 2):
        key = read(reader, stop - (size - 1 - i), nesting - 1)
        if type(key) is not str and type(key) is not bytes:
            refuse("a key of a map is neither text nor bytes")
        value = read(reader, stop - (size - 2 - i), nesting - 1)
        if PyDict_Contains(entries, key):
            refuse("a key of a map comes twice")
        PyDict_SetItem(entries, key, value)
    return entries


def decode(bytes data not None, uint64_t frame_bytes_max, uint64_t array_elements_max, uint64_t elements_max):
    """The messages that begin and end in `data`; how many bytes they took; how many the rest must have to go on."""
    cdef const uint8_t* start = <const uint8_t*> PyBytes_AS_STRING(data)
    cdef const uint8_t* end = start + PyBytes_GET_SIZE(data)
    cdef const uint8_t* at = start
    cdef const uint8_t* stop
    cdef uint64_t size
    cdef Reader reader
    cdef list messages = []
    reader.array_elements_max, reader.text_bytes_max, reader.maps = array_elements_max, TEXT_MAX, False
    while end - at >= HEADER:
        size = load32(at)
        if size == 0 or size > frame_bytes_max:
            refuse(f"a frame of {size} bytes; frames have 1 to {frame_bytes_max}")
        if <uint64_t> (end - at - HEADER) < size:
            return messages, at - start, HEADER + size
        reader.at, stop = at + HEADER, at + HEADER + size
        reader.elements_left = elements_max
        message = read(&reader, stop, NESTING)
        if reader.at != stop:
            refuse(f"{stop - reader.at} bytes follow a value")
        check_message(message)
        messages.append(message)
        at = stop
    return messages, at - start, HEADER


cdef inline int check_message(object message) except -1:
    cdef tuple fields
    if not PyTuple_CheckExact(message) or PyTuple_GET_SIZE(message) < 2:
        refuse("a frame that is no array beginning with a type and a request id")
    fields = <tuple> message
    if type(fields[0]) is not int or type(fields[1]) is not int:
        refuse("a frame that is no array beginning with a type and a request id")
    if fields[0] < 0 or fields[1] < 0:
        refuse("a negative message type or request id")
    return 0


def unpack(bytes data not None, uint64_t elements_max):
    """The value of exactly these bytes: arrays as tuples, maps as dicts. Raises ProtocolError."""
    cdef Reader reader
    cdef const uint8_t* stop = <const uint8_t*> PyBytes_AS_STRING(data) + PyBytes_GET_SIZE(data)
    reader.at = <const uint8_t*> PyBytes_AS_STRING(data)
    reader.array_elements_max = reader.elements_left = elements_max
    reader.text_bytes_max, reader.maps = PyBytes_GET_SIZE(data), True
    value = read(&reader, stop, NESTING)
    if reader.at != stop:
        refuse(f"{stop - reader.at} bytes follow a value")
    return value


# --- encoding ---------------------------------------------------------------------------------------------------------


cdef int write(Writer* writer, object value, int nesting) except -1:
    # `nesting`: how deep in arrays and maps the value may still go, as msgpack counts it.
    cdef Py_ssize_t i, size
    cdef const char* text
    cdef double number
    cdef uint64_t bits
    if nesting < 0:
        raise ValueError("recursion limit exceeded")
    if PyBytes_Check(value):
        size = PyBytes_GET_SIZE(value)
        write_length(writer, size, 0, -1, 0xC4, 0xC5, 0xC6)
        return write_raw(writer, PyBytes_AS_STRING(value), size)
    if value is None:
        return write_head(writer, 0xC0)
    if value is False:
        return write_head(writer, 0xC2)
    if value is True:
        return write_head(writer, 0xC3)
    if PyLong_Check(value):
        return write_integer(writer, value)
    if PyUnicode_Check(value):
        text = PyUnicode_AsUTF8AndSize(value, &size)
        write_length(writer, size, 0xA0, 31, 0xD9, 0xDA, 0xDB)
        return write_raw(writer, text, size)
    if PyTuple_CheckExact(value) or (PyTuple_Check(value) and not isinstance(value, ExtType)):
        size = PyTuple_GET_SIZE(value)
        write_length(writer, size, 0x90, 15, 0, 0xDC, 0xDD)
        for i in range(size):
            write(writer, <object> PyTuple_GET_ITEM(value, i), nesting - 1)
        return 0
    if PyList_Check(value):
        return write(writer, tuple(value), nesting)  # a list could change on the way
    if PyFloat_Check(value):
        number = PyFloat_AS_DOUBLE(value)
        memcpy(&bits, &number, 8)
        return write_head64(writer, 0xCB, bits)
    if PyDict_Check(value):
        entries = tuple(value.items())
        write_length(writer, len(entries), 0x80, 15, 0, 0xDE, 0xDF)
        for key, entry in entries:
            write(writer, key, nesting - 1)
            write(writer, entry, nesting - 1)
        return 0
    packed = _pack(value)  # bytearray, memoryview and the like; TypeError for what has no form
    return write_raw(writer, PyBytes_AS_STRING(packed), PyBytes_GET_SIZE(packed))


cdef int write_frame(Writer* writer, object message, uint64_t frame_bytes_max) except -1:
    cdef Py_ssize_t start = writer.size
    cdef uint64_t size
    reserve(writer, HEADER)
    write(writer, message, PACK_NESTING_MAX)
    size = writer.size - start - HEADER
    if size > frame_bytes_max or size > 0xFFFFFFFF:
        raise ValueTooLarge(f"a message of {size} bytes does not fit into a frame of {frame_bytes_max}")
    store32(writer.to + start, <uint32_t> size)
    return 0


def encode(message, uint64_t frame_bytes_max=FRAME_MAX):
    """The frame of a message. Raises ValueTooLarge when it would be larger than the other side accepts."""
    cdef Writer writer
    begin(&writer)
    try:
        write_frame(&writer, message, frame_bytes_max)
        return finish(&writer)
    finally:
        discard(&writer)


def encode_all(messages, uint64_t frame_bytes_max=FRAME_MAX):
    """The frames of messages, one after another. Raises ValueTooLarge if one of them is too large."""
    cdef Writer writer
    begin(&writer)
    try:
        for message in messages:
            write_frame(&writer, message, frame_bytes_max)
        return finish(&writer)
    finally:
        discard(&writer)


def pack(value):
    """The bytes of a value made of None, bool, int, float, str, bytes, tuples or lists, and dicts."""
    cdef Writer writer
    begin(&writer)
    try:
        write(&writer, value, PACK_NESTING_MAX)
        return finish(&writer)
    finally:
        discard(&writer)
