"""Which owners have durably acknowledged which rows that this node keeps for others: what a pass of `handoff` need not send again.

For each partition and owner it is remembered up to which row key a pass has come (`through`), and of the rows up to there those that the owner has
not acknowledged as they are now (`lacking`). So the memory is bounded however many rows there are, and an owner that comes back goes on where it
was. It holds under one ring and one life of the owner; after a restart of either it is empty, and rows are offered by digest anew.
"""

from __future__ import annotations

LACKING_MAX = 64  # of one owner in one partition; beyond it the pass does not go on for that owner
LACKING_TOTAL_MAX = 8192
_END = b"\xff" * 512  # behind every row key


class Progress:
    """How far one owner is with one partition."""

    __slots__ = ("lacking", "through")

    def __init__(self) -> None:
        self.through = b""
        self.lacking: set[bytes] = set()

    @property
    def ended(self) -> bool:
        """Whether a pass has come to the end of the partition."""
        return self.through == _END


class Acknowledged:
    """The progress by partition and owner."""

    __slots__ = ("_by_partition", "_lacking")

    def __init__(self) -> None:
        self._by_partition: dict[int, dict[bytes, Progress]] = {}
        self._lacking = 0  # rows in all sets

    def of(self, partition: int, owner: bytes) -> Progress:
        """The progress of an owner, to be changed by the methods here only."""
        return self._by_partition.setdefault(partition, {}).setdefault(owner, Progress())

    def missing(self, partition: int, owner: bytes, row_key: bytes) -> bool:
        """Note that the owner does not have a row as it is now. False if there is no more room to remember that."""
        lacking = self.of(partition, owner).lacking
        if row_key in lacking:
            return True
        if len(lacking) >= LACKING_MAX or self._lacking >= LACKING_TOTAL_MAX:
            return False
        lacking.add(row_key)
        self._lacking += 1
        return True

    def has(self, partition: int, owner: bytes, row_key: bytes) -> None:
        """Note that the owner has acknowledged the row as it is now, or that there is nothing left to acknowledge."""
        lacking = self.of(partition, owner).lacking
        if row_key in lacking:
            lacking.discard(row_key)
            self._lacking -= 1

    def covers(self, partition: int, owner: bytes, row_key: bytes) -> bool:
        """Whether the owner has acknowledged the row as it is now."""
        progress = self._by_partition.get(partition, {}).get(owner)
        return progress is not None and row_key <= progress.through and row_key not in progress.lacking

    def advance(self, partition: int, owner: bytes, row_key: bytes | None) -> None:
        """A pass has come to this row; None: to the end of the partition."""
        self.of(partition, owner).through = _END if row_key is None else row_key

    def changed(self, partition: int, row_key: bytes) -> None:
        """The row is another one now: whatever was acknowledged of it before does not cover it."""
        for owner, progress in list(self._by_partition.get(partition, {}).items()):
            if row_key <= progress.through and not self.missing(partition, owner, row_key):
                self._forget(partition, owner)

    def done(self, partition: int, owners: list[bytes]) -> bool:
        """Whether these have acknowledged all rows of the partition."""
        known = self._by_partition.get(partition, {})
        return all(owner in known and known[owner].ended and not known[owner].lacking for owner in owners)

    def forget_partition(self, partition: int) -> None:
        """There is nothing left in it to hand over."""
        for owner in list(self._by_partition.get(partition, ())):
            self._forget(partition, owner)
        self._by_partition.pop(partition, None)

    def forget_owner(self, owner: bytes) -> None:
        """It lives another life: what it says now counts."""
        for partition, known in self._by_partition.items():
            if owner in known:
                self._forget(partition, owner)

    def clear(self) -> None:
        """Another ring, or rows that are not what was said of them."""
        self._by_partition, self._lacking = {}, 0

    def _forget(self, partition: int, owner: bytes) -> None:
        self._lacking -= len(self._by_partition[partition].pop(owner).lacking)
