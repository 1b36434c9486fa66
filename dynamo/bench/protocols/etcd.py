"""etcd: ranges of one key and puts at its gateway, which takes JSON over HTTP/1.1 and passes it on to its gRPC server. HTTP is h11's part.

A client of gRPC spares etcd the gateway, and the generator the JSON, so this measures less than etcd can do: `generator_cpu` says how much of the machine
h11 and JSON take. One request at a time on a connection: h11 does not pipeline as a client, and etcd would answer in turn anyway.
"""

from __future__ import annotations

import json
from base64 import b64encode

from dynamo.bench.protocols.talk import NOTHING, STORED, VALUE, InOrder
from dynamo.errors import ConfigError


class EtcdTalk(InOrder):
    """To an etcd server, version 3.4 or later. A read is linearizable, as etcd's are unless asked otherwise."""

    NAME = "etcd"
    PIPELINED = False

    def __init__(self, address: str, value: bytes) -> None:
        """Raises ConfigError where h11 is not installed."""
        super().__init__(address, value)
        try:
            import h11
        except ImportError:
            raise ConfigError("etcd is asked over HTTP by h11, which is not installed: pip install 'dynamo-kv[etcd]'") from None
        self._h11 = h11
        self._http = h11.Connection(h11.CLIENT)
        self._written = b64encode(value)
        self._reading = False  # what was asked last: the answer to a put and to a read of nothing are alike
        self._status = 0
        self._body = bytearray()

    def _get(self, key: bytes) -> bytes:
        self._reading = True
        return self._request("/v3/kv/range", b'{"key":"%b"}' % b64encode(key))

    def _set(self, key: bytes) -> bytes:
        self._reading = False
        return self._request("/v3/kv/put", b'{"key":"%b","value":"%b"}' % (b64encode(key), self._written))

    def _request(self, path: str, body: bytes) -> bytes:
        h11, http = self._h11, self._http
        headers = [("Host", self._address), ("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        sent = (h11.Request(method="POST", target=path, headers=headers), h11.Data(data=body), h11.EndOfMessage())
        return b"".join(http.send(event) or b"" for event in sent)

    def _answers(self, data: bytes) -> list[int]:
        h11, http = self._h11, self._http
        found: list[int] = []
        try:
            http.receive_data(data)
            while (event := http.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.Response):
                    self._status = event.status_code
                    self._body.clear()
                elif isinstance(event, h11.Data):
                    self._body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    http.start_next_cycle()  # refuses where the connection ends with this answer: the next one would not come
                    found.append(self._outcome())
                elif not isinstance(event, h11.InformationalResponse):
                    raise self._no_answer(event)
        except h11.ProtocolError as error:
            raise self._no_answer(error) from None
        return found

    def _outcome(self) -> int:
        if self._status != 200:
            return self._refused(f"HTTP {self._status}: {self._body.decode(errors='replace').strip()}")
        try:
            answer = json.loads(self._body)
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or not isinstance(answer.get("header"), dict):
            raise self._no_answer(bytes(self._body[:100]))
        if not self._reading:
            return STORED
        rows = answer.get("kvs", [])
        if rows == []:
            return NOTHING
        if not isinstance(rows, list) or len(rows) != 1 or not isinstance(rows[0], dict):
            raise self._no_answer(bytes(self._body[:100]))
        return VALUE
