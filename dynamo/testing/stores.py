"""What the data directories of a stopped cluster hold: put into a history as its end, and judged with it.

The owners of a key must hold the same bytes; whatever else is asked of them is asked by the checkers, of the join over the owners.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce
from pathlib import Path

from dynamo._core import record as records
from dynamo.membership.members import Membership
from dynamo.membership.ring import Ring
from dynamo.model.key import split_row_key
from dynamo.model.row import decode_row
from dynamo.net import identity
from dynamo.storage.lmdb import LmdbEngine
from dynamo.testing.checkers import Violation, check, place_text
from dynamo.testing.history import Final, History, Version
from dynamo.testing.recorder import key_bytes, key_name

_PAGE = 4096


class Store:
    """One node's records and its view of the ring, read from its directory. The node must not be running. Raises CorruptRecord for a damaged row."""

    def __init__(self, data: Path) -> None:
        engine = LmdbEngine(str(data), synced=False)
        try:
            stored = identity.load(engine)
            assert stored is not None and stored.membership is not None, f"{data} is no node's directory"
            membership = Membership(stored.node_id)
            membership.load(stored.membership)
            self.name = data.name
            self.node_id = stored.node_id
            self.cluster = stored.cluster
            self.ring = Ring.of(membership, stored.cluster)
            self.records = dict(_records(engine))
        finally:
            engine.close()

    def owns(self, bucket: bytes, key: bytes) -> bool:
        """Whether this node is an owner of the key."""
        return self.node_id in self.ring.owners(self.ring.partition(bucket, key), self.cluster.bucket(bucket).n or None)


def judge(history: History, directories: Iterable[Path]) -> list[Violation]:
    """Add what the owners hold to the history, and return all that is wrong: owners that differ, and what the checkers find."""
    stores = [Store(directory) for directory in directories]
    written = {(write.bucket.encode(), key_bytes(write.key)) for write in history.writes.values()}
    differences = []
    for bucket, key in sorted(written.union(*(store.records for store in stores))):
        held = {store.name: store.records.get((bucket, key), b"") for store in stores if store.owns(bucket, key)}
        joined = reduce(records.merge, held.values(), b"")
        behind = [owner for owner, record in held.items() if record != joined]
        if behind:
            text = f"{place_text(bucket.decode(), key_name(key))} differs between its owners: not all of it is at {', '.join(behind)}"
            differences.append(Violation("converge", text))
        versions = records.versions(joined) if joined else ()
        found = [Version((actor, counter), operation.hex(), time, deleted) for actor, counter, time, operation, _, _, deleted, _ in versions]
        history.add(Final(bucket.decode(), key_name(key), found))
    return [*differences, *check(history)]


def _records(engine: LmdbEngine) -> Iterator[tuple[tuple[bytes, bytes], bytes]]:
    start = b""
    while page := engine.scan("objects", start, None, _PAGE):
        for row_key, data in page:
            row = decode_row(row_key, data)
            yield split_row_key(row_key, row.full_key)[1:], row.record
        start = page[-1][0] + b"\0"
