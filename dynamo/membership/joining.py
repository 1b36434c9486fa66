"""How a node comes in, and how it finds the others again: the decisions, for the node and for the simulator alike. Sans-IO.

An address is a hint. Behind it may be the member it was once the address of, another member, this very node, a node of another cluster, or nobody:
machines are wiped, swapped and moved. So who answers is believed for who it is (`who_answers`), a member's address is what that member says of
itself, and where somebody else answers the address is out of date, which is nobody's fault. Only one thing is: this node's id in another process.

`Entry` is the question whether this node may come in. A newcomer has no place in any table, on disk or in gossip, before a member has answered it;
and since all that are named are asked, a list that names two clusters is found out.

`Seeking` is the question where the others are, which is asked as long as one of them cannot be reached: what was asked once at a start would never
bring nodes together that all came back at other addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from dynamo.errors import ConfigError, ConnectionFailed, DynamoError, InvalidRequest
from dynamo.membership.members import Membership
from dynamo.model.cluster import Cluster
from dynamo.model.member import LEFT, Member

if TYPE_CHECKING:
    from random import Random

EXPECTED, ANOTHER, ITSELF, DOUBLE = "expected", "another", "itself", "double"

SEEK_S, SEEK_S_MAX = 1.0, 30.0
COMPLAIN_AFTER_S, COMPLAIN_EVERY_S = 10.0, 60.0
_NAMED_MAX = 5  # members that a complaint names


def who_answers(own: tuple[bytes, bytes], theirs: tuple[bytes, bytes], expected: bytes) -> str:
    """Who is behind an address: EXPECTED, ANOTHER member, this node ITSELF, or a DOUBLE, which is another process with this node's id.

    `own`, `theirs`: (node id, boot nonce). `expected`: the node whose address it was; b"" where anybody is welcome."""
    if theirs[0] == own[0]:
        return ITSELF if theirs[1] == own[1] else DOUBLE
    return EXPECTED if expected in (b"", theirs[0]) else ANOTHER


def held(membership: Membership, node_id: bytes, connected: Callable[[bytes], bool]) -> bytes:
    """The node that is known to be at the address of `node_id` in its place: this node itself, or one that is connected and says so. b"": nobody."""
    address = membership.members[node_id].address
    for other, member in membership.members.items():
        if other != node_id and member.address == address and member.status != LEFT and (other == membership.node_id or connected(other)):
            return other
    return b""


def hints(join: Iterable[str], membership: Membership) -> list[str]:
    """Addresses at which somebody may know more: those of `join`, and this node's own former one, where the other is if two have swapped. Asked for
    before `Membership.start` gives this node its address of now."""
    me = membership.members.get(membership.node_id)
    return [*join, me.address] if me is not None and me.address else [*join]


def lost_at(membership: Membership, node_id: bytes, address: str) -> list[Member]:
    """The members that a newcomer at this address seems to follow: they were there before it, and if their disks are gone they must be removed."""
    members = membership.members.items()
    return [member for node, member in members if node not in (node_id, membership.node_id) and member.address == address and member.status != LEFT]


@dataclass(slots=True)
class Entry:
    """What the nodes said that were asked to let this one in (or, of a node that returns, whether the cluster is still its own)."""

    addresses: Sequence[str]
    timeout_s: float
    double_timeout_s: float  # a process that died without a word may hold its node id for so long
    _clusters: dict[str, Cluster] = field(default_factory=dict)  # by who said so
    _members: list[Member] = field(default_factory=list)
    _problems: dict[str, DynamoError] = field(default_factory=dict)

    def accepted(self, address: str, cluster: Cluster, members: Iterable[Member]) -> None:
        """A member answered."""
        self._clusters[address] = cluster
        self._members += members
        self._problems.pop(address, None)

    def failed(self, address: str, error: DynamoError) -> None:
        """None did, there. Raises ConfigError where it refuses for good."""
        if isinstance(error, ConfigError):
            raise ConfigError(f"{address}: {error}") from None
        self._problems[address] = error

    def verdict(self, waited_s: float) -> tuple[Cluster, list[Member]] | None:
        """After all were asked: the cluster and its members, or None: ask again. Raises ConfigError for addresses of two clusters, or when this node's
        id is taken, and ConnectionFailed when nobody answered in time."""
        first = next(iter(self._clusters), "")
        cluster = self._clusters.get(first)
        for address, other in self._clusters.items():
            if cluster is not None and other.cluster_id != cluster.cluster_id:
                raise ConfigError(
                    f"join: {first} is a node of cluster {_uuid(cluster.cluster_id)}, {address} of cluster {_uuid(other.cluster_id)}; "
                    "name nodes of one cluster only, and see which of them was founded by mistake"
                )
        doubles = [error for error in self._problems.values() if isinstance(error, InvalidRequest)]
        if cluster is not None and not doubles:
            return cluster, self._members
        if waited_s > (self.double_timeout_s if doubles else self.timeout_s):
            if doubles:
                raise ConfigError(str(doubles[0]))
            raise ConnectionFailed(self._nobody())
        return None

    def _nobody(self) -> str:
        said = "; ".join(str(error) if str(error).startswith(target) else f"{target}: {error}" for target, error in self._problems.items())
        return (
            f"no node to join answered within {self.timeout_s:g} s ({said}); see that a node of the cluster runs at one of these addresses and can be "
            "reached from here, then start this one again (only the very first node of a cluster is started without `join`)"
        )


@dataclass(frozen=True, slots=True)
class Look:
    """What is to be done about members that cannot be reached: addresses to ask, and what to tell the operator, if anything."""

    ask: Sequence[str] = ()
    complaint: str = ""


class Seeking:
    """Keeps asking the addresses of `join` as long as a member cannot be reached, with growing pauses. (Members' own addresses are dialled anyway.)"""

    def __init__(self, join: Iterable[str], random: Random) -> None:
        self.next_deadline = 0.0
        self._join = tuple(dict.fromkeys(join))
        self._random = random
        self._pause_s = SEEK_S
        self._since: dict[bytes, float] = {}  # when each member was first missed
        self._complain_at = 0.0

    def look(self, now: float, membership: Membership, connected: Callable[[bytes], bool], why: Callable[[bytes], str]) -> Look:
        """Called at `next_deadline`. `why(node)`: what is known of the reason, or ""."""
        me = membership.node_id
        others = [member for node, member in membership.members.items() if node != me and member.status != LEFT]
        missed = [member for member in others if not connected(member.node_id)]
        back = self._since.keys() - {member.node_id for member in missed}
        fresh = [member.node_id for member in missed if member.node_id not in self._since]
        for node in back:
            del self._since[node]
        for node in fresh:
            self._since[node] = now
        if back or fresh or not missed:
            self._pause_s = SEEK_S
        self.next_deadline = now + self._pause_s * self._random.uniform(0.75, 1.25)
        if not missed:
            return Look()
        self._pause_s = min(SEEK_S_MAX, self._pause_s * 2)
        at_hand = {member.address for member in others if connected(member.node_id)} | {membership.local.address}
        complaint = self._complaint(now, missed, membership, connected, why)
        due = max(self._complain_at, min(self._since.values()) + COMPLAIN_AFTER_S)
        if due > now:
            self.next_deadline = min(self.next_deadline, due)
        return Look([address for address in self._join if address not in at_hand], complaint)

    def _complaint(
        self, now: float, missed: Collection[Member], membership: Membership, connected: Callable[[bytes], bool], why: Callable[[bytes], str]
    ) -> str:
        """Once a minute, of those that were missed for a while."""
        late = [member for member in missed if now - self._since[member.node_id] >= COMPLAIN_AFTER_S]
        if not late or now < self._complain_at:
            return ""
        self._complain_at = now + COMPLAIN_EVERY_S
        said = [_missed(member, held(membership, member.node_id, connected), why(member.node_id)) for member in late[:_NAMED_MAX]]
        more = f" and {len(late) - _NAMED_MAX} more" if len(late) > _NAMED_MAX else ""
        advice = "trying again until they answer (if they moved, `join` can say where)"
        return f"cannot reach {len(late)} of {len(membership.members)} members: {'; '.join(said)}{more}; {advice}"


def _missed(member: Member, holder: bytes, reason: str) -> str:
    text = f"{member.name} ({member.node_id.hex()}) at {member.address}"
    if holder:
        return f"{text}, where node {holder.hex()} is now"
    return f"{text} ({reason})" if reason else text


def _uuid(cluster_id: bytes) -> str:
    return str(UUID(bytes=cluster_id))
