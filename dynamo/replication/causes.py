"""Why a request that too few nodes could serve failed: the storage's fault, where it would have been served but for that.

"0 of the 1 nodes needed" helps nobody whose disk is full. So a fold that fails names the storage error of a node, this one's before others', if the nodes
that failed for their storage would have been enough beside those that did their part. Else nodes are missing too, and the error says that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamo.errors import CorruptRecord, DynamoError, StorageFailed, StorageFull, Unavailable, from_wire

if TYPE_CHECKING:
    from dynamo.replication.core import Core

STORAGE_CODES = (CorruptRecord.code, StorageFull.code, StorageFailed.code)
_KEY_SHOWN_MAX = 80
_WHAT = {
    CorruptRecord.code: "a stored row is damaged",
    StorageFull.code: "the disk or the map of a node is full; free space there, then write again",
    StorageFailed.code: "the storage of a node failed; its log says why",
}


def shown(bucket: bytes, key: bytes) -> str:
    """A key as an error names it."""
    text = repr(key if len(key) <= _KEY_SHOWN_MAX else key[:_KEY_SHOWN_MAX] + b"...")
    return text if bucket == b"default" else f"{text} in bucket {bucket.decode('ascii', 'replace')}"


def damaged(bucket: bytes, key: bytes) -> CorruptRecord:
    """What a read of a damaged row ends in, and a write that would have to build upon it."""
    return CorruptRecord(f"the stored row of {shown(bucket, key)} is damaged; restore it, or overwrite it with `set`, or delete it")


def cause(core: Core, bucket: bytes, key: bytes, failures: dict[bytes, int], served: int, required: int, text: str) -> DynamoError:
    """The error of a request that `served` of `required` nodes did their part of. `text`: what else there is to say. May claim `maybe_applied=False`."""
    codes = {node: code for node, code in failures.items() if code in STORAGE_CODES}
    if not codes or served + len(codes) < required:
        return Unavailable(text, required=required, received=served)
    here = codes.get(core.node_id)
    code = here if here is not None else min(codes.values())
    if code == CorruptRecord.code:
        what = str(damaged(bucket, key))
    elif here is not None and core.storage_error is not None and core.storage_error.code == code:
        what = str(core.storage_error)
    else:
        what = _WHAT[code]
    return from_wire(code, f"{what} ({text})" if text else what, False, 0, 0)
