"""Answers that come from the membership and the counters rather than from rows: JOIN, CLUSTER_STATUS, PREFERENCE_LIST, STATS. Sans-IO.

The first two documents for people have the shape that `dynamo cluster status -o json` and `dynamo ring preflist -o json` print (ids in hex).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from uuid import UUID

from dynamo._core import CORE
from dynamo._core import ring as kernel
from dynamo.errors import ConfigError, InvalidRequest
from dynamo.membership.joining import lost_at
from dynamo.membership.members import Membership
from dynamo.membership.ring import Ring
from dynamo.model.cluster import Cluster
from dynamo.model.key import check_bucket, check_key
from dynamo.model.member import LEFT, NORMAL
from dynamo.model.messages import (
    CLUSTER_STATUS,
    CLUSTER_STATUS_REPLY,
    JOIN,
    JOIN_REPLY,
    PREFERENCE_LIST,
    PREFERENCE_LIST_REPLY,
    STATS,
    STATS_REPLY,
    Message,
    NodeId,
)
from dynamo.replication.quorum import needed
from dynamo.wire.documents import encode_document

_log = logging.getLogger("dynamo.node")


class Desk:
    """Answers admin messages from what this node knows now."""

    def __init__(
        self, cluster: Cluster, membership: Membership, ring: Callable[[], Ring], reachable: Callable[[NodeId], bool],
        live: Callable[[NodeId], bool], metrics: Callable[[], dict[str, Any]], recovering: Callable[[NodeId], int],
        warn: Callable[..., None] = _log.warning,
    ) -> None:  # fmt: skip
        """`reachable(node)`: this node's opinion. `live(node)`: whether a process with that node id is connected.
        `metrics()`: counts by name. `recovering(node)`: of how many of its partitions it does not hold all yet.
        `warn(text, *arguments)`: what an operator should see."""
        self._cluster = cluster
        self._membership = membership
        self._ring = ring
        self._reachable = reachable
        self._live = live
        self._metrics = metrics
        self._recovering = recovering
        self._warn = warn

    def answer(self, message: Message) -> Message:
        """The reply to one of them, well formed by `wire.messages.check`. Raises ConfigError, InvalidRequest, InvalidKey."""
        kind, request_id = message[0], message[1]
        if kind == JOIN:
            return (JOIN_REPLY, request_id, *self._join(message[2], message[4]))
        if kind == CLUSTER_STATUS:
            return (CLUSTER_STATUS_REPLY, request_id, encode_document(self.cluster_status()))
        if kind == STATS:
            return (STATS_REPLY, request_id, encode_document(self.stats()))
        assert kind == PREFERENCE_LIST
        return (PREFERENCE_LIST_REPLY, request_id, encode_document(self.preference_list(message[2], message[3])))

    def stats(self) -> dict[str, Any]:
        """Which node this is, which core it runs on, and its counts by name."""
        me = self._membership.local
        return {"node": me.name, "address": me.address, "core": CORE, **self._metrics()}

    def _join(self, node_id: NodeId, address: str) -> tuple[bytes, tuple[Any, ...]]:
        """What a node needs to become a member: with that on its disk it takes itself into the membership and gossips that.

        InvalidRequest, for a double, may pass: the process connected may be one whose end has not been noticed. ConfigError will not.
        """
        known = self._membership.members.get(node_id)
        if known is not None and known.status == LEFT:
            raise ConfigError(f"node {node_id.hex()} left the cluster for good; join with an empty data directory")
        if self._live(node_id):
            raise InvalidRequest(f"another live process has node id {node_id.hex()}; a copied data directory is the same node")
        for member in lost_at(self._membership, node_id, address):
            self._warn(
                "node %s comes in at %s, which was the address of %s (%s); that one stays a member until it comes back elsewhere or is removed",
                node_id.hex(), address, member.name, member.node_id.hex(),
            )  # fmt: skip
        members = tuple([member.to_tuple() for member in self._membership.members.values()])
        return encode_document(self._cluster.to_document()), members

    def cluster_status(self) -> dict[str, Any]:
        """The cluster and its nodes, those that left excluded, by name."""
        cluster, ring = self._cluster, self._ring()
        nodes = [
            {
                "name": member.name,
                "id": member.node_id.hex(),
                "address": member.address,
                "zone": member.zone,
                "capacity": member.capacity / 1000,
                "status": member.status,
                "reachable": member.node_id == self._membership.node_id or self._reachable(member.node_id),
                "partitions": ring.partitions_of(member.node_id),
                "recovering": self._recovering(member.node_id),
            }
            for member in self._membership.members.values()
            if member.status != LEFT
        ]
        members = len(self._membership.in_status(NORMAL))
        return {
            "cluster": str(UUID(bytes=cluster.cluster_id)),
            "ring": ring.number,
            "n": cluster.n,
            "r": needed(0, 0, cluster.r, cluster.n, members),
            "w": needed(0, 0, cluster.w, cluster.n, members),
            "partitions": cluster.partitions,
            "core": CORE,
            "nodes": sorted(nodes, key=lambda node: (node["name"], node["id"])),
        }

    def preference_list(self, bucket: bytes, key: bytes) -> dict[str, Any]:
        """Where a key lies: its owners, best first, and who stands in for them."""
        check_bucket(bucket)
        check_key(key)
        ring = self._ring()
        position = kernel.position(bucket, key, self._cluster.seed)
        partition = kernel.partition_of(position, self._cluster.partitions)
        owners = ring.owners(partition, self._cluster.bucket(bucket).n or None)
        others = [node for node in ring.preference(partition) if node not in owners]
        return {
            "bucket": bucket,
            "key": key,
            "position": position,
            "partition": partition,
            "owners": [self._named(node) for node in owners],
            "fallbacks": [self._named(node) for node in others],
        }

    def _named(self, node_id: NodeId) -> dict[str, str]:
        member = self._membership.members[node_id]
        return {"name": member.name, "id": node_id.hex(), "address": member.address}
