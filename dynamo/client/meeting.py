"""Which cluster is at each of several addresses, asked of all of them at once: a command that does one thing and ends meets one node, by chance, and
where its addresses are those of two clusters it would write into either."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import monotonic

from dynamo.client.connection import Connection
from dynamo.errors import ConfigError, DynamoError
from dynamo.wire.hello import cluster_text

MEETING_S_MAX = 1.0
"""How long one that does not answer is waited for. Longer finds more of those that are slow, and has commands wait longer for one that is dead."""


def one_cluster(addresses: Sequence[str], timeout: float) -> bytes:
    """The id of the cluster of all nodes that answer now; b"" where none does. Takes at most a fourth of the time, and a second.

    Raises ConfigError, which names the clusters and their addresses, where they are several. Nothing was asked of a node then but who it is.
    """
    deadline = monotonic() + min(timeout / 4, MEETING_S_MAX)
    met: dict[str, bytes] = {}

    def meet(address: str) -> None:
        try:
            connection = Connection(address, deadline)
        except DynamoError:
            return  # whoever is not there is passed over, as by a request; if nobody is, that will say so
        met[address] = connection.cluster_id
        connection.close()

    threads = [threading.Thread(target=meet, args=(address,), daemon=True) for address in addresses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found: dict[bytes, list[str]] = {}
    for address in addresses:
        if address in met:
            found.setdefault(met[address], []).append(address)
    if len(found) > 1:
        told = "; ".join(f"{', '.join(at)}: cluster {cluster_text(cluster)}" for cluster, at in found.items())
        raise ConfigError(f"the addresses are those of {len(found)} clusters, so nothing was asked of either ({told}); name the nodes of one")
    return next(iter(found), b"")
