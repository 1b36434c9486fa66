"""How many requests may be under way on one connection: bounded in number, and in the bytes that their answers are likely to have. Sans-IO.

A node cuts off whoever lets 16 MiB of answers pile up, and a hundred gets of a megabyte, sent at once, are answered at once. Nobody can know the
size of an answer before; but a client mostly asks for more of what it had. So the answers of each type are remembered by their largest recent
size, and as many requests go out as would be answered in half of what the node allows. A connection that broke under its requests lets fewer
through afterwards, and each answer makes room again.
"""

from __future__ import annotations

from dynamo.model import messages as m

REQUESTS_MAX = 256
BYTES_MAX = 8 << 20
_FIRST_GUESS = {m.GET: 16 << 10, m.GET_MANY: 1 << 20, m.SCAN: 1 << 20}
_OTHER_GUESS = 1 << 10
_FORGET = 0.97  # of a large answer, with each smaller one after it


class Window:
    """Of the connections to one node, one after the other."""

    def __init__(self) -> None:
        self.requests = 0
        self.bytes = 0.0
        self._limit = float(REQUESTS_MAX)
        self._expected: dict[int, float] = dict(_FIRST_GUESS)

    def cost(self, kind: int, frame_bytes: int) -> float:
        """Bytes that a request of this type is likely to move."""
        return frame_bytes + self._expected.get(kind, _OTHER_GUESS)

    def fits(self, cost: float) -> bool:
        """Whether another request of this cost may go out; one alone always may."""
        return not self.requests or (self.requests < self._limit and self.bytes + cost <= BYTES_MAX)

    def begin(self, cost: float) -> None:
        """A request goes out."""
        self.requests += 1
        self.bytes += cost

    def end(self, cost: float) -> None:
        """Its answer came, or never will."""
        self.requests -= 1
        self.bytes = self.bytes - cost if self.requests else 0.0
        # Invariant: what ended began.
        assert self.requests >= 0

    def answered(self, kind: int, size: float) -> None:
        """An answer to a request of this type had about this size."""
        self._limit = min(REQUESTS_MAX, self._limit + 1 / self._limit)
        self._expected[kind] = max(size, _FORGET * self._expected.get(kind, _OTHER_GUESS))

    def broke(self, requests: int) -> None:
        """The connection broke with so many requests under way."""
        if requests > 1:
            self._limit = max(1.0, min(self._limit, requests) / 4)
