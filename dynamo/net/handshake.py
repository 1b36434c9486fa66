"""Who may talk to this node, decided from HELLO. Sans-IO: messages in, messages or a typed refusal out.

Three things are refused beyond what the wire's shape demands: another cluster; a node that cannot prove it is of this one; and a node id
that is already in use by another live process. Two processes with one node id would mint under one identity, and a copied data directory makes
them. Only that is the fault of the node that is turned away (`NodeIdTaken`). Where another member answers than the one that was dialled, or this
very process does, an address is out of date, and the one who answers is taken for who it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dynamo.errors import ConfigError, InvalidRequest, ProtocolError
from dynamo.membership.joining import DOUBLE, ITSELF, who_answers
from dynamo.model.messages import ROLE_CLIENT, ROLE_PEER, Message, NodeId
from dynamo.wire.hello import Hello, check_cluster, check_hello, check_reply, cluster_text, message_of, sign

KnownLease = Callable[[NodeId], tuple[int, int]]
LiveNonce = Callable[[NodeId], bytes | None]

_COPIED = "a copied data directory is the same node"


class NodeIdTaken(ConfigError):
    """Another live process has the node id of the one that is turned away, which hears of it as InvalidRequest."""

    code = InvalidRequest.code


@dataclass(frozen=True, slots=True)
class Greeted:
    """A HELLO that was accepted: who is there, and what to answer (None where we asked). It may be another node than the one that was dialled."""

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
        if hello.role == ROLE_PEER:
            self._refuse_itself(hello)
            if self._is_double(hello):
                raise NodeIdTaken(f"another live process has node id {hello.node_id.hex()}; {_COPIED}")
        elif hello.role != ROLE_CLIENT and hello.node_id == self._mine.node_id:  # (other joiners that are doubles hear so from the answer to JOIN)
            raise ConfigError(f"node id {hello.node_id.hex()} is this node's own; {_COPIED}")
        reply = self._mine._replace(role=hello.role)
        known = self._known_lease(hello.node_id) if hello.role == ROLE_PEER else (0, 0)
        answer = message_of(sign(reply, self._secret, hello.boot_nonce), known)
        return Greeted(hello.role, hello.node_id, hello.boot_nonce, answer, capabilities=hello.capabilities)

    def accept_reply(self, message: Message, expected: NodeId) -> Greeted:
        """Judge the answer to our HELLO from the address of `expected`, or where anybody is expected (b""). Raises what it refused with,
        NodeIdTaken, ProtocolError or ConfigError."""
        try:
            hello, known_actor, known_lease_end = check_reply(message)
        except InvalidRequest as error:
            raise NodeIdTaken(str(error)) from None
        if hello.role != ROLE_PEER:
            raise ProtocolError(f"a HELLO as peer was answered for role {hello.role}")
        check_cluster(hello, self._mine, self._secret, self._mine.boot_nonce)
        self._refuse_itself(hello, expected)
        if self._is_double(hello):  # of its own: which of the two is the copy is not for us to say
            raise ConfigError(f"another live process has node id {hello.node_id.hex()}; {_COPIED}")
        return Greeted(ROLE_PEER, hello.node_id, hello.boot_nonce, None, known_actor, known_lease_end, hello.capabilities)

    def _refuse_itself(self, hello: Hello, expected: NodeId = b"") -> None:
        """Raises ConfigError if this very process has dialled itself, NodeIdTaken if another one has its node id."""
        mine = self._mine
        who = who_answers((mine.node_id, mine.boot_nonce), (hello.node_id, hello.boot_nonce), expected)
        if who == ITSELF:
            raise ConfigError("that is this node's own address now, so it is out of date")
        if who == DOUBLE:
            raise NodeIdTaken(f"node id {hello.node_id.hex()} is this node's own; {_COPIED}")

    def _is_double(self, hello: Hello) -> bool:
        return self._live_nonce(hello.node_id) not in (None, hello.boot_nonce)
