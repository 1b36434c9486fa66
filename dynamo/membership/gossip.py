"""Gossip: keeps the membership alike on all nodes, by one exchange a second with a random other member.

    A -> B  GOSSIP(digest, ())                    equal digests: B answers GOSSIP_REPLY(digest, (), ()), and that is all
    B -> A  GOSSIP(digest, entries)               else B says which versions it has,
    A -> B  GOSSIP_REPLY(digest, members, wanted) A sends what is newer at A and asks for what is newer at B,
    B -> A  GOSSIP_PUSH(members)                  and B sends that

An exchange of equal views has a constant size; of different ones, 50 bytes a member once and then what differs. Entries
hold versions, and two views may number different facts alike (see `members`): then the versions show no difference
although the digests differ, and the two exchange all they have.

Every message stands alone: nothing is remembered between them, any may be lost, doubled or late, and the next second
mends it. With one exchange a node a second a fact reaches n nodes in O(log n) seconds (Demers et al. 1987, push-pull).
Members stay known across a partition and are gossiped with when it heals; seeds (paper 4.8.2) are for first contact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dynamo.errors import ProtocolError
from dynamo.membership.members import Membership
from dynamo.model.member import LEFT, MEMBERS_MAX, NODE_ID_BYTES, Member
from dynamo.model.messages import GOSSIP, GOSSIP_PUSH, GOSSIP_REPLY, Message

if TYPE_CHECKING:
    from random import Random

Outgoing = list[tuple[bytes, Message]]  # (destination node id, message)
_Versions = tuple[int, int, int]  # incarnation, revision, admin_version


class Gossip:
    """The exchanges of one node. `next_deadline` is when `tick` wants to be called, in monotonic seconds. Whether an
    exchange changed anything, the membership's `version` tells."""

    def __init__(self, membership: Membership, random: Random, interval_s: float = 1.0) -> None:
        assert interval_s > 0
        self.next_deadline = 0.0
        self._membership = membership
        self._random = random
        self._interval_s = interval_s
        self._peers: list[bytes] = []
        self._peers_version = -1

    def tick(self, now: float) -> Outgoing:
        """Begin an exchange if it is time."""
        if now < self.next_deadline:
            return []
        self.next_deadline = now + self._interval_s
        peers = self._others()
        return self.probe(self._random.choice(peers)) if peers else []

    def probe(self, node_id: bytes) -> Outgoing:
        """Begin an exchange with this node. If it lives and hears of it, it answers."""
        return [(node_id, (GOSSIP, 0, self._membership.digest(), ()))]

    def receive(self, source: bytes, message: Message, now: float) -> Outgoing:
        """Take one message of an exchange; what to send then.

        Raises ProtocolError for a malformed message, or one with more members than there may be. It changes nothing.
        """
        if len(message) < 2:
            raise ProtocolError("a message without type and request id")
        kind, request_id = message[0], message[1]
        if message[2:4] == (mine := self._membership.digest(), ()) and kind == GOSSIP:  # a heartbeat, nearly always
            return [(source, (GOSSIP_REPLY, request_id, mine, (), ()))]
        if kind == GOSSIP_REPLY and message[3:5] == ((), ()) and type(message[2]) is bytes:  # the answer to one
            return []
        if kind == GOSSIP:
            digest, entries = _fields(message, bytes, tuple)
            return [(source, self._answer(request_id, digest, entries))]
        if kind == GOSSIP_REPLY:
            _, members, wanted = _fields(message, bytes, tuple, tuple)
            if not members and not wanted:
                return []
            nodes = [_node_id(node) for node in wanted]
            self._membership.merge_all(_members(members))
            known = self._membership.members
            pushed = tuple([known[node].to_tuple() for node in nodes if node in known])
            return [(source, (GOSSIP_PUSH, request_id, pushed))] if pushed else []
        if kind == GOSSIP_PUSH:
            (members,) = _fields(message, tuple)
            self._membership.merge_all(_members(members))
            return []
        raise ProtocolError(f"message type {kind} is no gossip")

    def _answer(self, request_id: int, digest: bytes, entries: tuple[Any, ...]) -> Message:
        """The answer to GOSSIP."""
        mine = self._membership.digest()
        if digest == mine:
            return (GOSSIP_REPLY, request_id, mine, (), ())
        members = self._membership.members
        if not entries:
            return (GOSSIP, request_id, mine, tuple([(node, *_versions(member)) for node, member in members.items()]))
        theirs = _entries(entries)
        ours = {node: _versions(member) for node, member in members.items()}
        lacking = [node for node in ours if _newer(ours[node], theirs.get(node))]
        wanted = [node for node in theirs if _newer(theirs[node], ours.get(node))]
        if not lacking and not wanted:  # facts that differ under equal numbers
            lacking, wanted = list(members), list(theirs)
        return (GOSSIP_REPLY, request_id, mine, tuple([members[node].to_tuple() for node in lacking]), tuple(wanted))

    def _others(self) -> list[bytes]:
        """The members to gossip with: all but this node and those that left."""
        membership = self._membership
        if self._peers_version != membership.version:
            self._peers_version = membership.version
            self._peers = [node for node, member in membership.members.items() if node != membership.node_id and member.status != LEFT]
        return self._peers


def _versions(member: Member) -> _Versions:
    return member.incarnation, member.revision, member.admin_version


def _newer(a: _Versions, b: _Versions | None) -> bool:
    """Whether a view of versions `a` has something that one of versions `b` (None: no view) lacks."""
    return b is None or a[:2] > b[:2] or a[2] > b[2]


def _fields(message: Message, *types: type) -> tuple[Any, ...]:
    """The fields of a message, of these types; unknown ones behind them are ignored."""
    values = message[2 : 2 + len(types)]
    if tuple(map(type, values)) != types or any(type(v) is tuple and len(v) > MEMBERS_MAX for v in values):
        raise ProtocolError(f"gossip message {message[0]} has not the fields it should")
    return values


def _members(values: tuple[Any, ...]) -> list[Member]:
    return [Member.from_tuple(value) for value in values]


def _node_id(value: Any) -> bytes:
    if type(value) is not bytes or len(value) != NODE_ID_BYTES:
        raise ProtocolError("a node id is 16 bytes")
    return value


def _entries(values: tuple[Any, ...]) -> dict[bytes, _Versions]:
    """The versions by node id of a GOSSIP's entries."""
    entries: dict[bytes, _Versions] = {}
    for value in values:
        if type(value) is not tuple or len(value) < 4 or any(type(number) is not int for number in value[1:4]):
            raise ProtocolError("a gossip entry is (node_id, incarnation, revision, admin_version)")
        entries[_node_id(value[0])] = (value[1], value[2], value[3])
    return entries
