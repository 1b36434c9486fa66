"""What a replica needs of storage: point reads, one atomic commit group at a time, ordered scans.

Three tables of bytes to bytes: `objects` (rows by row key), `hints`, and `meta` (who this store is: actor, lease,
membership; recent operations). Keys have 1..511 bytes. An engine has one reader (the thread that steps the replica) and one writer (that
thread, or the commit thread); it needs no lock between the two, for readers see a snapshot. Reads return errors as
values, because a batch of reads must not stop at one bad row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal, Protocol

from dynamo._core import row as row_kernel
from dynamo.errors import DynamoError
from dynamo.model.group import Group

__all__ = ["KEY_BYTES_MAX", "Group", "StorageEngine", "Table"]

KEY_BYTES_MAX = 511
Table = Literal["objects", "hints", "meta"]


class StorageEngine(Protocol):
    """Reads see every commit that ended before the last `refresh()`; later ones they may see or not."""

    look: row_kernel.Look
    """`read` with nothing around it, for who counts fractions of a microsecond. It may raise one of `look_errors`: then `refresh`, and let `read` say what
    that is."""

    look_errors: tuple[type[Exception], ...]

    def read(self, row_key: bytes) -> bytes | DynamoError | None:
        """The row, None if there is none, or StorageFailed as a value."""

    def read_meta(self, name: bytes) -> bytes | None:
        """A row of the meta table. Raises StorageFailed."""

    def scan(self, table: Table, start: bytes, stop: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        """Up to `limit` rows with start <= key < stop (None: to the end), in key order. Raises StorageFailed.

        A page shorter than `limit` is the last one; the next page starts at the last key + b"\\0".
        """

    def count(self, table: Table) -> int:
        """How many rows the table has. Raises StorageFailed, as the next one does."""

    def count_of(self, table: Table, keys: Collection[bytes]) -> int:
        """How many of these keys the table has: a look at each, without its row."""

    def refresh(self) -> None:
        """Drop the read snapshot: the next read sees the newest commit."""

    def commit(self, group: Group, entering: Callable[[], None] | None = None) -> None:
        """Apply the whole group in one transaction, durable on return if the engine is synced or the group asks for it.

        `entering` is called once all rows are in the transaction and only the wait for the disk is left. Raises
        StorageFull or StorageFailed: then nothing of the group is visible to reads, and they go on.
        """

    def close(self) -> None:
        """Release files and memory. Nothing may be called after it, but `close` again does nothing."""
