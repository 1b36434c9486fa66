"""memcached: get and set of its text protocol, which all its versions speak; its answers name the key once more, the meta protocol's need not."""

from __future__ import annotations

from dynamo.bench.protocols.talk import NOTHING, STORED, VALUE, InOrder

_END = b"\r\nEND\r\n"  # of an answer with a value
_REFUSALS = (b"SERVER_ERROR", b"CLIENT_ERROR", b"ERROR", b"NOT_STORED")


class MemcachedTalk(InOrder):
    """To a memcached server. Values have no flags and do not expire."""

    NAME = "memcached"

    def __init__(self, address: str, value: bytes) -> None:
        super().__init__(address, value)
        self._written = b" 0 0 %d\r\n%b\r\n" % (len(value), value)

    def _get(self, key: bytes) -> bytes:
        return b"get %b\r\n" % key

    def _set(self, key: bytes) -> bytes:
        return b"set %b%b" % (key, self._written)

    def _answers(self, data: bytes) -> list[int]:
        if self._rest:
            data = self._rest + data
        found: list[int] = []
        at = 0
        while (end := data.find(b"\r\n", at)) >= 0:
            line, behind = data[at:end], end + 2
            if line.startswith(b"VALUE "):  # VALUE key flags length
                words = line.split(b" ")
                if len(words) != 4 or not words[3].isdigit():
                    raise self._no_answer(line)
                value_end = behind + int(words[3])
                behind = value_end + len(_END)
                if behind > len(data):
                    break
                if data[value_end:behind] != _END:
                    raise self._no_answer(f"a value longer than its length, {int(words[3])}, or several")
                found.append(VALUE)
            elif line == b"END":
                found.append(NOTHING)
            elif line == b"STORED":
                found.append(STORED)
            elif line.startswith(_REFUSALS):
                found.append(self._refused(line.decode(errors="replace")))
            else:
                raise self._no_answer(line)
            at = behind
        self._rest = data[at:]
        return found
