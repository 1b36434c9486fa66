"""A few replicas in one process with a perfect network that can be cut: the smallest driver there is."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from dynamo.errors import DynamoError
from dynamo.membership.members import Membership
from dynamo.model import messages as m
from dynamo.model.cluster import BucketDefinition, Cluster
from dynamo.model.group import Group
from dynamo.model.member import Member
from dynamo.model.messages import Message
from dynamo.model.row import decode_row
from dynamo.replication import ActorLease, Replica, Settings, operations
from dynamo.replication.ready import Ready
from dynamo.wire.parts import encode_whole

CLIENT = 1


@dataclass
class Node:
    node_id: bytes
    objects: dict[bytes, bytes] = field(default_factory=dict)
    hints: dict[bytes, bytes] = field(default_factory=dict)
    meta: dict[bytes, bytes] = field(default_factory=dict)
    inbox: list[tuple[Any, Message]] = field(default_factory=list)
    up: bool = True
    fail_commits: DynamoError | None = None
    replica: Replica | None = None
    rows_scanned: int = 0
    largest_group: int = 0
    slow: bool = False  # its commits end when there is nothing else to do
    flying: Ready | None = None

    def scan(self, table: dict[bytes, bytes], start: bytes, stop: bytes | None, limit: int) -> list[tuple[bytes, bytes]]:
        keys = sorted(key for key in table if key >= start and (stop is None or key < stop))
        self.rows_scanned += len(keys[:limit])
        return [(key, table[key]) for key in keys[:limit]]

    def apply(self, group: Group) -> None:
        self.largest_group = max(self.largest_group, len(group.objects))
        for table, changes in ((self.objects, group.objects), (self.hints, group.hints), (self.meta, group.meta)):
            for key, value in changes.items():
                if value is None:
                    table.pop(key, None)
                else:
                    table[key] = value


class Rig:
    """`nodes` replicas; `settle` runs messages to quiet, `pass_time` runs the timers."""

    durability = m.DURABILITY_SYNCED

    def __init__(self, nodes: int = 3, buckets: dict[bytes, BucketDefinition] | None = None, **settings: Any) -> None:
        rng = random.Random(7)
        self.now = 100.0
        self.settings = Settings(**settings)
        self.cluster = Cluster(rng.randbytes(16), rng.randbytes(32), 5, partitions=8, n=min(3, nodes), buckets=buckets or {})
        self.members = [Member(rng.randbytes(16), f"n{i}", 0, 0, 1, f"127.0.0.1:{i + 1}", "", 1000, "normal", 0, 0, 1) for i in range(nodes)]
        self.nodes = {member.node_id: Node(member.node_id) for member in self.members}
        self.ids = [member.node_id for member in self.members]
        self.replies: list[Message] = []
        self.bytes_between = 0
        self.requests = 0
        for node_id in self.ids:
            self.boot(node_id)
        self.settle()

    def boot(self, node_id: bytes) -> None:
        node, rng = self.nodes[node_id], random.Random(node_id)
        membership = Membership(node_id)
        membership.merge_all(self.members)
        lease = ActorLease.load(None, False, random.Random())
        membership.start("n", "127.0.0.1:9", lease.actor, lease.lease_end, 1)
        node.replica = Replica(
            self.settings, node_id, self.cluster, membership, lease, node.objects.get,
            lambda *a: node.scan(node.objects, *a), lambda *a: node.scan(node.hints, *a), rng, lambda: 1_700_000_000_000_000, self.durability,
            node.scan(node.meta, operations.PREFIX, operations.BEHIND_PREFIX, 1000),
        )  # fmt: skip
        node.up = True

    def down(self, node_id: bytes) -> None:
        self.nodes[node_id].up = False
        for other in self.others(node_id):
            other.replica.peer_down(node_id, self.now)
        self.settle()

    def back(self, node_id: bytes) -> None:
        self.nodes[node_id].up = True
        for other in self.others(node_id):
            other.replica.peer_up(node_id, self.now)

    def others(self, node_id: bytes) -> list[Node]:
        return [node for other, node in self.nodes.items() if other != node_id and node.up]

    def settle(self) -> None:
        """Deliver messages and commit groups until nothing is left to do."""
        busy = True
        while busy:
            busy = False
            for node in self.nodes.values():
                if not node.up:
                    node.inbox.clear()
                    continue
                if node.inbox:
                    batch, node.inbox = node.inbox, []
                    node.replica.receive(batch, self.now)
                    busy = True
                while True:
                    ready = node.replica.take_ready()
                    if not ready.messages and ready.group is None:
                        break
                    busy = True
                    self._send(node, ready.messages)
                    if ready.group is not None and node.slow:
                        node.flying = ready
                    elif ready.group is not None:
                        self._commit(node, ready)
            if not busy:
                for node in self.nodes.values():
                    ready, node.flying = node.flying, None
                    if ready is not None and node.up:
                        busy = True
                        self._commit(node, ready)

    def _commit(self, node: Node, ready: Ready) -> None:
        if node.fail_commits is not None:
            node.replica.commit_failed(ready.group, node.fail_commits, self.now)
        else:
            node.apply(ready.group)
            node.replica.committed(ready.group, self.now)
            self._send(node, ready.messages_after_commit)

    def pass_time(self, seconds: float, step: float = 0.05) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += step
            for node in self.nodes.values():
                if node.up:
                    node.replica.tick(self.now)
            self.settle()

    def _send(self, node: Node, messages: list[tuple[Any, Message]]) -> None:
        for destination, message in messages:
            if destination == CLIENT:
                self.replies.append(message)
            elif self.nodes[destination].up:
                self.bytes_between += len(encode_whole(message))
                self.nodes[destination].inbox.append((node.node_id, message))

    # --- clients --------------------------------------------------------------------------------------------------------------------

    def ask(self, node_id: bytes, message: Message, wait_s: float = 0.0) -> Message:
        self.requests += 1
        self.nodes[node_id].inbox.append((CLIENT, (message[0], self.requests, *message[2:])))
        self.settle()
        if wait_s:
            self.pass_time(wait_s)
        (reply,) = [reply for reply in self.replies if reply[1] == self.requests]
        self.replies.clear()
        return reply

    def put(self, node_id: bytes, key: bytes, value: bytes | None, token: bytes | None = None, *, operation: bytes | None = None,
            mode: int = m.MODE_PUT, bucket: bytes = b"default", w: int = 0, wait_s: float = 0.0) -> Message:  # fmt: skip
        operation = operation or random.randbytes(16)
        return self.ask(node_id, (m.PUT, 0, bucket, key, value, token, mode, w, 0, 5000, operation), wait_s)

    def get(self, node_id: bytes, key: bytes, *, bucket: bytes = b"default", r: int = 0, wait_s: float = 0.0) -> Message:
        return self.ask(node_id, (m.GET, 0, bucket, key, r, 0, 5000), wait_s)

    # --- looking --------------------------------------------------------------------------------------------------------------------

    def owners(self, key: bytes, bucket: bytes = b"default") -> tuple[bytes, ...]:
        core = self.nodes[self.ids[0]].replica.core
        return core.owners(core.locate(bucket, key)[0], core.cluster.bucket(bucket))

    def record(self, node_id: bytes, key: bytes, bucket: bytes = b"default") -> bytes | None:
        row_key = self.nodes[node_id].replica.core.locate(bucket, key)[1]
        data = self.nodes[node_id].objects.get(row_key)
        return None if data is None else decode_row(row_key, data).record

    def row_key(self, key: bytes, bucket: bytes = b"default") -> bytes:
        return self.nodes[self.ids[0]].replica.core.locate(bucket, key)[1]

    def values(self, reply: Message) -> list[bytes]:
        assert reply[0] == m.GET_REPLY, reply
        return sorted(sibling[0] for sibling in reply[6])
