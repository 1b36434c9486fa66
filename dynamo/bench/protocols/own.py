"""dynamo's own protocol, as the load generator speaks it: answers in any order, contexts that come back with writes, scans, siblings counted."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from dynamo.bench.workloads import MODIFY, READ, SCAN, SCAN_KEYS_MAX, key_of
from dynamo.client import greeting
from dynamo.errors import ProtocolError
from dynamo.model import messages as m
from dynamo.wire import hello
from dynamo.wire.frames import ANSWER_ELEMENTS_MAX, FrameDecoder, encode, encode_all

CONTEXTS_MAX = 10_000  # of a connection; the oldest goes first
_TIME_MS = 5_000  # less than the generator waits for the last answers


class DynamoTalk:
    """To a node. A write carries the context that this connection last got for the key; a key it has no context of, it sets."""

    def __init__(self, address: str, value: bytes, *, operation_prefix: bytes, bucket: bytes = b"default", r: int = 0, w: int = 0) -> None:
        """`operation_prefix`: 8 bytes that no other connection has."""
        self.reads = 0
        self.siblings = 0
        self.errors: dict[str, int] = {}
        self._address = address
        self._value = value
        self._prefix = operation_prefix
        self._bucket = bucket
        self._r = r
        self._w = w
        self._decoder = FrameDecoder(elements_max=ANSWER_ELEMENTS_MAX)
        # A plain dict finds its oldest entry behind all that were deleted before it: thousands, by the time it is laid out anew.
        self._contexts: OrderedDict[bytes, bytes] = OrderedDict()
        self._keys: dict[int, bytes] = {}  # by slot, of the operations whose answer has a context
        self._modifying: set[int] = set()  # slots that have yet to write
        self._cursor = b""  # where the next scan goes on
        self._operations = 0
        self._scans = 0
        self.cluster_id = b""
        self.core = ""  # that the node says it runs on

    def greeting(self) -> bytes:
        return encode(hello.client_hello())

    def greeted(self, data: bytes) -> bool:
        answers = self._decoder.feed(data)
        if answers:
            self.cluster_id = greeting.cluster_of(self._address, answers[0])
            self.core = hello.core_of(hello.check_reply(answers[0])[0])
        return bool(answers)

    def encode(self, operations: Iterable[tuple[int, str, int]]) -> bytes:
        return encode_all([self._request(slot, operation, number) for slot, operation, number in operations])

    def _request(self, slot: int, operation: str, number: int) -> m.Message:
        if operation == SCAN:
            return (m.SCAN, slot, self._bucket, b"", self._cursor, self._scan_length(), _TIME_MS)
        key = self._keys[slot] = key_of(number)
        if operation == READ:
            return (m.GET, slot, self._bucket, key, self._r, 0, _TIME_MS)
        if operation == MODIFY:
            self._modifying.add(slot)
            return (m.GET, slot, self._bucket, key, self._r, 0, _TIME_MS)
        return self._write(slot, key)

    def _scan_length(self) -> int:
        self._scans += 1
        return 1 + self._scans * 37 % SCAN_KEYS_MAX  # each length as often as the others

    def _write(self, slot: int, key: bytes) -> m.Message:
        self._operations += 1
        context = self._contexts.get(key)
        mode = m.MODE_SET if context is None else m.MODE_PUT
        operation = self._prefix + self._operations.to_bytes(8, "big")
        return (m.PUT, slot, self._bucket, key, self._value, context, mode, self._w, 0, _TIME_MS, operation)

    def feed(self, data: bytes) -> tuple[list[int], list[int], bytes]:
        done: list[int] = []
        failed: list[int] = []
        more: list[m.Message] = []
        for answer in self._decoder.feed(data):
            kind, slot = answer[0], answer[1]
            if kind == m.GET_REPLY:
                self.reads += 1
                self.siblings += len(answer[6])
                key = self._keys[slot]
                self._remember(key, answer[5])
                if slot in self._modifying:
                    self._modifying.remove(slot)
                    more.append(self._write(slot, key))
                    continue
            elif kind == m.PUT_REPLY:
                self._remember(self._keys[slot], answer[4])
            elif kind == m.SCAN_REPLY:
                self._cursor = answer[5]
            elif kind == m.ERROR:
                text = str(hello.refusal(answer))
                self.errors[text] = self.errors.get(text, 0) + 1
                self._modifying.discard(slot)
                failed.append(slot)
                continue
            else:
                raise ProtocolError(f"{self._address} answered with a message of type {kind}")
            done.append(slot)
        return done, failed, encode_all(more) if more else b""

    def _remember(self, key: bytes, context: bytes) -> None:
        self._contexts[key] = context
        if len(self._contexts) > CONTEXTS_MAX:
            self._contexts.popitem(last=False)
