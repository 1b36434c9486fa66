"""What is there at an address: a node, which answers the greeting or says why not, or something else. Sans-IO."""

from __future__ import annotations

from dynamo.errors import ConfigError, ConnectionFailed, DynamoError, ProtocolError
from dynamo.model.messages import ERROR, Message
from dynamo.wire import hello


def cluster_of(address: str, answer: Message) -> bytes:
    """The id of the cluster of the node that answered our HELLO. Raises what it refuses us with, or ProtocolError; both name the address."""
    if answer[0] == ERROR:
        error = hello.refusal(answer)
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


def same_cluster(address: str, cluster_id: bytes, known: bytes) -> ConfigError | None:
    """The error of a client whose addresses are those of two clusters."""
    if cluster_id == known:
        return None
    return ConfigError(f"{address} belongs to cluster {hello.cluster_text(cluster_id)}, other addresses to {hello.cluster_text(known)}")
