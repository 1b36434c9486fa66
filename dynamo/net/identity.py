"""Who this node is, as its meta table keeps it: node id, cluster, membership, actor. Read once at the start, written before anything is served.

identity     document: (format 1, node id)
cluster      document: (format 1, the cluster's document)
membership   `Membership.encode`; afterwards written by the replica with each change
actor        `ActorLease.encode`; likewise
standings    `Standings.encode`; likewise. An embedded store, and a directory of an earlier build, have none
operations/  `replication.operations`; with each group of writes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from dynamo.errors import ConfigError, CorruptRecord, ProtocolError
from dynamo.model.cluster import Cluster
from dynamo.model.group import Group
from dynamo.model.messages import NodeId
from dynamo.replication import operations, standings
from dynamo.wire.documents import decode_document, encode_document

IDENTITY, CLUSTER, MEMBERSHIP, ACTOR, STANDINGS = b"identity", b"cluster", b"membership", b"actor", standings.META
FORMAT = 1
NODE_ID_BYTES = 16
_BLOCKS_MAX = 1 << 20


class MetaTable(Protocol):
    """What is needed of a storage engine."""

    def read_meta(self, name: bytes) -> bytes | None: ...
    def commit(self, group: Group) -> None: ...
    def refresh(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Stored:
    """What a data directory says."""

    node_id: NodeId
    cluster: Cluster
    membership: bytes | None
    actor: bytes | None
    standings: bytes | None


def load(meta: MetaTable) -> Stored | None:
    """What the directory holds; None for a new one. Raises CorruptRecord where it holds half, ConfigError for a later format."""
    identity, cluster = meta.read_meta(IDENTITY), meta.read_meta(CLUSTER)
    if identity is None and cluster is None:
        return None
    if identity is None or cluster is None:
        raise CorruptRecord("the data directory has no node id, or no cluster; restore it, or start with an empty one")
    node_id = _document(identity, "node id")
    if type(node_id) is not bytes or len(node_id) != NODE_ID_BYTES:
        raise CorruptRecord("the stored node id is damaged")
    return Stored(node_id, Cluster.from_document(_document(cluster, "cluster")), meta.read_meta(MEMBERSHIP), meta.read_meta(ACTOR),
                  meta.read_meta(STANDINGS))  # fmt: skip


def save(meta: MetaTable, node_id: NodeId, cluster: Cluster, membership: bytes, actor: bytes, held: bytes | None = None) -> None:
    """Make it durable, all or nothing. `held`: the standings of a node of a cluster. Raises StorageFull, StorageFailed."""
    group = Group(0, synced=True)
    group.meta[IDENTITY] = encode_document((FORMAT, node_id))
    group.meta[CLUSTER] = encode_document((FORMAT, cluster.to_document()))
    group.meta[MEMBERSHIP] = membership
    group.meta[ACTOR] = actor
    if held is not None:
        group.meta[STANDINGS] = held
    meta.commit(group)
    meta.refresh()


class ScannedTables(Protocol):
    """Likewise, for what has many rows."""

    def scan(self, table: Literal["meta"], start: bytes, stop: bytes | None, limit: int, /) -> list[tuple[bytes, bytes]]: ...


def stored_operations(engine: ScannedTables) -> list[tuple[bytes, bytes]]:
    """The recent operations. Raises StorageFailed."""
    return engine.scan("meta", operations.PREFIX, operations.BEHIND_PREFIX, _BLOCKS_MAX)


def _document(data: bytes, what: str) -> Any:
    """The value behind the format number."""
    try:
        document = decode_document(data)
    except ProtocolError as error:
        raise CorruptRecord(f"the stored {what} is damaged: {error}; restore the data directory, or start with an empty one") from None
    if type(document) is not tuple or len(document) < 2 or type(document[0]) is not int:
        raise CorruptRecord(f"the stored {what} is damaged; restore the data directory, or start with an empty one")
    if document[0] != FORMAT:
        raise ConfigError(f"the stored {what} has format {document[0]}; this version reads {FORMAT}, so start the one that wrote it")
    return document[1]
