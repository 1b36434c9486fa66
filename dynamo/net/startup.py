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
from dynamo.errors import ConfigError, ConnectionFailed, DynamoError, InvalidRequest, ProtocolError
from dynamo.model.cluster import BucketDefinition, Cluster
from dynamo.model.member import Member
from dynamo.model.messages import CLUSTER_STATUS, JOIN, ROLE_CLIENT, ROLE_JOIN, NodeId
from dynamo.net.exchange import call
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
    """Ask the nodes at these addresses, in turn and again, until one answers with (the cluster, its members).

    Raises ConnectionFailed when none could be reached in time, ConfigError when one belongs to another cluster than `cluster_id`, when this node id
    is taken, or when a node refuses for good.
    """
    addresses = list(addresses)
    greeting = Hello(role=ROLE_JOIN, node_id=node_id, cluster_id=cluster_id)
    began = trio.current_time()
    problems: dict[str, DynamoError] = {}
    while True:
        for target in addresses:
            try:
                _, reply = await call(target, greeting, (JOIN, 1, node_id, name, address), CALL_TIMEOUT_S)
                return Cluster.from_document(decode_document(reply[2])), [Member.from_tuple(member) for member in reply[3]]
            except (InvalidRequest, ConnectionFailed, ProtocolError) as error:
                problems[target] = error
            except ConfigError as error:
                raise ConfigError(f"{target}: {error}") from None
        doubles = [error for error in problems.values() if isinstance(error, InvalidRequest)]
        if trio.current_time() - began > (DOUBLE_TIMEOUT_S if doubles else timeout_s):
            if doubles:
                raise ConfigError(str(doubles[0]))
            reasons = "; ".join(str(error) if str(error).startswith(target) else f"{target}: {error}" for target, error in problems.items())
            raise ConnectionFailed(f"no node to join answered within {timeout_s:g} s ({reasons})")
        await trio.sleep(ROUND_PAUSE_S)


async def be_known(others: Iterable[Member], me: Member, cluster_id: bytes, refused: Callable[[NodeId], DynamoError | None]) -> None:
    """Wait until each of the others that can be reached lists this node at its address, so that a request to any of them counts it in.

    Raises ConfigError when one of them goes on refusing this node (`refused`); gives up waiting, but does not fail, for any other reason.
    """
    with trio.move_on_after(DOUBLE_TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            for other in others:
                nursery.start_soon(_be_known_to, other, me, cluster_id, refused)
        return
    for other in others:
        error = refused(other.node_id)
        if isinstance(error, ConfigError):
            raise ConfigError(f"{other.name} at {other.address} refuses this node: {error}")


async def _be_known_to(other: Member, me: Member, cluster_id: bytes, refused: Callable[[NodeId], DynamoError | None]) -> None:
    greeting = Hello(role=ROLE_CLIENT, cluster_id=cluster_id)
    while True:
        try:
            _, reply = await call(other.address, greeting, (CLUSTER_STATUS, 1), CALL_TIMEOUT_S)
            nodes = decode_document(reply[2])["nodes"]
        except DynamoError:
            return  # not there, or not that node any more: it will hear of us by gossip when it is
        known = any(node["id"] == me.node_id.hex() and node["address"] == me.address and node["status"] == me.status for node in nodes)
        if known and refused(other.node_id) is None:
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
