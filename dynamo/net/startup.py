"""How a node finds its place before it serves: join a cluster, or see that the one it knows is still the one; then be known to the others.

The cluster's document is written once, by `found`. Whoever joins takes it as it is and is refused if its own configuration insists on
something else, because two opinions about N or Q would split the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any
from uuid import UUID

import trio

from dynamo.config import QUORUM, BucketConfig, NodeConfig
from dynamo.errors import ConfigError, DynamoError
from dynamo.membership.joining import Entry
from dynamo.membership.members import Membership
from dynamo.model.cluster import BucketDefinition, Cluster
from dynamo.model.member import Member
from dynamo.model.messages import CLUSTER_STATUS, JOIN, ROLE_CLIENT, ROLE_JOIN, NodeId
from dynamo.net.exchange import call
from dynamo.net.handshake import NodeIdTaken
from dynamo.wire.documents import decode_document
from dynamo.wire.hello import Hello

CALL_TIMEOUT_S = 2.0
ROUND_PAUSE_S = 0.2
# A process that died without a word, of a machine that lost power, holds its node id at the others for as long as TCP believes in it.
DOUBLE_TIMEOUT_S = 10.0


def found(config: NodeConfig, random_bytes: Callable[[int], bytes]) -> Cluster:
    """A new cluster with the configured settings. Raises ConfigError."""
    return Cluster(
        cluster_id=UUID(bytes=random_bytes(16), version=4).bytes,
        secret=random_bytes(32),
        seed=int.from_bytes(random_bytes(8), "big"),
        buckets={name.encode(): _definition(bucket, config) for name, bucket in config.buckets.items()},
        **{name: _number(getattr(config, name)) for name in ("n", "r", "w", "pr", "pw", "partitions")},
    )


def check_asked(config: NodeConfig, cluster: Cluster) -> None:
    """Raises ConfigError, naming the setting, where the configuration insists on something that the cluster does otherwise."""
    for name, asked in config.asked().items():
        if name == "buckets":
            for bucket, wanted in config.buckets.items():
                have = cluster.buckets.get(bucket.encode())
                if have is None or have.to_document() | {"version": 0} != _definition(wanted, config).to_document() | {"version": 0}:
                    raise ConfigError(f"buckets.{bucket}: the cluster defines this bucket otherwise; leave it out here")
        elif _number(asked) != getattr(cluster, name):
            has = getattr(cluster, name) or QUORUM
            raise ConfigError(f"{name}: the cluster was created with {has}, not {asked}; that is fixed, so leave it out here")


async def join(addresses: Iterable[str], node_id: NodeId, name: str, address: str, timeout_s: float, cluster_id: bytes = b"") -> tuple[Cluster, list[Member]]:
    """Ask the nodes at all of these addresses, again and again until at least one answers, for (the cluster, its members).

    Raises ConnectionFailed when none could be reached in time, ConfigError when one belongs to another cluster than `cluster_id` or than another of
    them, when this node id is taken, or when a node refuses for good.
    """
    entry = Entry(list(addresses), timeout_s, DOUBLE_TIMEOUT_S)
    greeting = Hello(role=ROLE_JOIN, node_id=node_id, cluster_id=cluster_id)
    began = trio.current_time()
    refused: list[ConfigError] = []

    async def ask(target: str) -> None:
        try:
            _, reply = await call(target, greeting, (JOIN, 1, node_id, name, address), CALL_TIMEOUT_S)
            entry.accepted(target, Cluster.from_document(decode_document(reply[2])), [Member.from_tuple(member) for member in reply[3]])
        except DynamoError as error:
            try:
                entry.failed(target, error)
            except ConfigError as final:
                refused.append(final)

    while True:
        async with trio.open_nursery() as nursery:
            for target in entry.addresses:
                nursery.start_soon(ask, target)
        if refused:
            raise refused[0]
        accepted = entry.verdict(trio.current_time() - began)
        if accepted is not None:
            return accepted
        await trio.sleep(ROUND_PAUSE_S)


async def be_known(others: Iterable[NodeId], membership: Membership, cluster_id: bytes, refused: Callable[[NodeId], DynamoError | None]) -> None:
    """Wait until each of the others that can be reached lists this node at its address, so that a request to any of them counts it in.

    Raises ConfigError when one of them goes on saying that another process has this node's id (`refused`); gives up waiting, but does not fail, for any
    other reason: who is not reached now is sought on, and an address at which somebody else answers is nobody's fault.
    """
    others = list(others)
    with trio.move_on_after(DOUBLE_TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            for node_id in others:
                nursery.start_soon(_be_known_to, node_id, membership, cluster_id, refused)
        return
    for node_id in others:
        error, other = refused(node_id), membership.members[node_id]
        if is_fatal(error):
            raise ConfigError(f"{other.name} at {other.address} refuses this node: {error}")


def is_fatal(refusal: DynamoError | None) -> bool:
    """Whether a node must end for what another turned it away with: only if a second process has its id."""
    return isinstance(refusal, NodeIdTaken)


async def _be_known_to(node_id: NodeId, membership: Membership, cluster_id: bytes, refused: Callable[[NodeId], DynamoError | None]) -> None:
    greeting = Hello(role=ROLE_CLIENT, cluster_id=cluster_id)
    while True:
        address, me = membership.members[node_id].address, membership.local
        try:
            theirs, reply = await call(address, greeting, (CLUSTER_STATUS, 1), CALL_TIMEOUT_S)
            nodes = decode_document(reply[2])["nodes"]
            there = theirs.node_id == node_id
        except DynamoError:
            there = False
        if not there and membership.members[node_id].address == address:
            return  # not there, or not that node any more: it will hear of us by gossip when it is found
        if there:
            known = any(node["id"] == me.node_id.hex() and node["address"] == me.address and node["status"] == me.status for node in nodes)
            if known and not is_fatal(refused(node_id)):
                return
        await trio.sleep(ROUND_PAUSE_S / 4)


def _number(setting: Any) -> int:
    """A setting as the cluster's document has it: 0 stands for a quorum."""
    return 0 if setting == QUORUM else int(setting)


def _definition(bucket: BucketConfig, config: NodeConfig) -> BucketDefinition:
    """A bucket's definition as the cluster's document has it: 0 stands for the cluster's own setting."""
    n = bucket.n or config.n

    def quorum(own: int | str | None, cluster: int | str) -> int:
        if own == QUORUM:  # 0 where the cluster's is a quorum too; else it has to be spelled out
            return 0 if cluster == QUORUM else n // 2 + 1
        return int(own or 0)

    return BucketDefinition(
        kind=bucket.kind,
        n=bucket.n or 0,
        r=quorum(bucket.r, config.r),
        w=quorum(bucket.w, config.w),
        pr=bucket.pr or 0,
        pw=bucket.pw or 0,
        value_bytes_max=bucket.value_bytes_max,
        siblings_max=bucket.siblings_max,
        version=1,
    )


def thousandths(capacity: float) -> int:
    """A capacity as the membership has it."""
    return max(1, math.floor(capacity * 1000 + 0.5))
