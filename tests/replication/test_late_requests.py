"""A put that waited in a stopped node while its client went on elsewhere must not undo what the client did since."""

from __future__ import annotations

import pytest

from dynamo.errors import Unavailable
from dynamo.model import messages as m
from dynamo.model.cluster import BucketDefinition
from dynamo.model.messages import Message

from .rig import CLIENT, Rig

OPERATION = b"1" * 16
LWW = {b"lww": BucketDefinition(kind="last_write_wins")}


def late(rig: Rig, node: bytes, bucket: bytes, time_ms: int = 900) -> Message:
    """What the node says to the first attempt, which arrives now."""
    rig.nodes[node].inbox.append((CLIENT, (m.PUT, 900, bucket, b"k", b"1", None, m.MODE_SET, 0, 0, time_ms, OPERATION)))
    rig.settle()
    (reply,) = [reply for reply in rig.replies if reply[1] == 900]
    rig.replies.clear()
    return reply


@pytest.mark.parametrize("bucket", [b"default", b"lww"])
def test_a_replica_that_was_sent_the_write_knows_the_operation(bucket: bytes) -> None:
    rig = Rig(buckets=LWW, exchange_interval_s=1e9)
    a, b, c = rig.owners(b"k", bucket)
    first = rig.put(b, b"k", b"1", operation=OPERATION, mode=m.MODE_SET, bucket=bucket)
    rig.put(b, b"k", b"2", mode=m.MODE_SET, bucket=bucket)
    assert late(rig, a, bucket)[5:7] == first[5:7]
    assert rig.values(rig.get(c, b"k", bucket=bucket, r=3)) == [b"2"]


def test_it_still_knows_it_after_a_crash() -> None:
    rig = Rig(exchange_interval_s=1e9)
    a, b, _ = rig.owners(b"k")
    rig.put(b, b"k", b"1", operation=OPERATION, mode=m.MODE_SET)
    rig.put(b, b"k", b"2", mode=m.MODE_SET)
    rig.boot(a)
    late(rig, a, b"default")
    assert rig.values(rig.get(b, b"k", r=3)) == [b"2"]


@pytest.mark.parametrize(("stopped_s", "time_ms", "refused"), [(2.0, 900, True), (2.0, 4900, False), (0.2, 100, False)])
def test_a_node_that_was_stopped_refuses_what_may_have_expired(stopped_s: float, time_ms: int, refused: bool) -> None:
    """It reads the late request before the writes that it missed."""
    rig = Rig(exchange_interval_s=1e9)
    a, b, _ = rig.owners(b"k")
    rig.pass_time(1)
    rig.nodes[a].up = False
    rig.put(b, b"k", b"1", operation=OPERATION, mode=m.MODE_SET)
    rig.put(b, b"k", b"2", mode=m.MODE_SET)
    rig.pass_time(stopped_s)
    rig.nodes[a].up = True
    reply = late(rig, a, b"default", time_ms)
    if refused:
        assert (reply[0], reply[2], reply[4]) == (m.ERROR, Unavailable.code, False)
        rig.pass_time(1.5)
        assert rig.values(rig.get(b, b"k", r=3)) == [b"2"]
    assert rig.put(a, b"other", b"3")[0] == m.PUT_REPLY


def test_a_stall_is_noticed_also_where_a_commit_ended_meanwhile() -> None:
    rig = Rig(exchange_interval_s=1e9)
    a, b, _ = rig.owners(b"k")
    rig.pass_time(1)
    replica = rig.nodes[a].replica
    replica.receive([(CLIENT, (m.PUT, 800, b"default", b"other", b"v", None, m.MODE_PUT, 1, 0, 5000, b"o" * 16))], rig.now)
    ready = replica.take_ready()
    rig.nodes[a].up = False
    rig.put(b, b"k", b"1", operation=OPERATION, mode=m.MODE_SET)
    rig.put(b, b"k", b"2", mode=m.MODE_SET)
    rig.pass_time(2.0)
    rig.nodes[a].up = True
    rig.nodes[a].apply(ready.group)
    replica.committed(ready.group, rig.now)
    assert late(rig, a, b"default")[0] == m.ERROR


def test_a_lone_node_refuses_nothing() -> None:
    rig = Rig(1)
    rig.pass_time(1)
    rig.now += 100
    assert rig.put(rig.ids[0], b"k", b"1")[0] == m.PUT_REPLY
