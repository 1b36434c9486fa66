"""What a protocol of the load generator does, and what those of peers share: answers in the order of the requests, reads and writes of one key.

A connection has numbered slots, each with at most one operation under way. `encode` makes the bytes of some operations; `feed` takes what was received
and returns which slots are done, which failed, and what else has to be sent, for a read-modify-write is two requests.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable
from typing import ClassVar, Protocol

from dynamo.bench.workloads import INSERT, MODIFY, READ, UPDATE, key_of
from dynamo.errors import ProtocolError

VALUE, NOTHING, STORED, REFUSED = range(4)  # what an answer of a peer says: the first two to reads, the third to writes

_READS = (READ, MODIFY)


class Talk(Protocol):
    """One connection's part of a protocol."""

    reads: int  # answered
    siblings: int  # in their answers
    errors: dict[str, int]  # by text

    def greeting(self) -> bytes:
        """What is sent first; empty where nothing is."""

    def greeted(self, data: bytes) -> bool:
        """Take what was received before anything was asked; whether the connection is ready. Raises DynamoError."""

    def encode(self, operations: Iterable[tuple[int, str, int]]) -> bytes:
        """The requests of some (slot, operation, number of the key)."""

    def feed(self, data: bytes) -> tuple[list[int], list[int], bytes]:
        """(slots that are done, slots that failed, bytes to send). Raises ProtocolError for what is no answer."""


class InOrder(ABC):
    """To a peer. Which request an answer belongs to is known by its place alone, so an answer of the wrong kind means that the two have lost count
    of each other: that is a ProtocolError, and no figure."""

    NAME: ClassVar[str]
    PIPELINED: ClassVar[bool] = True  # whether a connection takes a request before the last one is answered

    def __init__(self, address: str, value: bytes) -> None:
        """`value`: what writes write."""
        self.reads = 0
        self.siblings = 0  # a value that is there counts as one
        self.errors: dict[str, int] = {}
        self._address = address
        self._value = value
        self._rest = b""  # the beginning of an answer; for `_answers` to keep and to use
        self._asked: deque[tuple[int, str, bytes]] = deque()

    @abstractmethod
    def _get(self, key: bytes) -> bytes:
        """The request that reads a key."""

    @abstractmethod
    def _set(self, key: bytes) -> bytes:
        """The request that writes the value to a key."""

    @abstractmethod
    def _answers(self, data: bytes) -> list[int]:
        """What the answers say that are whole with this data, in their order; texts of refusals go to `_refused`. Raises ProtocolError."""

    def greeting(self) -> bytes:
        return b""

    def greeted(self, data: bytes) -> bool:
        return True

    def encode(self, operations: Iterable[tuple[int, str, int]]) -> bytes:
        parts = []
        for slot, operation, number in operations:
            key = key_of(number)
            if operation in _READS:
                parts.append(self._get(key))
            elif operation in (UPDATE, INSERT):
                parts.append(self._set(key))
            else:
                raise ValueError(f"{self.NAME} has no {operation} that compares")
            self._asked.append((slot, operation, key))
        return b"".join(parts)

    def feed(self, data: bytes) -> tuple[list[int], list[int], bytes]:
        done: list[int] = []
        failed: list[int] = []
        more: list[bytes] = []
        asked = self._asked
        for answer in self._answers(data):
            if not asked:
                raise ProtocolError(f"{self._address} answered what nobody had asked")
            slot, operation, key = asked.popleft()
            if answer == REFUSED:
                failed.append(slot)
            elif (answer == STORED) == (operation in _READS):
                raise ProtocolError(f"{self._address} answered a read as if it were a write, or the other way about")
            elif operation == MODIFY:
                asked.append((slot, UPDATE, key))  # behind all that was sent before
                more.append(self._set(key))
            else:
                done.append(slot)
            if answer <= NOTHING:
                self.reads += 1
                self.siblings += answer == VALUE
        return done, failed, b"".join(more)

    def _refused(self, text: str) -> int:
        self.errors[text] = self.errors.get(text, 0) + 1
        return REFUSED

    def _no_answer(self, what: object) -> ProtocolError:
        return ProtocolError(f"{self._address} sent what is no answer of {self.NAME}: {what}")
