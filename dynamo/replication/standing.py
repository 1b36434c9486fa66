"""What this node is to a partition when it answers a read of it: the one place where a replica decides that.

Whoever asks counts the answer by what the answering node says here, never by what the asker took it for: the two may see different rings.
"""

from __future__ import annotations

from dynamo.model import messages as m
from dynamo.model.cluster import BucketDefinition
from dynamo.replication.core import Core
from dynamo.replication.routes import Route


def standing_of(core: Core, partition: int, definition: BucketDefinition, route: Route) -> int:
    """The standing with which this node answers reads and scans of the partition; `route` is that of the partition."""
    return route.standing


def standing_of_all(core: Core, first: int, end: int, definition: BucketDefinition) -> int:
    """The standing for a page of the partitions first..end-1: OWNER only if it is that for each of them, else the first other one."""
    for partition in range(first, end):
        standing = standing_of(core, partition, definition, core.route(partition, definition))
        if standing != m.OWNER:
            return standing
    return m.OWNER
