"""THE reactor: one Trio task that owns every data socket through one nested epoll, and steps the replica.

A step: poll (at most 64 events), receive from each ready socket, decode whole batches, `replica.receive`, `tick` when due, then what
`take_ready` asks for in its order: messages, the commit group, messages after the commit; then one send per connection. After two milliseconds it
takes in no new events and gives the replica no more of the batch: timers and sending have their turn, and the next step begins with the rest, before
it looks at any socket. So nothing piles up between the sockets and the replica, and nobody is passed over. It polls again up to four times or one
millisecond before it returns to Trio: beside it run the slow tasks of this process.

No Trio object per request or connection exists (each costs as much as the request's whole work); the price is that all of this is
plain, synchronous code in which nothing may block. Commits that wait for a disk are on the commit thread, look-ups of names in a task,
sleeping in the ticker; all three come back through the wake-up descriptor in the poll set.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

import trio

from dynamo._core import histogram
from dynamo.errors import ConfigError, DynamoError
from dynamo.model.messages import ROLE_PEER, NodeId
from dynamo.net.admission import Admission, busy
from dynamo.net.commits import Commits
from dynamo.net.connection import Connection, State
from dynamo.net.doors import Doors
from dynamo.net.driven import Batch, ReplicaLike
from dynamo.net.handshake import Greeted, Handshake, KnownLease
from dynamo.net.inbox import ADMIN, Admin, Inbox, answer_admin
from dynamo.net.limits import Limits
from dynamo.net.links import Links
from dynamo.net.listener import Listener
from dynamo.net.local import Deliver, LocalPort, LocalPorts
from dynamo.net.peers import Peers
from dynamo.net.polling import HUNG_UP, READ, WRITE, make_poller
from dynamo.net.pump import Pump
from dynamo.net.resolver import Resolver
from dynamo.net.sockets import tune_peer
from dynamo.net.ticker import Ticker
from dynamo.net.timers import Action, Timers
from dynamo.wire.frames import encode
from dynamo.wire.hello import Hello

if TYPE_CHECKING:
    from random import Random

_log = logging.getLogger("dynamo.net")

EVENTS_MAX = 64
POLLS_MAX = 4
POLLING_S = 0.001
STEP_S = 0.002
BATCH_MAX = 256  # messages at which a step takes in no more
_LATENESS_BITS = 5  # off by at most 3 %
_STRANGERS_MAX = 100
SLICE = 16  # messages given to the replica between two looks at the clock


class Reactor:
    """Build it, `await run(nursery)` in a task, `await drain(...)`, cancel the task, `close()`. Everything but `run` and `drain` is synchronous
    and belongs to the Trio thread; `wake` alone may be called from any thread."""

    def __init__(
        self,
        replica: ReplicaLike,
        *,
        commits: Callable[[Callable[[], None]], Commits],
        refresh: Callable[[], None],
        listener: socket.socket,
        greeting: Hello,
        secret: bytes,
        known_lease: KnownLease,
        address_of: Callable[[NodeId], str | None],
        admin: Admin,
        idle: Callable[[], bool],
        lease_heard: Callable[[int, int], None],
        follow: Callable[[float], None],
        random: Random,
        limits: Limits | None = None,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        """`commits(notify)` builds what applies groups and calls `notify` when one is done; `refresh` makes the replica's reads see it.
        `greeting` and `secret`: see `Handshake`. `address_of(node)`: where to dial it. `admin` answers the `ADMIN` messages. `idle()`: whether
        the replica owes no client an answer. `lease_heard(actor, lease end)`: what a peer knows of this node. `follow(now)` is called in every
        step, after the replica has taken in what came: to act on a changed membership."""
        self.limits = limits or Limits()
        self.replica = replica
        self.timers = Timers()
        poll_set, self._waker = make_poller()
        poll_set.register(self._waker.descriptor, READ)
        self.wake = self._waker.wake  # have a step run soon; from any thread
        self.links = Links(self.limits, self.timers, poll_set)
        self.listener = Listener(listener, self.links.poll_set, self.timers)
        self.doors = Doors(self.links, self.limits, self.timers, self.listener, self.call_soon)
        self.peers = Peers(self.doors, self.timers, self.limits, address_of, random, self._note_loss)
        handshake = Handshake(greeting, secret, known_lease, self.peers.live_nonce)
        self.doors.hello = encode(handshake.hello())
        self._admission = Admission(self.limits.requests_in_flight_max)
        self._inbox = Inbox(self.links, handshake, self.limits, self._admission, admin, self._opened, self._refused, self._strayed)
        self._admin = admin
        self._idle = idle
        self._lease_heard = lease_heard
        self._follow = follow
        self._clock = clock
        self._pump = Pump(replica, commits(self.wake), refresh, self.links, self.peers, self._admission, self.limits.frame_bytes_max, self.wake)
        self._ticker = Ticker(self.wake)
        self._local = LocalPorts(self._pump.clients, self.wake)
        self._called: list[Action] = []
        self._lost: list[NodeId] = []
        self._passed_over: list[int] = []
        self._drained: trio.Event | None = None
        self.refusals: dict[NodeId, DynamoError] = {}  # why what we dialled was not that peer, until it is
        self._strangers: dict[str, str] = {}  # what answered at addresses that were asked, and was no peer
        self._steps = self._messages_in = 0
        self._untaken: Batch = []  # what the last step had no time to give to the replica
        self._lateness = histogram.Histogram(_LATENESS_BITS)  # of ticks, in microseconds

    # --- the task -----------------------------------------------------------------------------------------------------------------

    @trio.lowlevel.enable_ki_protection
    async def run(self, nursery: trio.Nursery) -> None:
        """Step for ever. Protected from KeyboardInterrupt: in mid-step it would break an invariant; Trio raises it in another task instead."""
        if self._clock is trio.current_time:
            self._clock = trio.lowlevel.current_clock().current_time  # the same, without the way there; a step looks at it five times
        self.doors.resolver = Resolver(nursery)
        nursery.start_soon(self._ticker.run)
        self.links.poll_set.start(nursery)
        self.links.look_for_stalled(self._clock())
        self.wake()
        while True:
            await self.links.poll_set.wait()
            self._step()

    def _step(self) -> None:
        """Poll and process, a few times over while there is something."""
        poll, clock = self.links.poll_set.poll, self._clock
        now = began = clock()
        for _ in range(POLLS_MAX):
            events = [] if self._untaken else poll(EVENTS_MAX)
            if not events and not self._untaken:
                break
            self._process(events, now)
            now = clock()
            if now - began > POLLING_S:
                break
        if self._untaken:
            self.wake()
        due = self.replica.next_deadline
        self._ticker.by(min(self.timers.next, self._pump.next_deadline, inf if due is None else due))

    def _process(self, events: list[tuple[int, int]], now: float) -> None:
        """One batch of events, or what the last one left: everything that was taken of it is committed or under way, and sent."""
        self._steps += 1
        batch, self._untaken = self._untaken or self._take_waiting(now), []
        accepting = False
        if self._passed_over:  # those the last batch had no time for come first, in their order, or the end of a full list would starve
            order = {descriptor: i for i, descriptor in enumerate(self._passed_over)}
            events.sort(key=lambda event: order.get(event[0], len(order)))
            self._passed_over = []
        links, readable, late = self.links.by_descriptor, self._inbox.readable, now + STEP_S
        for i, (descriptor, mask) in enumerate(events):
            connection = links.get(descriptor)
            if connection is None:
                if descriptor == self._waker.descriptor:
                    self._waker.clear()
                elif descriptor == self.listener.descriptor:
                    accepting = True
                continue
            if mask & WRITE:
                self._writable(connection)
            if mask & READ:
                readable(connection, batch, now)
            elif mask & HUNG_UP:  # reported whatever we watch for; left alone it would be for ever
                self.links.finish(connection, "hung up")
            if len(batch) >= BATCH_MAX or self._clock() > late:
                self._passed_over = [later for later, _ in events[i + 1 :]]
                break
        if batch:
            self._give(batch, late)
        self._settle(self._clock())
        if accepting:
            self.doors.accept(now)

    def _give(self, batch: Batch, late: float) -> None:
        """Have the replica take the batch, a slice at least; when it is late, the rest waits for the next step."""
        taken = 0
        while taken < len(batch):
            now = self._clock()
            if taken and now > late:
                break
            self.replica.receive(batch[taken : taken + SLICE], now)
            taken += SLICE
        self._untaken = batch[taken:]
        self._messages_in += len(batch) - len(self._untaken)

    def _take_waiting(self, now: float) -> Batch:
        """The batch begins with what waited: requests for which a client's window has room again, and those from within the process."""
        batch: Batch = []
        resumable, self.links.resumable = self.links.resumable, []
        for connection in resumable:
            if connection.state is State.OPEN and connection.backlog and not self.links.draining:
                self._inbox.resume(connection, batch, now)
        for source, message in self._local.collect():
            assert type(source) is int
            if message[0] in ADMIN:
                self._local.answer(source, answer_admin(self._admin, message))
            elif self._admission.enter(0):
                batch.append((source, message))
            else:
                self._admission.refused += 1
                self._local.answer(source, busy(message))
        return batch

    def _settle(self, now: float) -> None:
        """Do what is due and what the replica asks for, until nothing more follows from it."""
        called, self._called = self._called, []
        for action in called:
            action(now)
        self.timers.run(now)
        due = self.replica.next_deadline
        if due is not None and now >= due:
            if due > 0.0:  # which stands for as soon as may be, after a start
                self._lateness.record(int((now - due) * 1e6))
            self.replica.tick(now)
        self._follow(now)
        while True:
            self._pump.report(now)
            self._pump.run(now)
            self.links.flush()
            for connection in self.links.close_finished():
                self._closed(connection, now)
            if not self._lost:
                break
            lost, self._lost = self._lost, []
            for node_id in lost:
                if not self.peers.connected(node_id):
                    self.replica.peer_down(node_id, now)
        if self.links.resumable:
            self.wake()
        if self._drained is not None and self._done():
            self._drained.set()

    def _done(self) -> bool:
        """Whether everything that was taken is answered, committed and sent."""
        waiting = bool(self._untaken) or self._local.asked or self._pump.in_flight is not None
        return not waiting and self._idle() and not self.links.unsent()

    # --- connections that come and go ---------------------------------------------------------------------------------------------

    def _writable(self, connection: Connection) -> None:
        if connection.state is State.CONNECTING:
            self.doors.connected(connection)
        else:
            self.links.writable(connection)

    def _opened(self, connection: Connection, greeted: Greeted, now: float) -> None:
        if greeted.role != ROLE_PEER:
            self._pump.clients[connection.number] = connection
            return
        self.refusals.pop(greeted.node_id, None)
        if connection.outbound:
            if greeted.known_actor:
                self._lease_heard(greeted.known_actor, greeted.known_lease_end)
        else:
            tune_peer(connection.sock)
        if self.peers.opened(connection):
            _log.info("node %s is connected", greeted.node_id.hex())
            self.replica.peer_up(greeted.node_id, now)

    def _closed(self, connection: Connection, now: float) -> None:
        self._pump.clients.pop(connection.number, None)
        if connection.node_id:
            if connection in self.peers.links_of(connection.node_id):
                _log.info("lost a connection to node %s: %s", connection.node_id.hex(), connection.over)
            self.peers.closed(connection, now)

    def _note_loss(self, node_id: NodeId, now: float) -> None:
        """The last link to a peer broke, or an attempt failed. The replica is told at the end of the step: it may be what asked for the link."""
        self._lost.append(node_id)

    def _strayed(self, connection: Connection, node_id: NodeId, now: float) -> None:
        if connection.node_id:
            self._refused(connection, ConfigError(f"node {node_id.hex()} answers at the address of {connection.node_id.hex()}, which is out of date"))
            self.peers.strayed(connection, now)

    def _refused(self, connection: Connection, error: DynamoError) -> None:
        node_id = connection.node_id
        if not node_id:
            where = connection.far_end()
            if len(self._strangers) >= _STRANGERS_MAX:
                self._strangers.clear()
            if self._strangers.get(where) != str(error):
                _log.warning("no node to join at %s: %s", where, error)
            self._strangers[where] = str(error)
            return
        if str(self.refusals.get(node_id)) != str(error):
            _log.warning("node %s cannot be a peer: %s", node_id.hex(), error)
        self.refusals[node_id] = error

    def send(self, messages: Batch, now: float) -> None:
        """Send messages of the driver's own, from within a step."""
        self._pump.send(messages, now)

    def call_soon(self, action: Action) -> None:
        """Call `action(now)` in the next step. From the Trio thread."""
        self._called.append(action)
        self.wake()

    def open_local(self, deliver: Deliver) -> LocalPort:
        """A client within the process; see `LocalPort`."""
        return self._local.open(next(self.links.numbers), deliver)

    @property
    def counters(self) -> dict[str, int]:
        """What has happened since the start, by name."""
        return {
            "steps": self._steps,
            "messages_in": self._messages_in,
            **self._pump.counters,
            "requests_in_flight": self._admission.in_flight,
            "requests_refused_busy": self._admission.refused,
            "ticks": self._lateness.count,
            "tick_late_us_p99": self._lateness.quantile(0.99) if self._lateness.count else 0,
            "tick_late_us_max": self._lateness.quantile(1.0) if self._lateness.count else 0,
            "connections": len(self.links.by_descriptor),
            "connections_accepted": self.doors.accepted,
            "connections_refused_full": self.doors.refused_full,
            "connections_cut_off": self.links.cut_off,
            "protocol_errors": self._inbox.protocol_errors,
            "peer_messages_dropped": self.peers.dropped,
            "accept_pauses": self.listener.pauses,
        }

    # --- the end ------------------------------------------------------------------------------------------------------------------

    async def drain(self, timeout_s: float) -> None:
        """Accept nobody, read no more requests of clients, and wait until those taken are answered and everything is committed and sent; no longer
        than the time given. Peers are served meanwhile."""
        self._drained = trio.Event()
        self.listener.close()
        self._local.close()
        self.links.draining = True
        self.links.watch_all()
        self.wake()
        with trio.move_on_after(timeout_s):
            await self._drained.wait()

    def close(self) -> bool:
        """Close everything, once `run` has ended; a commit under way is waited for. Returns whether every write taken is on disk."""
        self.listener.close()
        self._local.close()
        clean = self._pump.close(self._clock())
        self.links.close_all()
        self._waker.close()
        return clean
