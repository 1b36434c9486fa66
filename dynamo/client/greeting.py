"""What is there at an address: a node, which answers the greeting or says why not, or something else. Sans-IO."""

from __future__ import annotations

from dynamo.errors import ConfigError, ConnectionFailed, DynamoError, ProtocolError
from dynamo.model.messages import ERROR, Message
from dynamo.wire import hello
from dynamo.wire.frames import encode


class OtherCluster(ConfigError):
    """The node at an address belongs to another cluster than the one this client met first. Nothing was asked of it."""


class Introduction:
    """A client's greeting, for `dialling.race`: the node that answers must be one of the cluster that is known, if one is."""

    def __init__(self, address: str, known: bytes) -> None:
        self._address = address
        self._known = known

    def hello(self) -> bytes:
        """The HELLO of a client."""
        return encode(hello.client_hello(self._known))

    def accept(self, answer: Message) -> bytes:
        """The id of the node's cluster. Raises OtherCluster, what it refuses us with, or ProtocolError."""
        cluster_id = cluster_of(self._address, answer, self._known)
        if (error := same_cluster(self._address, cluster_id, self._known or cluster_id)) is not None:
            raise error
        return cluster_id

    def explain(self, error: DynamoError) -> DynamoError:
        """The error of a connection that ended while greeting."""
        return no_node(self._address, error)


def cluster_of(address: str, answer: Message, known: bytes = b"") -> bytes:
    """The id of the cluster of the node that answered our HELLO. Raises what it refuses us with, or ProtocolError; both name the address.

    A node refuses whoever names another cluster, the `known` one, with a ConfigError that names its own."""
    if answer[0] == ERROR:
        error = hello.refusal(answer)
        if isinstance(error, ConfigError) and known:
            raise OtherCluster(f"{address}: {error}; this client has met cluster {hello.cluster_text(known)}")
        raise type(error)(f"{address}: {error}")
    greeting, _, _ = hello.check_reply(answer)
    return greeting.cluster_id


def no_node(address: str, error: DynamoError) -> DynamoError:
    """The error of a connection that ended while greeting, when it was none of a node's own."""
    if isinstance(error, ProtocolError) and not str(error).startswith(address):
        return ProtocolError(f"{address} does not answer as a node does: {error}; is there a dynamo node at that address?")
    if isinstance(error, ConnectionFailed):
        return ConnectionFailed(f"{error} before it had greeted; is there a dynamo node at that address?")
    return error


def same_cluster(address: str, cluster_id: bytes, known: bytes) -> OtherCluster | None:
    """The error of a client whose addresses are those of two clusters."""
    if cluster_id == known:
        return None
    return OtherCluster(f"{address} belongs to cluster {hello.cluster_text(cluster_id)}, other addresses to {hello.cluster_text(known)}")
