"""News of the membership, spread at once: gossip makes sure that everybody hears, this that they hear soon. Sans-IO.

A node that learns that another one joined, left or moved tells all others right away. Each tells each piece of news once, so n nodes send at
most n^2 small messages a change; in larger clusters gossip alone has to do, in O(log n) seconds.
"""

from __future__ import annotations

from dynamo.membership.members import Membership
from dynamo.model.member import LEFT, Member
from dynamo.model.messages import GOSSIP_PUSH, Message, NodeId, Source

NODES_MAX = 64

_News = tuple[int, int, str]  # what makes a member news: incarnation, admin version, address


class Spread:
    """Notices what is new in a membership since the last look."""

    def __init__(self, membership: Membership) -> None:
        """Everything known now is old, but for this node itself."""
        self._membership = membership
        self._version = -1
        self._known = {node: _news(member) for node, member in membership.members.items() if node != membership.node_id}

    @property
    def stale(self) -> bool:
        """Whether the membership changed since the last look."""
        return self._version != self._membership.version

    def look(self) -> tuple[list[NodeId], list[tuple[Source, Message]]]:
        """(the other nodes to be connected to, messages to send them now)."""
        membership = self._membership
        self._version = membership.version
        others = [node for node, member in membership.members.items() if node != membership.node_id and member.status != LEFT]
        changed = [member for node, member in membership.members.items() if self._known.get(node) != _news(member)]
        self._known.update((member.node_id, _news(member)) for member in changed)
        if not changed or len(others) > NODES_MAX:
            return others, []
        push = (GOSSIP_PUSH, 0, tuple([member.to_tuple() for member in changed]))
        return others, [(node, push) for node in others]


def _news(member: Member) -> _News:
    return member.incarnation, member.admin_version, member.address
