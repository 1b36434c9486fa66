"""Who may talk to this node, decided from HELLO. Sans-IO: messages in, messages or a typed refusal out.

Three things are refused beyond what the wire's shape demands: another cluster; a node that cannot prove it is of this one; and a node id
that is already in use, by this very process or by another live one. Two processes with one node id would mint under one identity, and a copied
data directory makes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dynamo.errors import ConfigError, ProtocolError
from dynamo.model.messages import ROLE_CLIENT, ROLE_PEER, Message, NodeId
from dynamo.wire.hello import Hello, check_cluster, check_hello, check_reply, cluster_text, message_of, sign

KnownLease = Callable[[NodeId], tuple[int, int]]
LiveNonce = Callable[[NodeId], bytes | None]


@dataclass(frozen=True, slots=True)
class Greeted:
    """A HELLO that was accepted: who is there, and what to answer (None where we asked)."""

    role: int
    node_id: NodeId
    nonce: bytes
    reply: Message | None = None
    known_actor: int = 0  # the answering node's knowledge of our own actor
    known_lease_end: int = 0
    capabilities: int = 0


class Handshake:
    """This node's side of every HELLO."""

    def __init__(self, mine: Hello, secret: bytes, known_lease: KnownLease, live_nonce: LiveNonce) -> None:
        """`mine`: this node's greeting as a peer, unsigned. `known_lease(node)`: (actor, lease end) the membership has of a node, or zeros.
        `live_nonce(node)`: the boot nonce behind an open connection to that node, None without one."""
        assert mine.role == ROLE_PEER
        self._mine = mine
        self._secret = secret
        self._known_lease = known_lease
        self._live_nonce = live_nonce
        self._hello = message_of(sign(mine, secret))

    def hello(self) -> Message:
        """What this node says when it dials a peer."""
        return self._hello

    def accept(self, message: Message) -> Greeted:
        """Judge the first message of an inbound connection. Raises ProtocolError or ConfigError: refuse with it."""
        hello = check_hello(message)
        if hello.role == ROLE_PEER:
            check_cluster(hello, self._mine, self._secret)
        elif hello.cluster_id not in (b"", self._mine.cluster_id):
            raise ConfigError(f"this is cluster {cluster_text(self._mine.cluster_id)}, not {cluster_text(hello.cluster_id)}")
        if hello.role != ROLE_CLIENT:  # (a joiner that is a double is told so by the answer to JOIN)
            self._refuse_doubles(hello, live=hello.role == ROLE_PEER)
        reply = self._mine._replace(role=hello.role)
        known = self._known_lease(hello.node_id) if hello.role == ROLE_PEER else (0, 0)
        answer = message_of(sign(reply, self._secret, hello.boot_nonce), known)
        return Greeted(hello.role, hello.node_id, hello.boot_nonce, answer, capabilities=hello.capabilities)

    def accept_reply(self, message: Message, expected: NodeId) -> Greeted:
        """Judge the answer to our HELLO from the node we dialled. Raises what it refused with, ProtocolError or ConfigError."""
        hello, known_actor, known_lease_end = check_reply(message)
        if hello.role != ROLE_PEER:
            raise ProtocolError(f"a HELLO as peer was answered for role {hello.role}")
        check_cluster(hello, self._mine, self._secret, self._mine.boot_nonce)
        if hello.node_id != expected:
            raise ConfigError(f"node {hello.node_id.hex()} answers at the address of {expected.hex()}")
        self._refuse_doubles(hello, live=True)
        return Greeted(ROLE_PEER, hello.node_id, hello.boot_nonce, None, known_actor, known_lease_end, hello.capabilities)

    def _refuse_doubles(self, hello: Hello, live: bool) -> None:
        """Raises ConfigError if the node id is this node's own, or, with `live`, that of another live process."""
        if hello.node_id == self._mine.node_id:
            raise ConfigError(f"node id {hello.node_id.hex()} is this node's own; a copied data directory is the same node")
        if live and self._live_nonce(hello.node_id) not in (None, hello.boot_nonce):
            raise ConfigError(f"another live process has node id {hello.node_id.hex()}; a copied data directory is the same node")
