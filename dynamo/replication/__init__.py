"""Replication policy: coordinators, quorums, the replica side, handoff. Sans-IO: time, randomness and storage reads are passed in, what to do
comes out, so the same code runs under Trio and, exactly repeatable, in the simulator."""

from dynamo.replication.actor import ActorLease
from dynamo.replication.core import Settings
from dynamo.replication.ready import Ready
from dynamo.replication.replica import Replica

__all__ = ["ActorLease", "Ready", "Replica", "Settings"]
