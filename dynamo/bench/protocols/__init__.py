"""What goes over one connection of the load generator, sans-IO, so that one generator measures all: dynamo's protocol and those of its peers.

`talk` has what a protocol has to do, and the part that all peers share; there is a module for each protocol. A peer is one more name in `PEERS`.
"""

from __future__ import annotations

from dynamo.bench.protocols.etcd import EtcdTalk
from dynamo.bench.protocols.memcached import MemcachedTalk
from dynamo.bench.protocols.own import DynamoTalk
from dynamo.bench.protocols.redis import RedisTalk
from dynamo.bench.protocols.talk import InOrder, Talk

PEERS: dict[str, type[InOrder]] = {"redis": RedisTalk, "memcached": MemcachedTalk, "etcd": EtcdTalk}
PROTOCOLS = ("dynamo", *PEERS)

__all__ = ["PEERS", "PROTOCOLS", "DynamoTalk", "EtcdTalk", "InOrder", "MemcachedTalk", "RedisTalk", "Talk"]
