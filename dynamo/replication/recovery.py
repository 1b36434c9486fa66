"""How a recovering owner becomes whole (paper 4.9; DESIGN section 11, `adopted` and `transferred`).

    1. RECOVER to all members that can be reached, until each has this node's ring: from then on no coordinator counts a write that this
       node does not get. An answer waits for the commits under way at its sender, so that what was confirmed under the ring before is on its disk.
    2. RECOVER to those that this node needs (`standings`): what do you need yourself of these partitions?
    3. A *pull* of them, an exchange of trees like any other (`anti_entropy`), with a node that may own them no more.

A need is met when as many of its nodes as it counts were pulled from, and what those needed is met as well. Each step is repeated until it succeeds,
after pauses that double. A node that needs nothing takes the first step alone: its own ring is then known to be that of the others, too.
"""

from __future__ import annotations

from dynamo.errors import InvalidRequest, ProtocolError, Unavailable
from dynamo.model import messages as m
from dynamo.model.messages import Message
from dynamo.replication.anti_entropy import AntiEntropy, PendingExchange
from dynamo.replication.core import Core
from dynamo.replication.standings import Needs, Place, checked
from dynamo.replication.trees import Trees

_PAUSE_S = 0.02
_PAUSE_S_MAX = 2.0
_PLACES_PER_PULL = 64
_PULLS_MAX = 4
_NODES_PER_ANSWER = 1024


class Recovery:
    """Leads this node through the three steps under its present ring, and answers others in theirs."""

    __slots__ = ("_adopting", "_entropy", "_pause_s", "_pulled", "_pulling", "_trees", "_waiting", "next_at", "ring")

    def __init__(self, entropy: AntiEntropy, trees: Trees) -> None:
        self._entropy = entropy
        self._trees = trees
        self.ring: tuple[int, int] = (-1, 0)
        self._adopting: set[bytes] = set()  # members that are not known to have the ring
        self._waiting: int | None = None  # the request id of the question under way
        self._pulled: dict[Place, dict[bytes, Needs]] = {}  # whom everything was pulled from, and what they needed
        self._pulling: set[bytes] = set()
        self._pause_s = _PAUSE_S
        self.next_at: float | None = 0.0

    def step(self, core: Core) -> None:
        """Go on, if it is time."""
        if (core.ring_number, core.ring_hash) != self.ring:
            self._begin(core)
        if self.next_at is None or core.now < self.next_at:
            return
        self.next_at = core.now + self._pause_s
        self._pause_s = min(2 * self._pause_s, _PAUSE_S_MAX)
        if not core.adopted.whole:
            self._adopt(core)
        elif core.standings.needs:
            self._pull(core)
        else:
            self.next_at = None

    def _begin(self, core: Core) -> None:
        self.ring = core.ring_number, core.ring_hash
        members = core.ring.preference(0) if core.ring.size else ()
        self._adopting = {node for node in members if node != core.node_id}
        self._pulled, self._pause_s, self.next_at = {}, _PAUSE_S, core.now
        self._waiting = None

    # --- 1: all have the ring -----------------------------------------------------------------------------------------------------

    def _adopt(self, core: Core) -> None:
        """Ask those that are not known to have it; go on when there are none that can be reached."""
        asked = sorted(node for node in self._adopting if core.liveness.up(node))
        if not asked:
            self._pause_s, self.next_at = _PAUSE_S, core.now
            core.adopted.done(core)
            return
        question = PendingQuestion(self, asked, core.now)
        self._waiting = core.request_id()
        core.pending[self._waiting] = question
        core.deadlines.add(core.now, core.settings.suspect_after_s, self._waiting)
        for node in asked:
            core.send(node, (m.RECOVER, self._waiting, core.ring_number, core.ring_hash, 0, ()))

    def has_ring(self, core: Core, node: bytes) -> None:
        """A member has answered under the ring that this node asked about."""
        self._adopting.discard(node)
        if not any(core.liveness.up(other) for other in self._adopting):
            self.next_at = core.now

    # --- 2 and 3: pull ------------------------------------------------------------------------------------------------------------

    def _pull(self, core: Core) -> None:
        if not self._trees.built:
            return
        for peer, places in sorted(self._sources(core).items()):
            if len(self._pulling) >= _PULLS_MAX:
                break
            if peer in self._pulling or not core.liveness.up(peer):
                continue
            n = places[0][0]
            asked = [place for place in places if place[0] == n][:_PLACES_PER_PULL]
            self._pulling.add(peer)
            PendingPull(core, self, self._entropy, self._trees, peer, asked).begin(core)

    def _sources(self, core: Core) -> dict[bytes, list[Place]]:
        """Whom this node can pull from, and what."""
        found: dict[bytes, list[Place]] = {}
        for place, needs in sorted(core.standings.needs.items()):
            owners = core.ring.owners(place[1], place[0])
            pulled = self._pulled.get(place, {})
            sources = set(owners)
            if core.node_id in owners:
                sources = {node for each in (needs, *pulled.values()) for _, nodes in each for node in nodes}
            for node in sources - pulled.keys() - {core.node_id}:
                found.setdefault(node, []).append(place)
        return found

    def lost(self, core: Core, peer: bytes, place: Place, needs: Needs) -> bool:
        """Whether this node lost the place before it held it. That is nobody's need any more when no owner, of which the peer is one, needs anything."""
        owners = core.ring.owners(place[1], place[0])
        if core.node_id in owners:
            return False
        if not needs:
            self._pulled.setdefault(place, {})[peer] = ()
            if self._pulled[place].keys() >= set(owners):
                core.standings.forget(place)
                core.standing_changed()
        return True

    def pulled(self, core: Core, peer: bytes, ring: tuple[int, int], places: dict[Place, Needs], whole: bool) -> None:
        """A pull is over: everything that the peer holds of these places is here, or not."""
        self._pulling.discard(peer)
        if ring != self.ring:
            return  # what was asked under another ring says nothing of this one
        if whole and places:
            before = core.standings.version
            for place, needs in places.items():
                self._pulled.setdefault(place, {})[peer] = needs
                core.standings.pulled(place, self._pulled[place], core.node_id)
            if core.standings.version != before:
                core.standing_changed()
            self._pause_s = _PAUSE_S
            self.next_at = core.now

    # --- answering ----------------------------------------------------------------------------------------------------------------

    def answer(self, core: Core, source: bytes, message: Message) -> None:
        """Say whether this node has the ring, and what it needs itself of the partitions."""
        _, request_id, number, ring_hash, n, partitions = message[:6]
        if ring_hash != core.ring_hash:
            core.is_news(source, number)
            core.send(source, (m.RECOVER_REPLY, request_id, InvalidRequest.code, (), 0))
            return
        if partitions and not self._trees.built:
            core.send(source, (m.RECOVER_REPLY, request_id, Unavailable.code, (), 0))
            return
        needs, spoken, nodes = core.standings.needs, 0, 0
        recovering: list[tuple[int, Needs]] = []
        for partition in partitions:
            if (n, partition) in needs:
                nodes += sum(len(list_) for _, list_ in needs[n, partition])
                if recovering and nodes > _NODES_PER_ANSWER:
                    break
                recovering.append((partition, needs[n, partition]))
            spoken += 1
        held, reply = core.rows.held_last(), (m.RECOVER_REPLY, request_id, 0, tuple(recovering), spoken)
        if held is None:
            core.send(source, reply)
        else:
            held.messages.append((source, reply))


class PendingQuestion:
    """Step 1: the members that were asked for their ring."""

    __slots__ = ("_recovery", "_started", "_waiting")

    answered = True  # nobody waits for it: a node that stops does not

    def __init__(self, recovery: Recovery, asked: list[bytes], started: float) -> None:
        self._recovery = recovery
        self._waiting = set(asked)
        self._started = started

    def on_reply(self, core: Core, source: bytes, message: Message) -> bool:
        if message[0] == m.RECOVER_REPLY and source in self._waiting:
            self._waiting.discard(source)
            if not message[2]:
                self._recovery.has_ring(core, source)
        return not self._waiting

    def on_wake(self, core: Core, record: bytes | None) -> bool:
        return False

    def on_failure(self, core: Core, node: bytes, code: int) -> bool:
        self._waiting.discard(node)
        return not self._waiting

    def on_timer(self, core: Core) -> bool:
        core.note_silence(self._started, sorted(self._waiting))
        return True


class PendingPull(PendingExchange):
    """Steps 2 and 3 with one peer."""

    __slots__ = ("_asked_places", "_recovery", "_ring")

    def __init__(self, core: Core, recovery: Recovery, entropy: AntiEntropy, trees: Trees, peer: bytes, places: list[Place]) -> None:
        super().__init__(core, entropy, trees, peer, [])
        self._recovery = recovery
        self._asked_places: dict[Place, Needs] = dict.fromkeys(places, ())
        self._ring = core.ring_number, core.ring_hash

    def begin(self, core: Core) -> None:
        core.pending[self.request_id] = self
        core.count("pulls")
        core.deadlines.add(core.now, core.settings.suspect_after_s, self.request_id)
        n = next(iter(self._asked_places))[0]
        core.send(self.peer, (m.RECOVER, self.request_id, *self._ring, n, tuple(partition for _, partition in self._asked_places)))

    def on_reply(self, core: Core, source: bytes, message: Message) -> bool:
        if message[0] != m.RECOVER_REPLY or source != self.peer:
            return super().on_reply(core, source, message)
        self.spoken = core.now
        if message[2]:
            return self._end(core, agreed=False)
        if self._ring != self._recovery.ring:
            return self._end(core, agreed=False)
        try:
            needs = {partition: checked(value) for partition, value, *_ in message[3]}
        except ProtocolError:
            return self._end(core, agreed=False)
        asked = {place: needs.get(place[1], ()) for place in list(self._asked_places)[: message[4]]}
        self._asked_places = {place: needs for place, needs in asked.items() if not self._recovery.lost(core, self.peer, place, needs)}
        self._places = list(self._asked_places)
        return self._next_tree(core)

    def _end(self, core: Core, agreed: bool) -> bool:
        self._recovery.pulled(core, self.peer, self._ring, self._asked_places, agreed)
        core.count("pulls_done" if agreed else "pulls_unfinished")
        return True
