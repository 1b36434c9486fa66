"""Everything dynamo raises, and how each error travels as a number on the wire.

A leaf: any room may import it, it imports nothing. An error says what may have happened (`maybe_applied`, promise P10) and what to do next.
`maybe_applied` is False only when the write was refused before a dot was minted for it and before any byte of it left; such a write is
never visible. It is meaningful on errors raised by writes and False elsewhere. Over several attempts it is the OR of all of them.
"""

from __future__ import annotations

from typing import Any


class DynamoError(Exception):
    """Base of every error of this package. Catch it to catch them all."""

    code = 99

    def __init__(self, text: str = "", *, maybe_applied: bool = False) -> None:
        super().__init__(text)
        self.maybe_applied = maybe_applied


class Unavailable(DynamoError):
    """Too few nodes could take part: `required` were needed, `received` answered or could be reached; retry, or lower r/w. Or those asked are `busy`."""

    code = 1

    def __init__(self, text: str = "", *, required: int = 0, received: int = 0, maybe_applied: bool = False) -> None:
        super().__init__(text or f"needed {required} nodes, had {received}", maybe_applied=maybe_applied)
        self.required = required
        self.received = received

    @property
    def busy(self) -> bool:
        """Whether this was not for want of nodes, but of room at the one that was asked: it did nothing, and may have room a moment later."""
        return self.required == 0


class Timeout(DynamoError, TimeoutError):
    """The time given with the request ran out. A write with `maybe_applied` may become visible later: read before you retry blindly."""

    code = 2


class InvalidContext(DynamoError, ValueError):
    """The context is no token of this key in this cluster (forged, truncated, of another key). Read the key again and use that context."""

    code = 3


class InvalidKey(DynamoError, ValueError):
    """The key or bucket name is empty or malformed."""

    code = 4


class KeyTooLong(InvalidKey):
    """The key is longer than 1,024 bytes."""

    code = 5


class ValueTooLarge(DynamoError, ValueError):
    """The value, or the record with all its siblings, is larger than the bucket allows. Merge siblings or store less."""

    code = 6


class TooManySiblings(DynamoError):
    """The key holds `siblings_max` concurrent versions. Read it, merge them, and put the result with the context of that read."""

    code = 7


class CorruptRecord(DynamoError):
    """Stored or received bytes are damaged or not canonical. Nodes repair them from their peers. Where nobody has the key whole, `set` or a delete
    overwrites it, and everything else of that key ends in this."""

    code = 8


class StorageFull(DynamoError):
    """The disk or the map is full. Reads still work; free space, then write again."""

    code = 9


class StorageFailed(DynamoError):
    """The disk failed a commit for another reason than being full, or the data directory was removed, renamed or replaced while it was open."""

    code = 10


class InvalidRequest(DynamoError, ValueError):
    """A request that no node would accept: an unknown message, a field out of range, a verb this role may not use."""

    code = 11


class ConnectionFailed(DynamoError, ConnectionError):
    """No node could be reached, or a connection broke. Check the addresses and that a node listens there."""

    code = 12


class ConfigError(DynamoError, ValueError):
    """The configuration, data directory or cluster does not fit. The text names the file, key or directory, and what to change."""

    code = 13


class ConflictError(DynamoError):
    """A value was asked for where there are several and no resolver. `.result` holds them all; merge, and put with its context."""

    code = 14

    def __init__(self, text: str = "", *, result: Any = None, maybe_applied: bool = False) -> None:
        super().__init__(text or "the key has several values and no resolver", maybe_applied=maybe_applied)
        self.result = result


class Reentered(DynamoError, RuntimeError):
    """A signal handler, a `__del__` or a callback called while the same thread was inside of what it calls, and would have waited for itself. Nothing was
    done. Set a flag there, or hand the call to another thread (a queue, an executor), and make it when the thread is out again."""

    code = 99  # never on the wire


class ProtocolError(DynamoError):
    """The other side sent bytes that are not this protocol. The connection is closed."""

    code = 15


ERRORS: dict[int, type[DynamoError]] = {
    error.code: error
    for error in (Unavailable, Timeout, InvalidContext, InvalidKey, KeyTooLong, ValueTooLarge, TooManySiblings, CorruptRecord, StorageFull,
                  StorageFailed, InvalidRequest, ConnectionFailed, ConfigError, ConflictError, ProtocolError, DynamoError)
}  # fmt: skip


def from_wire(code: int, text: str, maybe_applied: bool, required: int, received: int) -> DynamoError:
    """The error an ERROR message stands for. An unknown code, of a newer node, becomes a plain DynamoError."""
    kind = ERRORS.get(code, DynamoError)
    if kind is Unavailable:
        return Unavailable(text, required=required, received=received, maybe_applied=maybe_applied)
    return kind(text, maybe_applied=maybe_applied)
