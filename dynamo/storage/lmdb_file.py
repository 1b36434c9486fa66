"""A look at LMDB's data file without opening it: whether its end is missing, and whether its pages are such as LMDB makes.

LMDB maps the file and trusts it. A page that is referenced and lies behind the end of the file is a SIGBUS, and with it the end of the process, at
the first read that comes there. The meta page says how many pages there are; but a file may soundly be shorter than that, when the last ones were
used and freed within one transaction and so never written. Then they are in the list of free pages, which nobody reads.

    page        u64 number | u16 | u16 flags | u16 end of node offsets (of an overflow page: u32 number of pages) | u16 | u16 offsets of nodes
    meta page   16 bytes of page | u32 magic | u32 version | 16 bytes | free pages and tables, 48 bytes each, the first 4 of all are the size of a
                page, the last 8 of each its root | u64 last page | u64 transaction
    node        u32 size of data | u16 flags | u16 size of key | key | data (u64 page, if flagged as big); in a branch the first 6 bytes are a page
    free pages  u64 transaction -> u64 count | u64 pages
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from struct import Struct, error

from lmdb import verify

from dynamo.errors import ConfigError

_MAGIC, _VERSION = 0xBEEFC0DE, 1
_META = Struct("=16xII16xI36xQ48xQQ")  # magic, version, page size, root of the free pages, last page, transaction
_U16, _U64 = Struct("=H"), Struct("=Q")
_NODE = Struct("=HHHH")
_HEADER_BYTES, _NODE_BYTES = 16, 8
_PAGE_BYTES_MAX = 0x8000
_BRANCH, _BIG = 1, 1
_VERIFIED_BYTES_MAX = 512 << 20  # 1.3 s; what is larger is not looked through
_NO_PAGE = (1 << 64) - 1
_DEPTH_MAX = 32


def missing_bytes(path: str) -> int:
    """How many bytes the file lacks that its pages need; 0 for a sound one, and for what is no data file, which LMDB itself finds out."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(_PAGE_BYTES_MAX + _META.size)
        try:
            magic, version, page_bytes, *_ = _META.unpack_from(head)
            if (magic, version) != (_MAGIC, _VERSION) or page_bytes < _META.size:
                return 0
            metas = [_META.unpack_from(head, at) for at in (0, page_bytes)]
        except error:
            return 0  # not even two meta pages
        root, last = max(metas, key=lambda meta: meta[5])[3:5]
        if size >= (last + 1) * page_bytes:
            return 0
        with mmap(file.fileno(), size, access=ACCESS_READ) as data:
            return _missing(data, page_bytes, root, last)


def refuse_damaged(path: str) -> None:
    """Look through the whole file, if it is not too large for that. Raises ConfigError where it is not whole: LMDB would end the process when it comes
    to a page that is none. An empty file is a new one, and what has no meta pages of this kind is left to LMDB, which finds that out itself."""
    size = os.stat(path).st_size
    if not size or missing_bytes(path) or size > _VERIFIED_BYTES_MAX or not _has_meta_pages(path):
        return
    try:
        problems = verify.verify(path)  # type: ignore[no-untyped-call]
    except Exception as problem:  # it reads what may be anything
        problems = [repr(problem)]
    if problems:
        raise ConfigError(
            f"{path} is damaged, as by a copy that was made while it was written, and cannot be opened: {problems[0]}"
            f"{f' and {len(problems) - 1} more' if len(problems) > 1 else ''}; restore it from a backup, or give an empty directory"
        )


def _has_meta_pages(path: str) -> bool:
    with open(path, "rb") as file:
        head = file.read(_PAGE_BYTES_MAX + _META.size)
    return len(head) >= _META.size and _META.unpack_from(head)[:2] == (_MAGIC, _VERSION)


def _missing(data: mmap, page_bytes: int, root: int, last: int) -> int:
    there, needed = len(data) // page_bytes, (last + 1) * page_bytes
    lacking = set(range(there, last + 1)) if last - there < 1 << 24 else set()
    if not lacking:  # no transaction frees so many pages that it has just made
        return needed - len(data)
    try:
        for page in _free_pages(data, page_bytes, root, 0):
            lacking.discard(page)
    except (error, IndexError):  # the list itself is cut off
        return needed - len(data)
    return needed - len(data) if lacking else 0


def _free_pages(data: mmap, page_bytes: int, page: int, depth: int) -> Iterator[int]:
    """The pages in the list of free ones, from its tree. Raises struct.error where that leads behind the end, IndexError where it goes round."""
    if page == _NO_PAGE:
        return
    if depth > _DEPTH_MAX:
        raise IndexError("a tree that is too deep")
    at = page * page_bytes
    flags, end = (_U16.unpack_from(data, at + offset)[0] for offset in (10, 12))
    for place in range(at + _HEADER_BYTES, at + end, 2):
        node = at + _U16.unpack_from(data, place)[0]
        low, high, third, key_bytes = _NODE.unpack_from(data, node)
        if flags & _BRANCH:
            yield from _free_pages(data, page_bytes, low | high << 16 | third << 32, depth + 1)
            continue
        body = node + _NODE_BYTES + key_bytes
        if third & _BIG:
            body = _U64.unpack_from(data, body)[0] * page_bytes + _HEADER_BYTES
        (count,) = _U64.unpack_from(data, body)
        yield from Struct(f"={count}Q").unpack_from(data, body + 8)
