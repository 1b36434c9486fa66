"""Clients: how a program talks to a cluster over the network.

`core` holds the retry policy and `verbs` the requests and what their replies mean, both sans-IO; `connection` and `blocking` put
sockets and threads under them. Importing this room imports no Trio: a script or a web worker pays for what it uses.
"""

from __future__ import annotations

from dynamo.client.blocking import Bucket, Client

__all__ = ["Bucket", "Client"]
