# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, auto_pickle=False
"""The fields of messages: the compiled twin of `_shape_py.py`, which has the words.

The types of a field are bits of one byte, so that a field costs a comparison of pointers and one of numbers. What is read by index is below
`size`, which is compared with the length of the tuple first.
"""

from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from cpython.unicode cimport PyUnicode_GET_LENGTH
from libc.stdint cimport uint8_t, uint64_t

from dynamo._core import _shape_py

cdef extern from "Python.h":
    unsigned long long PyLong_AsUnsignedLongLong(object) except? 0xFFFFFFFFFFFFFFFF

FITS = _shape_py.FITS
TOO_SHORT = _shape_py.TOO_SHORT
NO_HEAD = _shape_py.NO_HEAD

cdef enum:
    FITS_ALL = -1
    SHORT = -2
    HEADLESS = -3
    INT = 1
    BYTES = 2
    NONE = 4
    STR = 8
    BOOL = 16
    TUPLE = 32

assert (FITS, TOO_SHORT, NO_HEAD) == (FITS_ALL, SHORT, HEADLESS)

cdef dict BITS = {int: INT, bytes: BYTES, type(None): NONE, str: STR, bool: BOOL, tuple: TUPLE}


cdef struct Bound:
    uint8_t types
    uint64_t low
    uint64_t high


cdef class Fields:
    """The fields of one kind of message."""

    cdef Py_ssize_t first, size
    cdef Bound* bounds
    cdef tuple nested

    def __cinit__(self, Py_ssize_t first, fields):
        cdef Py_ssize_t i
        cdef list nested = []
        self.first = first
        self.size = first + len(fields)
        self.bounds = <Bound*> PyMem_Malloc((len(fields) + 1) * sizeof(Bound))
        if self.bounds == NULL:
            raise MemoryError
        for i, (types, low, high, judge) in enumerate(fields):
            self.bounds[i].types = sum(BITS[one] for one in types)
            self.bounds[i].low, self.bounds[i].high = low, high
            if judge is not None:
                nested.append((first + i, judge))
        self.nested = tuple(nested)

    def __dealloc__(self):
        PyMem_Free(self.bounds)

    def unfit(self, tuple values not None):
        """FITS, or the place in `values` of the first field that does not fit; TOO_SHORT; NO_HEAD for a type or request id that is no integer."""
        return self.place(values)

    cdef Py_ssize_t place(self, tuple values) except? -9:
        cdef Py_ssize_t i
        if PyTuple_GET_SIZE(values) < self.size:
            return SHORT
        for i in range(self.first):
            if type(<object> PyTuple_GET_ITEM(values, i)) is not int:
                return HEADLESS
        for i in range(self.first, self.size):
            if not fits(<object> PyTuple_GET_ITEM(values, i), &self.bounds[i - self.first]):
                return i
        if self.nested:
            for place, judge in self.nested:
                judge(values[place])
        return FITS_ALL


def first_unfit(messages not None, dict fields not None):
    """FITS, or the place of the first that is no message, whose type has no fields here, or that does not fit them."""
    cdef Py_ssize_t i = 0
    for message in messages:
        if type(message) is not tuple or PyTuple_GET_SIZE(message) == 0 or type(<object> PyTuple_GET_ITEM(message, 0)) is not int:
            return i
        expected = fields.get(<object> PyTuple_GET_ITEM(message, 0))
        if expected is None or (<Fields?> expected).place(<tuple> message) != FITS_ALL:
            return i
        i += 1
    return FITS_ALL


cdef bint fits(object value, const Bound* bound) except -1:
    cdef uint64_t size
    kind = type(value)
    if kind is bytes:
        size = PyBytes_GET_SIZE(value)
        return bound.types & BYTES and bound.low <= size <= bound.high
    if kind is int:
        if not bound.types & INT:
            return False
        try:
            size = PyLong_AsUnsignedLongLong(value)
        except OverflowError:  # below 0, or beyond 64 bits
            return False
        return bound.low <= size <= bound.high
    if kind is tuple:
        size = PyTuple_GET_SIZE(value)
        return bound.types & TUPLE and bound.low <= size <= bound.high
    if value is None:
        return bound.types & NONE != 0
    if kind is bool:
        return bound.types & BOOL != 0
    if kind is str:
        size = PyUnicode_GET_LENGTH(value)
        return bound.types & STR and bound.low <= size <= bound.high
    return False
