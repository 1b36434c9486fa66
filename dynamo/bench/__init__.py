"""The load generator: closed and open loops over dynamo's protocol or that of a peer: Redis, memcached, etcd.

`dynamo bench` is its command, `run(Plan(...))` its function.
"""

from dynamo.bench.plan import Measured, Plan
from dynamo.bench.processes import run

__all__ = ["Measured", "Plan", "run"]
