"""Reads of a lone replica's committed rows without a request: what `coordinate_get` would answer where R is 1 and there is nobody else to ask.

The caller sees to it that no step of the replica is under way. What needs more than a look, such as a damaged row, is left to a request.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from dynamo._core import record as records
from dynamo._core import row as kernel
from dynamo.replication.core import Core
from dynamo.replication.get import sealed_token
from dynamo.replication.rows import Read


class StoredRows:
    """The committed rows of a replica that owns everything."""

    __slots__ = ("_core", "record")

    record: Callable[[bytes, bytes], bytes | None]
    """(bucket, key) -> the record, b"" for an absent key; None where a request has to see to it."""

    def __init__(self, core: Core, read: Read) -> None:
        self._core = core
        self.record = partial(kernel.read_record, read, core.cluster.seed, core.cluster.partitions)

    def token(self, bucket: bytes, key: bytes, record: bytes) -> bytes:
        """The token that covers all versions of a record."""
        definition = self._core.cluster.bucket(bucket)
        time = records.visible(record)[2] if definition.record_kind == records.LAST_WRITE_WINS else 0  # no other token has one
        return sealed_token(self._core, bucket, key, definition, record, time)
