"""What anti-entropy costs: bytes exchanged until two replicas that differ in a few keys agree again.

    python benchmarks/anti_entropy.py [--keys 1000000] [--differ 1 1000]

Two replicas (N = 2) in this process over memory engines; every message between them is encoded and its frame counted, heartbeats and gossip apart.
Bytes do not swing with the machine's load, so one run is enough.
"""

from __future__ import annotations

import argparse
import random
import time

from dynamo._core import CORE
from dynamo._core import record as records
from dynamo._core import ring as ring_kernel
from dynamo.membership.members import Membership
from dynamo.model import messages as m
from dynamo.model.cluster import Cluster
from dynamo.model.group import Group
from dynamo.model.key import full_key, row_key
from dynamo.model.member import Member
from dynamo.model.row import OWNED, Row, encode_row
from dynamo.replication import ActorLease, Replica, Settings
from dynamo.storage.memory import MemoryEngine
from dynamo.wire.frames import encode

BUCKET = b"default"
CHATTER = (m.GOSSIP, m.GOSSIP_REPLY, m.GOSSIP_PUSH)


def rows(cluster: Cluster, count: int) -> dict[bytes, bytes]:
    """`count` encoded rows of 13-byte keys and 100-byte values."""
    seed = int.from_bytes(cluster.secret[:8], "big")
    found = {}
    for number in range(count):
        key = b"key-%09d" % number
        record = records.put(b"", b"", 1, number + 1, number + 1, 1 << 40, number.to_bytes(16, "big"), b"v" * 100, False)
        partition = ring_kernel.partition_of(ring_kernel.position(BUCKET, key, cluster.seed), cluster.partitions)
        at = row_key(partition, BUCKET, key, cluster.secret)
        found[at] = encode_row(at, Row(OWNED, 0, 0, records.digest(full_key(BUCKET, key), record, seed), b"", record))
    return found


class Pair:
    """Two replicas over the same rows, less those that the second one lacks."""

    def __init__(self, cluster: Cluster, table: dict[bytes, bytes], missing: set[bytes]) -> None:
        rng = random.Random(1)
        ids = sorted(rng.randbytes(16) for _ in range(2))
        members = [Member(node, "n", 0, 0, 1, "127.0.0.1:1", "", 1000, "normal", 0, 0, 1) for node in ids]
        self.engines = {node: MemoryEngine() for node in ids}
        self.replicas: dict[bytes, Replica] = {}
        self.inbox: dict[bytes, list[tuple[bytes, m.Message]]] = {node: [] for node in ids}
        self.now, self.bytes, self.record_bytes, self.messages = 0.0, 0, 0, 0
        for index, node in enumerate(ids):
            engine = self.engines[node]
            engine.commit(Group(1, {key: value for key, value in table.items() if index == 0 or key not in missing}))
            membership = Membership(node)
            membership.merge_all(members)
            lease = ActorLease.load(None, False, rng)
            membership.start("n", "127.0.0.1:1", lease.actor, lease.lease_end, 1)
            self.replicas[node] = Replica(
                Settings(tree_slice_s=0.0), node, cluster, membership, lease, engine.read, lambda *a, e=engine: e.scan("objects", *a),
                lambda *a, e=engine: e.scan("hints", *a), random.Random(2), lambda: 0, m.DURABILITY_MEMORY, (),
            )  # fmt: skip

    def step(self) -> None:
        self.now += 0.01
        for replica in self.replicas.values():
            replica.tick(self.now)
        while any(self._pump(node) for node in self.replicas):
            pass

    def _pump(self, node: bytes) -> bool:
        replica, batch = self.replicas[node], self.inbox[node]
        self.inbox[node] = []
        if batch:
            replica.receive(batch, self.now)
        ready = replica.take_ready()
        self._carry(node, ready.messages)
        if ready.group is not None:
            self.engines[node].commit(ready.group)
            replica.committed(ready.group, self.now)
            self._carry(node, ready.messages_after_commit)
        return bool(batch or ready.messages or ready.group)

    def _carry(self, node: bytes, messages: list[tuple[m.Source, m.Message]]) -> None:
        for destination, message in messages:
            assert isinstance(destination, bytes)
            if message[0] not in CHATTER:
                self.messages += 1
                self.bytes += len(encode(message))
                self.record_bytes += len(message[4] or b"") if message[0] == m.REPLICATE else len(message[5] or b"") if message[0] == m.READ_REPLY else 0
            self.inbox[destination].append((node, message))

    def agree(self) -> bool:
        one, other = (replica.trees for replica in self.replicas.values())
        return all(one.get(2, p).root() == other.get(2, p).root() for p in range(256))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--differ", type=int, nargs="+", default=[1, 1000])
    asked = parser.parse_args()
    cluster = Cluster(bytes(range(16)), bytes(range(32)), 5, partitions=256, n=2)
    table = rows(cluster, asked.keys)
    print(f"core={CORE} keys={asked.keys}")
    for count in asked.differ:
        pair = Pair(cluster, table, set(random.Random(count).sample(sorted(table), count)))
        began = time.process_time()
        while not all(replica.trees.built for replica in pair.replicas.values()):
            pair.step()
        built = time.process_time() - began
        pair.bytes = pair.record_bytes = pair.messages = 0
        began, virtual = time.process_time(), pair.now
        while not pair.agree():
            pair.step()
        print(
            f"differ={count} bytes={pair.bytes} of_them_records={pair.record_bytes} messages={pair.messages} "
            f"virtual_s={pair.now - virtual:.1f} cpu_s={time.process_time() - began:.2f} both_trees_built_cpu_s={built:.1f}"
        )


if __name__ == "__main__":
    main()
