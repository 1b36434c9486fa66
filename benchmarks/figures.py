"""Figures that have a bar: what many keys at once save, tails, a stopped node, idle connections, the ring, and large embedded stores.

    python benchmarks/figures.py [--pairs 5] [--seconds 3] [--only NAME]...     --quick: in minutes, without get_1m; --smoke: only whether it runs
    python benchmarks/figures.py --full --only get_10m                          ten million keys instead of one; they take long to write
    python benchmarks/figures.py -o json                                        {"rows": [{"name", "ratio", "low", "high"}, ...]}

    get_many_vs_gets        keys a second of get_many of 100 keys, to those of single gets of the same keys
    tail_p999_vs_p50        the latency of one request in a thousand, to the median, at half of the load the nodes can take
    reads_one_stopped_p99   p99 of reads with one of three nodes stopped, once the others have noticed, to p99 with all three
    idle_connection_bytes   bytes of a node's resident memory for each client that is connected and says nothing
    ring_assign_s           processor seconds to place 65,536 partitions on 1,000 nodes
    ring_fullest            partitions of the fullest node there, to its fair share
    ring_moves              replicas that move when one node more joins, to the fair share of that node
    get_1k get_100k get_1m  time of a get of the embedded store with so many keys, to a transaction with a get of py-lmdb on the same keys and values

The first three run three nodes with N=3 R=W=2, `relaxed`, and values of 100 bytes; what they do exactly is said in `figures_of_nodes.py`. `ratio` is the
median of the rounds, `low` and `high` are the least and the greatest. What cannot be measured on this machine is left out, and said.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from time import process_time

from contests import Bar, Row, Section, Size, Wanted, command_line, contest, measure_all, row_of
from embedded import beside_lmdb
from figures_of_nodes import idle_connections, three_nodes

from dynamo.membership.members import Membership
from dynamo.membership.ring import Ring
from dynamo.model.cluster import Cluster
from dynamo.model.member import NORMAL

GET_SIZES = {"get_1k": 1_000, "get_100k": 100_000, "get_1m": 1_000_000, "get_10m": 10_000_000}
RING_N = 3

BARS = {
    "get_many_vs_gets": Bar(10.0, least=True),
    "tail_p999_vs_p50": Bar(10.0),
    "reads_one_stopped_p99": Bar(2.0),
    "idle_connection_bytes": Bar(16 * 1024),
    "ring_assign_s": Bar(2.0),
    "ring_fullest": Bar(1.05),
    "ring_moves": Bar(1.5),
    **dict.fromkeys(GET_SIZES, Bar(1.6)),
}


def ring(size: Size, scratch: Path, wanted: Wanted) -> Iterator[Row]:
    """The ring of a large cluster, each round with another seed, and thereby with other nodes: a ring of members that were met before is kept."""
    names = ("ring_assign_s", "ring_fullest", "ring_moves")
    if not any(wanted(name) for name in names):
        return
    share = size.ring_partitions * RING_N / size.ring_nodes
    newcomers_share = size.ring_partitions * RING_N / (size.ring_nodes + 1)
    seconds: list[float] = []
    fullest: list[float] = []
    moves: list[float] = []
    for seed in range(size.pairs):
        random = Random(seed)
        nodes = [random.randbytes(16) for _ in range(size.ring_nodes)]
        cluster = Cluster(random.randbytes(16), random.randbytes(32), seed, partitions=size.ring_partitions, n=RING_N)
        membership = Membership(nodes[0])
        for node in nodes:
            _join(membership, node)
        began = process_time()
        before = Ring.of(membership, cluster)
        seconds.append(process_time() - began)
        fullest.append(max(before.partitions_of(node) for node in nodes) / share)
        if wanted("ring_moves"):
            _join(membership, random.randbytes(16))
            after = Ring.of(membership, cluster)
            moved = sum(len(set(after.owners(partition)) - set(before.owners(partition))) for partition in range(size.ring_partitions))
            moves.append(moved / newcomers_share)
    detail = f"{size.ring_nodes:,} nodes, {size.ring_partitions:,} partitions, N={RING_N}"
    for name, values in zip(names, (seconds, fullest, moves), strict=True):
        if wanted(name):
            yield row_of(name, values, detail)


def _join(membership: Membership, node: bytes) -> None:
    """What a node's membership has taken in when another has joined and is ready."""
    membership.admit(node, node.hex(), "127.0.0.1:7379")
    membership.administer(node, status=NORMAL)


def large_stores(names: Sequence[str]) -> Section:
    """Gets of stores of these sizes, one after the other: each is removed before the next is filled."""

    def gets(size: Size, scratch: Path, wanted: Wanted) -> Iterator[Row]:
        for name in filter(wanted, names):
            directory = scratch / name
            directory.mkdir()
            with beside_lmdb(directory, GET_SIZES[name]) as both:
                yield contest(name, lambda: both.store_gets(size.calls), lambda: both.bare_gets(size.calls), size.pairs, "us a get")

    return gets


def sizes_of(asked: argparse.Namespace) -> list[str]:
    """Names of the stores to fill: writing a million keys takes minutes, and ten million ten times as long."""
    last = [] if asked.quick else ["get_10m"] if asked.full else ["get_1m"]
    return ["get_1k"] if asked.smoke else ["get_1k", "get_100k", *last]


def main() -> None:
    options = command_line(__doc__)
    options.add_argument("--full", action="store_true", help="get_10m instead of get_1m")
    asked = options.parse_args()
    stores = [large_stores([name]) for name in sizes_of(asked)]
    measure_all((three_nodes, idle_connections, ring, *stores), asked, BARS)


if __name__ == "__main__":
    main()
