"""A simulated client: the product's verbs, retries and outcomes (`dynamo.client`) over the simulated network, and a record of it all.

What the client was shown is written down beside every token it is given; which writes were refused, acknowledged or left in doubt is what the
product's own retry core says. A connection to a node breaks when the node dies; behind a cut link nothing breaks, there is just no answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dynamo.api.result import Result
from dynamo.client.core import Attempts, Nodes, Request, RetryPolicy
from dynamo.client.verbs import Verb
from dynamo.errors import ConnectionFailed, DynamoError, Timeout
from dynamo.model import messages as m
from dynamo.model.messages import Message
from dynamo.testing.history import ACKNOWLEDGED, Write
from dynamo.testing.recorder import OPERATION_BYTES as OPERATION_BYTES
from dynamo.testing.recorder import Recorder

if TYPE_CHECKING:
    from dynamo.testing.simulator import SimulatedCluster

_CONNECT_TIMEOUT_S = 1.0

Done = Callable[[Any, DynamoError | None], None]


class _Call:
    """One request under way: its attempts and what is being recorded of it."""

    __slots__ = ("address", "attempts", "number", "request", "sent_to", "tries", "verb", "writes")

    def __init__(self, verb: _Running, request: Request, attempts: Attempts, writes: list[Write]) -> None:
        self.verb = verb
        self.request = request
        self.attempts = attempts
        self.writes = writes
        self.tries = 0
        self.number = 0  # request id of the attempt under way
        self.address = ""
        self.sent_to: tuple[bytes, int] | None = None  # node and its boot, where a byte may have left


class _Running:
    """A verb under way."""

    __slots__ = ("deadline", "done", "generator")

    def __init__(self, generator: Verb[Any], deadline: float, done: Done) -> None:
        self.generator = generator
        self.deadline = deadline
        self.done = done


class SimulatedClient:
    """One client, with as many verbs under way as the workload likes."""

    def __init__(self, cluster: SimulatedCluster, number: int, policy: RetryPolicy) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.number = number
        self.name = f"c{number}"
        self.rng = self.world.stream(f"client/{number}")
        self.policy = policy
        self.failures: dict[str, int] = {}  # errors that reached the caller, by kind
        self._pinned: list[str] = []  # the few addresses this client was configured with; empty: all
        known = [node.address for node in cluster.nodes.values()]
        if self.rng.random() < cluster.pinned:
            self._pinned = self.rng.sample(known, min(len(known), self.rng.choice((1, 2, 3))))
        self._nodes = Nodes(self._pinned or known, policy, self.rng)
        self._requests = 0
        self._calls: dict[int, _Call] = {}
        self._connected: set[tuple[bytes, int]] = set()
        self._recorder = Recorder(cluster.history, self.name, cluster.required, lambda: self.world.now)
        cluster.clients[number] = self

    def learn(self) -> None:
        """Hear of new nodes, and that some are gone."""
        known = [node.address for node in self.cluster.nodes.values() if not node.removed]
        self._nodes = Nodes([address for address in self._pinned if address in known] or known, self.policy, self.rng)

    def run(self, verb: Verb[Any], timeout_s: float, done: Done) -> None:
        """Run a verb; `done(result, None)` or `done(None, error)` is called once."""
        self._step(_Running(verb, self.world.now + timeout_s, done), None, None)

    # --- verbs ------------------------------------------------------------------------------------------------------------------------

    def _step(self, running: _Running, reply: Message | None, error: DynamoError | None) -> None:
        try:
            if error is not None:
                request = running.generator.throw(error)
            else:
                request = next(running.generator) if reply is None else running.generator.send(reply)
        except StopIteration as finished:
            running.done(finished.value, None)
            return
        except DynamoError as failed:
            name = type(failed).__name__
            self.failures[name] = self.failures.get(name, 0) + 1
            running.done(None, failed)
            return
        order = self._nodes.order(self.world.now)
        call = _Call(running, request, Attempts(request, order, self.policy, running.deadline), self._recorder.begin(request))
        self._attempt(call)

    def _attempt(self, call: _Call) -> None:
        try:
            attempt = call.attempts.next(self.world.now)
        except DynamoError as error:
            self._fail(call, error)
            return
        self._requests += 1
        call.number, call.address, call.sent_to = self._requests, attempt.address, None
        call.tries += 1
        self._calls[call.number] = call
        node = self.cluster.addresses[attempt.address]
        message = call.request.message(call.number, attempt.time_ms)
        passes = self.cluster.network.passes(self.number, node.node_id) or self.world.healed
        connection = (node.node_id, node.boots)
        if connection not in self._connected:
            if node.replica is None:
                if passes:  # the machine is there and says that nobody listens
                    self.world.after(0.001, self._broken, call.number, False)
                else:
                    self.world.after(min(attempt.wait_s, _CONNECT_TIMEOUT_S), self._timed_out, call.number, False)
                return
            if not passes:
                self.world.after(min(attempt.wait_s, _CONNECT_TIMEOUT_S), self._timed_out, call.number, False)
                return
            self._connected.add(connection)
        elif node.replica is None:
            self._connected.discard(connection)
            self.world.after(0.001, self._broken, call.number, True)
            return
        call.sent_to = connection
        if call.request.kind in (m.GET, m.GET_MANY):
            bucket, keys = call.request.fields[:2]
            names = keys if call.request.kind == m.GET_MANY else (keys,)
            self.cluster.requests[self.number, call.number] = [(bucket, key, 0, "") for key in names]
        elif call.writes:
            self.cluster.requests[self.number, call.number] = [(w.bucket.encode(), self.cluster.key_bytes(w.key), w.required, w.operation) for w in call.writes]
        self.world.after(attempt.wait_s, self._timed_out, call.number, True)
        self.cluster.network.carry(self.number, node.node_id, True, node.arrive, node.boots, self.number, message)

    # --- what comes of an attempt -----------------------------------------------------------------------------------------------------

    def receive(self, node_id: bytes, message: Message) -> None:
        """A reply arrives; a late one finds nobody waiting."""
        self.world.fold(self.number, message[0] + (message[1] << 8))
        call = self._calls.pop(message[1], None)
        if self.world.log is not None:
            late = "" if call is not None else " (late)"
            self.world.log.append(f"{self.world.now:11.6f} {self.cluster.name_of(node_id)} -> {self.name} {self.cluster.describe(message)}{late}")
        if call is None:
            return
        try:
            reply = call.attempts.answered(call.address, message)
        except DynamoError as error:
            self._fail(call, error)
            return
        if reply is None:
            self._nodes.failed(call.address, self.world.now)
            self._attempt(call)
            return
        self._nodes.succeeded(call.address)
        self._record(call, reply)
        self._step(call.verb, reply, None)

    def node_died(self, node_id: bytes, boot: int) -> None:
        """A node is gone; what was under way there fails, as far as this client can hear of it."""
        self._connected.discard((node_id, boot))
        if self.cluster.network.passes(node_id, self.number):
            for number in [number for number, call in self._calls.items() if call.sent_to == (node_id, boot)]:
                self.world.after(0.001, self._broken, number, True)

    def _broken(self, number: int, maybe_sent: bool) -> None:
        self._attempt_failed(number, ConnectionFailed("the connection broke" if maybe_sent else "nobody listens there", maybe_applied=maybe_sent))

    def _timed_out(self, number: int, maybe_sent: bool) -> None:
        self._attempt_failed(number, Timeout("no answer in time", maybe_applied=maybe_sent))

    def _attempt_failed(self, number: int, error: DynamoError) -> None:
        call = self._calls.pop(number, None)
        if call is None:
            return
        self._nodes.failed(call.address, self.world.now)
        try:
            call.attempts.failed(call.address, error)
        except DynamoError as final:
            self._fail(call, final)
        else:
            self._attempt(call)

    # --- the record -------------------------------------------------------------------------------------------------------------------

    def _fail(self, call: _Call, error: DynamoError) -> None:
        self._recorder.failed(call.writes, error, call.tries)
        self._log(call)
        self._step(call.verb, None, error)

    def _record(self, call: _Call, reply: Message) -> None:
        self.cluster.reads += self._recorder.answered(call.request, call.writes, reply, call.tries)
        self.cluster.acknowledged += sum(write.outcome == ACKNOWLEDGED for write in call.writes)
        self._log(call)

    def _log(self, call: _Call) -> None:
        if self.world.log is not None:
            for write in call.writes:
                self.world.log.append(f"{self.world.now:11.6f} {self.name} {write.operation} of {write.bucket}/{write.key}: {write.outcome}")


def payloads(result: Result) -> list[bytes]:
    """The values of a read without the operation ids in front."""
    return [value[OPERATION_BYTES:] for value in result.values]
