"""Redis: GET and SET in RESP 2."""

from __future__ import annotations

from dynamo.bench.protocols.talk import NOTHING, STORED, VALUE, InOrder


class RedisTalk(InOrder):
    """To a Redis server."""

    NAME = "Redis"

    def __init__(self, address: str, value: bytes) -> None:
        super().__init__(address, value)
        self._written = b"$%d\r\n%b\r\n" % (len(value), value)

    def _get(self, key: bytes) -> bytes:
        return b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(key), key)

    def _set(self, key: bytes) -> bytes:
        return b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n%b" % (len(key), key, self._written)

    def _answers(self, data: bytes) -> list[int]:
        if self._rest:
            data = self._rest + data
        found: list[int] = []
        at = 0
        while (end := data.find(b"\r\n", at)) >= 0:
            kind, behind = data[at], end + 2
            if kind == 36:  # $: a value of that length, or -1 for none
                size = data[at + 1 : end]
                if size == b"-1":
                    found.append(NOTHING)
                elif not size.isdigit():
                    raise self._no_answer(data[at:end])
                else:
                    value_end = behind + int(size)
                    behind = value_end + 2
                    if behind > len(data):
                        break
                    if data[value_end:behind] != b"\r\n":
                        raise self._no_answer(f"a value longer than its length, {int(size)}")
                    found.append(VALUE)
            elif kind == 43:  # +
                found.append(STORED)
            elif kind == 45:  # -
                found.append(self._refused(data[at + 1 : end].decode(errors="replace")))
            else:
                raise self._no_answer(data[at:end])
            at = behind
        self._rest = data[at:]
        return found
