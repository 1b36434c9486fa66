"""What requests cost the others when there are many: hedging that stops where it would only add to the queue, and a key that everybody wants."""

from __future__ import annotations

import random

import pytest

from dynamo.model import messages as m
from dynamo.model.messages import Message
from tests.replication.rig import CLIENT, Rig


def reads_sent(rig: Rig, *, speaking: bool, seconds: float) -> int:
    """Reads that a get sends whose replicas take it and do not answer, whether or not they say other things meanwhile."""
    node, sent = rig.nodes[rig.ids[0]], 0
    for other in rig.others(node.node_id):
        other.up = False  # nobody is told: the connections are there
    core = node.replica.core
    node.replica.receive([(CLIENT, (m.GET, 1, b"default", b"k", 0, 0, 5000))], rig.now)
    until = rig.now + seconds
    while rig.now < until:
        sent += sum(message[0] == m.READ for _, message in node.replica.take_ready().messages)
        rig.now += 0.01
        for peer in rig.ids[1:] if speaking else ():
            core.liveness.heard(peer, rig.now)
        node.replica.tick(rig.now)
    return sent


@pytest.mark.parametrize(("pending_max", "speaking", "seconds", "reads"), [(0, True, 0.9, 1), (0, False, 0.2, 2), (100, True, 0.2, 2), (0, True, 1.5, 2)])
def test_a_get_is_not_hedged_for_the_length_of_the_queue(pending_max: int, speaking: bool, seconds: float, reads: int) -> None:
    rig = Rig(hedge_pending_max=pending_max)
    assert reads_sent(rig, speaking=speaking, seconds=seconds) == reads


def test_a_thousand_requests_for_one_key_hold_nobody_up() -> None:
    """Gets of the hot key wait for the commit of the write that is staged there, those of other keys for nothing; puts of one key are one row of one
    group, whose commit answers everybody: none of them waits for another's turn."""
    rig = Rig()
    coordinator = next(node for node in rig.ids if node in rig.owners(b"hot"))
    replica = rig.nodes[coordinator].replica

    def request(number: int, key: bytes) -> Message:
        if number % 2:
            return (m.GET, number, b"default", key, 1, 0, 5000)
        return (m.PUT, number, b"default", key, b"v%d" % number, None, m.MODE_SET, 1, 0, 5000, random.randbytes(16))

    cold = range(1000, 1010)
    batch = [request(number, b"cold-%d" % number if number in cold else b"hot") for number in [*range(500), *cold, *range(500, 1000)]]
    replica.receive([(CLIENT, message) for message in batch], rig.now)
    ready = replica.take_ready()
    assert {message[1] for destination, message in ready.messages if destination == CLIENT} == {number for number in cold if number % 2}
    assert ready.group is not None and len(ready.group.objects) == 6
    replica.receive([(CLIENT, request(number, b"hot")) for number in range(2000, 2010)], rig.now)  # and goes on being hot
    rig.nodes[coordinator].apply(ready.group)
    replica.committed(ready.group, rig.now)
    answered = [message[1] for destination, message in [*ready.messages, *ready.messages_after_commit, *replica.take_ready().messages] if destination == CLIENT]
    assert sorted(answered) == [*range(1010)]  # all of the first ones, in the time of one commit
