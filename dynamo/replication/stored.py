"""What a lone replica says of its committed rows without a request: what `coordinate_get` would answer where R is 1 and there is nobody else to ask.

The caller reads the row (`_core.row.read_record`) and sees to it that no step of the replica is under way. What needs more than a look, such as a
damaged row, is left to a request.
"""

from __future__ import annotations

from dynamo._core import record as records
from dynamo.replication.core import Core
from dynamo.replication.get import sealed_token


def token_of(core: Core, bucket: bytes, key: bytes, record: bytes) -> bytes:
    """The token that covers all versions of a record."""
    definition = core.cluster.bucket(bucket)
    time = records.visible(record)[2] if definition.record_kind == records.LAST_WRITE_WINS else 0  # no other token has one
    return sealed_token(core, bucket, key, definition, record, time)
