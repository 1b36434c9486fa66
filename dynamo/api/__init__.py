"""What stores, nodes and clients have in common: the values a program gets back and the small rules about what it may pass in. Sans-IO.

Whoever talks to a store, whether in this process or over a socket, sees the same `Result`, `Context`, codecs and resolvers, so that
code moves between the three ways of using dynamo unchanged. Nothing here waits, connects or knows a clock.
"""

from __future__ import annotations

from dynamo.api.codec import Codec
from dynamo.api.context import Context, Dot
from dynamo.api.result import Resolver, Result, Sibling
from dynamo.api.update import DELETE, MISSING

__all__ = ["DELETE", "MISSING", "Codec", "Context", "Dot", "Resolver", "Result", "Sibling"]
