"""Whether what was delivered is sent again: records handed to a node that has acknowledged that very record to the same sender.

A reply may be lost and a hand-over cross another one, so a few times are no fault. Under one boot of both more than that is work without an end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamo.model import messages as m
from dynamo.model.messages import Message, Source
from dynamo.testing.checkers import Violation

if TYPE_CHECKING:
    from dynamo.testing.node import Node
    from dynamo.testing.simulator import SimulatedCluster

_AGAIN_MAX = {m.PURPOSE_HANDOFF: 5, m.PURPOSE_READ_REPAIR: 20, m.PURPOSE_ANTI_ENTROPY: 5}
_REMEMBERED_MAX = 20_000

_Sent = tuple[bytes, int, bytes, int, bytes, bytes, int]  # sender and its boot, target and its boot, bucket, key, hash of the record


class Quiet:
    """One for all nodes of a run."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self.cluster = cluster
        self._asked: dict[tuple[bytes, bytes, int], _Sent] = {}  # (sender, target, request id) -> what was sent
        self._acknowledged: dict[_Sent, int] = {}  # how often it was sent again since

    def sending(self, node: Node, destination: Source, message: Message) -> None:
        """A node sends a REPLICATE or REPLICATE_REPLY."""
        if type(destination) is not bytes or destination not in self.cluster.nodes:
            return
        other = self.cluster.nodes[destination]
        if message[0] == m.REPLICATE and message[5] in _AGAIN_MAX:
            sent = node.node_id, node.boots, destination, other.boots, message[2], message[3], hash(message[4])
            if len(self._asked) >= _REMEMBERED_MAX:
                self._asked.clear()
            self._asked[node.node_id, destination, message[1]] = sent
            if sent in self._acknowledged:
                self._acknowledged[sent] += 1
                if self._acknowledged[sent] == _AGAIN_MAX[message[5]] + 1:
                    place = self.cluster.key_text(message[2], message[3])
                    text = f"{node} sent {other} the record of {place} {self._acknowledged[sent]} times after {other} had acknowledged it"
                    self.cluster.observer.violations.append(Violation("quiet", text, time=self.cluster.world.now))
        elif message[0] == m.REPLICATE_REPLY and message[2] == 0 and message[3] == m.OWNER:
            asked = self._asked.pop((destination, node.node_id, message[1]), None)
            if asked is not None and asked[3] == node.boots:
                self._acknowledged.setdefault(asked, 0)
