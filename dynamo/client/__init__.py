"""Clients: how a program talks to a cluster over the network.

`core` holds the retry policy, and `verbs`, `many` and `scan` the requests and what their replies mean, all sans-IO. `connection` and `blocking`
put sockets and threads under them; `channel` and `aio` one connection a node, on Trio (`loop_trio`) or asyncio (`loop_asyncio`); `local` the port
of a node in the same process. Importing this room imports no loop: a script or a web worker pays for what it uses.
"""

from __future__ import annotations

from dynamo.client.blocking import Bucket, Client

__all__ = ["Bucket", "Client"]
