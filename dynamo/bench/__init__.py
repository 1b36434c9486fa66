"""The load generator: closed and open loops over dynamo's protocol or that of Redis. `dynamo bench` is its command; `run(Plan(...))` its function."""

from dynamo.bench.worker import Measured, Plan, run

__all__ = ["Measured", "Plan", "run"]
