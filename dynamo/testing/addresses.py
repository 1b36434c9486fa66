"""A world of its own beside the one of the data: who is behind an address, and whether nodes find each other. Members grow in number, restart, are wiped,
swap their addresses, and come back all at once where nobody knows them; a founder comes back empty and founds a second cluster.

What runs is the product's: `Peers`, `Handshake`, `Entry`, `Seeking`, `Gossip`, `Spread` and the answer to JOIN, over addresses and connections in virtual
time. Replicas and rows are not needed for it and are not here. It is drawn from a stream of its own, so that a seed's other history stays as it is.

fatal   a node ended for good although no second process had its id
ghost   an id is in a membership that never served: it came in before it was let in, or was let in and ended
apart   once all is quiet, two live members have no connection, or do not know each other's address
mixed   a member of one cluster in the membership of another
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from dynamo.errors import ConfigError, ConnectionFailed, DynamoError
from dynamo.membership.gossip import Gossip
from dynamo.membership.joining import Entry, Seeking, held, hints
from dynamo.membership.members import Membership
from dynamo.membership.ring import Ring
from dynamo.model import messages as m
from dynamo.model.cluster import Cluster
from dynamo.model.member import LEFT, NORMAL, Member
from dynamo.model.messages import Message, NodeId
from dynamo.net import startup
from dynamo.net.admin import Desk
from dynamo.net.connection import State
from dynamo.net.handshake import Handshake
from dynamo.net.limits import Limits
from dynamo.net.peers import Peers
from dynamo.net.sockets import SocketAddress
from dynamo.net.spread import Spread
from dynamo.net.startup import CALL_TIMEOUT_S, DOUBLE_TIMEOUT_S, ROUND_PAUSE_S
from dynamo.net.timers import Timers
from dynamo.testing.checkers import Violation
from dynamo.testing.events import World
from dynamo.wire.documents import decode_document
from dynamo.wire.frames import FrameDecoder, encode
from dynamo.wire.hello import TREE_SHAPE, Hello

TRACE = "address"  # in every line of the trace that is of this world
_TICK_S = 0.25
_DELAY_S = 0.002
QUIET_S = 120.0  # in which all must have found each other: a few of the longest pauses
_JOIN_TIMEOUT_S = 20.0


@dataclass(slots=True, eq=False)
class Site:
    """A data directory, and the command line its node is started with."""

    name: str
    address: str
    join: tuple[str, ...] = ()
    stored: tuple[NodeId, Cluster, bytes] | None = None
    process: Process | None = None
    boots: int = 0
    lost: bool = False  # its operator has given it up


class End:
    """One end of a connection, as `Peers` sees one."""

    def __init__(self, process: Process, node_id: NodeId, *, outbound: bool) -> None:
        self.process = process
        self.node_id = node_id
        self.outbound = outbound
        self.nonce = b""
        self.over = ""
        self.state = State.CONNECTING if outbound else State.OPEN
        self.far: End | None = None


class Process:
    """One run of a node: from a membership that knows this node to the end."""

    def __init__(self, world: AddressWorld, site: Site, node_id: NodeId, cluster: Cluster, membership: Membership) -> None:
        self.world = world
        self.site = site
        self.cluster = cluster
        self.membership = membership
        self.refusals: dict[NodeId, DynamoError] = {}
        self.ends: set[End] = set()
        self.alive = True
        self.ready = False
        rng = world.events.stream(f"process/{site.name}/{site.boots}")
        asked = hints(site.join, membership)
        membership.start(site.name, site.address, 1, 1, 1, status=NORMAL)
        site.stored = node_id, cluster, membership.encode()
        self.timers = Timers()
        self.peers = Peers(self, self.timers, Limits(), self._address_of, rng, lambda node, now: None)  # type: ignore[arg-type]
        mine = Hello(cluster_id=cluster.cluster_id, partitions=cluster.partitions, tree_shape=TREE_SHAPE, role=m.ROLE_PEER, node_id=node_id,
                     incarnation=membership.local.incarnation, boot_nonce=rng.randbytes(16), address=site.address)  # fmt: skip
        self.handshake = Handshake(mine, cluster.secret, lambda node: (0, 0), self.peers.live_nonce)
        self.gossip = Gossip(membership, rng)
        self.spread = Spread(membership)
        self.seeking = Seeking(asked, rng)
        self.desk = Desk(cluster, membership, lambda: Ring.of(membership, cluster), self.peers.connected, self.peers.connected, dict, lambda _: 0,
                         lambda *text: None)  # fmt: skip
        self.timers.at(0.0, self._seek)
        world.note("boot", site.name, site.address, node_id.hex(), "join", *asked)
        world.events.after(0.0, self._tick)
        world.events.after(DOUBLE_TIMEOUT_S, self._known)

    # --- what `Assembly` does -----------------------------------------------------------------------------------------------------

    def _address_of(self, node: NodeId) -> str | None:
        member = self.membership.members.get(node)
        if member is None or member.status == LEFT:
            return None
        return "" if held(self.membership, node, self.peers.connected) else member.address

    def _seek(self, now: float) -> None:
        look = self.seeking.look(now, self.membership, self.peers.connected, lambda node: str(self.refusals.get(node, "")))
        for address in look.ask:
            self.peers.ask(address, now)
        self.timers.at(self.seeking.next_deadline, self._seek)

    def _tick(self) -> None:
        if not self.alive:
            return
        now = self.world.events.now
        self.timers.run(now)
        self._send(self.gossip.tick(now))
        self.world.events.after(_TICK_S, self._tick)

    def _send(self, messages: list[tuple[NodeId, Message]]) -> None:
        now = self.world.events.now
        for node, message in messages:
            self.peers.send(node, encode(message), now)
        if self.spread.stale:
            others, news = self.spread.look()
            for node in others:
                self.peers.want(node, now)
            for destination, message in news:
                assert type(destination) is bytes
                self.peers.send(destination, encode(message), now)
            assert self.site.stored is not None
            self.site.stored = *self.site.stored[:2], self.membership.encode()

    def _known(self) -> None:
        """`startup.be_known` at the end of its time: only one refusal ends a node."""
        if not self.alive:
            return
        taken = [error for error in self.refusals.values() if startup.is_fatal(error)]
        if taken:
            self.world.fault("fatal", f"{self.site.name} at {self.site.address}: {taken[0]}")
            self.stop()
        else:
            self.ready = True
            self.world.served.add(self.membership.node_id)

    def stop(self) -> None:
        """Die."""
        self.alive = False
        self.world.note("stop", self.site.name)
        self.site.process = None
        self.world.listening.pop(self.site.address, None)
        for end in list(self.ends):
            self.world.events.after(_DELAY_S, close, end.far)

    # --- `Dialler` ----------------------------------------------------------------------------------------------------------------

    def dial(self, node_id: NodeId, target: SocketAddress) -> End:
        end = End(self, node_id, outbound=True)
        self.world.events.after(_DELAY_S, self._arrive, end, "{}:{}".format(*target[1]))
        return end

    def look_up(self, host: str, port: int, found: Callable[[list[SocketAddress], float], None]) -> None:
        raise AssertionError("there are no names here")

    def give_up(self, end: End, reason: str) -> None:
        self.world.events.after(_DELAY_S, close, end.far)
        close(end)

    def push(self, end: End, frame: bytes) -> None:
        self.world.events.after(_DELAY_S, deliver, end.far, frame)

    def _arrive(self, end: End, address: str) -> None:
        """The call reaches whoever is at the address now."""
        there = self.world.listening.get(address)
        if not self.alive or there is None or end.over:
            close(end)
            return
        try:
            greeted = there.handshake.accept(self.handshake.hello())
        except DynamoError as error:
            self.world.events.after(_DELAY_S, self._answered, end, m.error_message(0, error.code, str(error), False))
            return
        far = end.far = End(there, greeted.node_id, outbound=False)
        far.far, far.nonce = end, greeted.nonce
        there.ends.add(far)
        there.peers.opened(far)  # type: ignore[arg-type]
        assert greeted.reply is not None
        self.world.events.after(_DELAY_S, self._answered, end, greeted.reply)

    def _answered(self, end: End, reply: Message) -> None:
        """What `Inbox` and `Reactor` do with the answer to HELLO."""
        if not self.alive or end.over:
            return
        try:
            greeted = self.handshake.accept_reply(reply, end.node_id)
        except DynamoError as error:
            if end.node_id:
                self.refusals[end.node_id] = error
            close(end.far)
            close(end)
            return
        if greeted.node_id != end.node_id and end.node_id:
            self.refusals[end.node_id] = ConfigError(f"node {greeted.node_id.hex()} answers there")
            self.peers.strayed(end, self.world.events.now)  # type: ignore[arg-type]
        end.node_id, end.nonce, end.state = greeted.node_id, greeted.nonce, State.OPEN
        self.refusals.pop(end.node_id, None)
        self.ends.add(end)
        self.peers.opened(end)  # type: ignore[arg-type]

    def receive(self, source: NodeId, message: Message) -> None:
        self._send(self.gossip.receive(source, message, self.world.events.now))


def close(end: End | None) -> None:
    """That end notices that the connection is no more."""
    if end is None or end.over:
        return
    end.over, end.state = "closed", State.CLOSED
    end.process.ends.discard(end)
    if end.process.alive and end.node_id:
        end.process.peers.closed(end, end.process.world.events.now)  # type: ignore[arg-type]


def deliver(end: End | None, frame: bytes) -> None:
    """A frame arrives at that end."""
    if end is not None and not end.over and end.process.alive:
        for message in FrameDecoder().feed(frame):
            end.process.receive(end.node_id, message)


@dataclass(slots=True)
class AddressWorld:
    """All sites of one seed. `counts`: what was done, by name."""

    events: World
    rng: Random
    sites: list[Site] = field(default_factory=list)
    listening: dict[str, Process] = field(default_factory=dict)
    served: set[NodeId] = field(default_factory=set)
    homes: dict[NodeId, bytes] = field(default_factory=dict)  # node id -> its cluster
    found: list[Violation] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    ports: int = 7000

    def site(self, join: tuple[str, ...] = ()) -> Site:
        """A new one at an address of its own."""
        made = Site(f"s{len(self.sites)}", self.address(), join)
        self.sites.append(made)
        return made

    def address(self) -> str:
        """One that nobody ever had."""
        self.ports += 1
        return f"127.0.0.1:{self.ports}"

    # --- starting, as `Node` does ---------------------------------------------------------------------------------------------------

    def start(self, site: Site) -> None:
        """Start a site's node: a returning one, a founder, or a newcomer, which asks first."""
        if site.process is not None or site.lost:
            return
        site.boots += 1
        if site.stored is not None:
            node_id, cluster, known = site.stored
            self._run(site, node_id, cluster, known)
        elif site.join:
            self._ask(site, self.rng.randbytes(16), Entry(site.join, _JOIN_TIMEOUT_S, DOUBLE_TIMEOUT_S), self.events.now, site.boots)
        else:
            self._run(site, self.rng.randbytes(16), Cluster(self.rng.randbytes(16), self.rng.randbytes(32), 1, 16), b"")

    def _run(self, site: Site, node_id: NodeId, cluster: Cluster, known: bytes, members: list[Member] | None = None) -> None:
        membership = Membership(node_id)
        if known:
            membership.load(known)
        membership.merge_all(members or [])
        self.homes[node_id] = cluster.cluster_id
        site.process = self.listening[site.address] = Process(self, site, node_id, cluster, membership)

    def _ask(self, site: Site, node_id: NodeId, entry: Entry, began: float, boot: int) -> None:
        """A round of `startup.join`."""
        if site.boots != boot or site.process is not None:
            return
        try:
            for address in entry.addresses:
                there = self.listening.get(address)
                try:
                    if there is None:
                        raise ConnectionFailed(f"{address}: nobody is there")
                    reply = there.desk.answer((m.JOIN, 1, node_id, site.name, site.address))
                    entry.accepted(address, Cluster.from_document(decode_document(reply[2])), [Member.from_tuple(member) for member in reply[3]])
                except DynamoError as error:
                    entry.failed(address, error)
            accepted = entry.verdict(self.events.now - began)
        except ConfigError as error:
            self.note("refused", site.name, error)
            site.lost = True
            return
        except ConnectionFailed:
            self.events.after(1.0, self.start, site)  # a supervisor starts it again
            return
        if accepted is None:
            self.events.after(ROUND_PAUSE_S, self._ask, site, node_id, entry, began, boot)
        else:
            self.events.after(self.rng.uniform(0, CALL_TIMEOUT_S), self._let_in, site, node_id, accepted, boot)

    def _let_in(self, site: Site, node_id: NodeId, accepted: tuple[Cluster, list[Member]], boot: int) -> None:
        if site.boots == boot and site.process is None:
            self._run(site, node_id, accepted[0], b"", accepted[1])

    def stop(self, site: Site) -> None:
        """End a site's node, or its attempt to come in."""
        site.boots += 1
        if site.process is not None:
            site.process.stop()

    def up(self) -> list[Site]:
        """The sites whose node runs."""
        return [site for site in self.sites if site.process is not None and not site.lost]

    def note(self, *what: object) -> None:
        """A line of the trace."""
        self.events.note(TRACE, *what)

    def fault(self, checker: str, text: str) -> None:
        """Something is wrong."""
        self.note(checker, text)
        self.found.append(Violation(checker, text, TRACE, self.events.now))

    # --- the verdict ----------------------------------------------------------------------------------------------------------------

    def judge(self) -> list[Violation]:
        """What is wrong now that all has been quiet for long."""
        live = [site.process for site in self.up() if site.process is not None]
        for one in live:
            for node, member in one.membership.members.items():
                if node not in self.served:
                    self.fault("ghost", f"{one.site.name} lists {member.name} {node.hex()}, which never served")
                if self.homes.get(node) != one.cluster.cluster_id:
                    self.fault("mixed", f"{one.site.name} lists {member.name} of another cluster")
            for other in live:
                node = other.membership.node_id
                if other is one or other.cluster.cluster_id != one.cluster.cluster_id:
                    continue
                known = one.membership.members.get(node)
                if known is None or known.address != other.site.address or not one.peers.connected(node):
                    self.fault("apart", f"{one.site.name} does not know or reach {other.site.name} at {other.site.address}")
        return self.found
