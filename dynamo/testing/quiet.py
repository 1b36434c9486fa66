"""Whether what was delivered is sent again: records handed to a node whose acknowledgement of that very record has arrived at the same sender.

A hand-over may cross another one, and in a storm nodes restart and commits fail, so a few times are no fault. Under one boot of both, in calms, more than
that is work without an end. What is not answered is sent for the want of an answer, and does not count. Nor is it the same work where the sender was given
the key anew meanwhile, or wrote it: whoever stands in for others and gets a retry has to see to them again.
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

_Sent = tuple[bytes, int, bytes, int, bytes, bytes, int]  # sender and its boot, target and its boot, bucket, key, hash of the record and of the occasion


class Quiet:
    """One for all nodes of a run."""

    def __init__(self, cluster: SimulatedCluster) -> None:
        self.cluster = cluster
        self._asked: dict[tuple[bytes, bytes, int], tuple[_Sent, int, int | None]] = {}
        """(sender, target, request id) -> what was sent, its purpose, and how often it had been acknowledged again by then; None: never."""
        self._acknowledged: set[_Sent] = set()
        self._given: dict[tuple[bytes, bytes, bytes], int] = {}  # how often each node was given a key, or wrote it
        self._again: dict[tuple[_Sent, int], int] = {}  # how often each was acknowledged again, by purpose

    def sending(self, node: Node, destination: Source, message: Message) -> None:
        """A node sends a REPLICATE."""
        if type(destination) is not bytes or destination not in self.cluster.nodes:
            return
        other = self.cluster.nodes[destination]
        if message[0] == m.REPLICATE:
            for given in (destination, *([node.node_id] if message[5] == m.PURPOSE_WRITE else [])):
                self._given[given, message[2], message[3]] = self._given.get((given, message[2], message[3]), 0) + 1
        if message[0] == m.REPLICATE and message[5] in _AGAIN_MAX:
            occasion = self._given.get((node.node_id, message[2], message[3]), 0)
            sent = node.node_id, node.boots, destination, other.boots, message[2], message[3], hash((message[4], occasion))
            if len(self._asked) >= _REMEMBERED_MAX:
                self._asked.clear()
            known = self._again.get((sent, message[5]), 0) if sent in self._acknowledged else None
            self._asked[node.node_id, destination, message[1]] = sent, message[5], known

    def arrived(self, node: Node, source: Source, message: Message) -> None:
        """A REPLICATE_REPLY has arrived."""
        if type(source) is not bytes or message[2] or message[3] != m.OWNER:
            return
        asked = self._asked.pop((node.node_id, source, message[1]), None)
        if asked is not None and asked[0][1] == node.boots:
            self._acknowledged.add(asked[0])
            if asked[2] == self._again.get(asked[:2], 0) and not self.cluster.storm:  # else it was sent before the last of these acknowledgements
                self._count(self.cluster.nodes[source], node, asked[0], asked[1])

    def _count(self, node: Node, sender: Node, sent: _Sent, purpose: int) -> None:
        times = self._again[sent, purpose] = self._again.get((sent, purpose), 0) + 1
        if times == _AGAIN_MAX[purpose] + 1:
            place = self.cluster.key_text(sent[4], sent[5])
            text = f"{node} was sent the record of {place} by {sender} {times} times after it had acknowledged it, and acknowledged it again"
            self.cluster.observer.violations.append(Violation("quiet", text, time=self.cluster.world.now))
