"""Which dots recent operations got here, and when, so that a retry gets the same one (DESIGN section 2, operation ids).

A live version tells its operation; this list is for those whose version has been replaced since. It changes in the very group that stores the
version, so after a crash it knows exactly the writes that are there. It is bounded: an operation is forgotten after `count_max` later ones.

Operations stand in blocks, a row of the meta table each. The newest block is written again with every group until it is full, which keeps the cost of
a small group at one small row, and the oldest is deleted when the others hold enough.

    block row   "operations/" u64 number -> u8 format = 2 | entries | u64 xxh3-64 of all before it
    entry       16 bytes operation id | u64 actor | u64 counter | u64 HLC time | u16 length | row key
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from struct import Struct, error

from xxhash import xxh3_64_digest

PREFIX, BEHIND_PREFIX = b"operations/", b"operations0"
FORMAT = 2  # 1 had no times; its blocks are left out like damaged ones
BLOCK_OPERATIONS_MIN = 16

_ENTRY = Struct(">16sQQQH")
_CHECKSUM_BYTES = 8
_NUMBER_MAX = (1 << 64) - 1

Version = tuple[int, int, int]  # actor, counter, HLC time
Minted = tuple[bytes, int, int, int]  # row key, and the version that was written there
Entry = tuple[bytes, Minted]  # operation id, what it got


class Operations:
    """The recent operations: staged with what they wrote, committed with it, forgotten with it if the commit fails."""

    __slots__ = ("_blocks", "_count_max", "_dropped", "_flying", "_packed", "_recent", "_staged")

    def __init__(self, count_max: int, stored: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """`stored`: the rows of the meta table from PREFIX up to BEHIND_PREFIX. A damaged one is left out: a retry of what was in it may become a
        version of its own."""
        self._count_max = count_max
        self._recent: dict[bytes, Minted] = {}
        self._staged: list[Entry] = []
        self._flying: list[Entry] = []
        self._dropped: list[int] = []  # blocks that the next group deletes
        self._blocks: deque[tuple[int, list[Entry]]] = deque()
        for key, block in sorted(stored):
            number = int.from_bytes(key[len(PREFIX) :], "big")
            if key != _key(number & _NUMBER_MAX) or number == _NUMBER_MAX:
                continue  # no name of a block: it would be written again under another one
            found = _decode(block)
            self._recent.update(found)
            self._blocks.append((number, found))
        self._packed = [_pack(entry) for entry in self._blocks[-1][1]] if self._blocks else []  # of the newest block, which is written again and again
        self._drop_oldest()

    def __len__(self) -> int:
        return len(self._recent)

    def get(self, operation: bytes) -> Minted | None:
        """Where the operation wrote, and which version; staged ones included."""
        return self._recent.get(operation)

    def stage(self, operation: bytes, row_key: bytes, version: Version) -> None:
        """Remember an operation with the next group."""
        self._recent[operation] = minted = (row_key, *version)
        self._staged.append((operation, minted))

    def take(self) -> dict[bytes, bytes | None]:
        """The changes of the meta table that belong into the group being made."""
        if not self._staged:
            return {}
        if not self._blocks or len(self._blocks[-1][1]) >= BLOCK_OPERATIONS_MIN:
            self._blocks.append((self._blocks[-1][0] + 1 if self._blocks else 0, []))
            self._packed = []
        number, block = self._blocks[-1]
        block += self._staged
        self._packed += [_pack(entry) for entry in self._staged]
        self._flying, self._staged = self._staged, []
        self._drop_oldest()
        changes: dict[bytes, bytes | None] = {_key(dropped): None for dropped in self._dropped}
        self._dropped = []
        changes[_key(number)] = _encode(self._packed)
        return changes

    def committed(self) -> None:
        """The group that was taken is durable."""
        self._flying = []

    def failed(self) -> None:
        """The group that was taken was not applied: forget what was in it and what was staged since."""
        self._forget(self._flying)
        self._forget(self._staged)
        if self._flying:
            del self._blocks[-1][1][-len(self._flying) :]
            del self._packed[-len(self._flying) :]
        self._flying, self._staged = [], []

    def _drop_oldest(self) -> None:
        while len(self._blocks) > 1 and len(self._recent) - len(self._blocks[0][1]) >= self._count_max:
            number, block = self._blocks.popleft()
            self._dropped.append(number)
            self._forget(block)

    def _forget(self, entries: list[Entry]) -> None:
        for operation, minted in entries:
            if self._recent.get(operation) is minted:  # else it was written anew since
                del self._recent[operation]


def _pack(entry: Entry) -> bytes:
    name, (row_key, actor, counter, time) = entry
    return _ENTRY.pack(name, actor, counter, time, len(row_key)) + row_key


def _encode(packed: list[bytes]) -> bytes:
    body = b"".join([bytes([FORMAT]), *packed])
    return body + xxh3_64_digest(body)


def _key(number: int) -> bytes:
    return PREFIX + number.to_bytes(8, "big")


def _decode(data: bytes) -> list[Entry]:
    """The entries of a block; none of a damaged one, or of a later format."""
    body = data[:-_CHECKSUM_BYTES]
    found: list[Entry] = []
    if xxh3_64_digest(body) != data[-_CHECKSUM_BYTES:] or body[:1] != bytes([FORMAT]):
        return found
    at = 1
    try:
        while at < len(body):
            operation, actor, counter, time, length = _ENTRY.unpack_from(body, at)
            at += _ENTRY.size + length
            found.append((operation, (body[at - length : at], actor, counter, time)))
    except error:
        return []  # sound by its checksum and yet none of ours
    return found
