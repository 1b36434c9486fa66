"""A scan as a value: which page comes next, and where each result would let another scan go on. Sans-IO, like `verbs`.

A cursor is what a node said, as url-safe text; only nodes look inside. It needs nothing to be kept open anywhere, so a scan can go on later, in
another process, through another node.
"""

from __future__ import annotations

from dynamo.api import urlsafe
from dynamo.api.codec import text_bytes
from dynamo.api.context import Context
from dynamo.api.result import Result, damaged_result, make_siblings
from dynamo.client.core import Request
from dynamo.client.verbs import Key, Place, Verb, count_asked
from dynamo.errors import InvalidRequest, ProtocolError
from dynamo.model import messages as m
from dynamo.model.key import check_key

_LIMIT_MAX = (1 << 32) - 1


class Scan:
    """Run `page` until `done`; what a page may raise leaves the scan where it was."""

    def __init__(self, place: Place, prefix: Key, limit: int | None, cursor: str | bytes | None, r: int | None = None, pr: int | None = None) -> None:
        """Raises TypeError, ValueError (limit), KeyTooLong and InvalidKey (prefix) or InvalidRequest (a text that is no cursor)."""
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
            raise ValueError(f"limit is a number of keys, not {limit!r}; leave it out for all")
        self._counts = count_asked("r", r), count_asked("pr", pr)
        self._place = place
        self._prefix = text_bytes(prefix, "prefix")
        if self._prefix:
            check_key(self._prefix)
        self._left = None if limit is None else int(limit)
        self._cursor = _parse(cursor)
        self.done = limit == 0

    def page(self) -> Verb[list[Result]]:
        """The next results; there may be none although the scan is not done."""
        place, limit = self._place, self._left
        wanted = 0 if limit is None else min(limit, _LIMIT_MAX)
        reply = yield Request(m.SCAN, (place.bucket, self._prefix, self._cursor, wanted), m.SCAN_REPLY, after=self._counts)
        entries, cursor, owners_answered = reply[4:7]
        if cursor and cursor == self._cursor:
            raise ProtocolError("a scan came to where it was")
        entries = entries[:limit]
        results = [
            Result(key, make_siblings(siblings, place.codec), Context(token, unseen_siblings=sum(left_out)), owners_answered, place.resolver,
                   urlsafe.encode(behind))
            if siblings
            else damaged_result(key, owners_answered, urlsafe.encode(behind))
            for key, token, siblings, behind, *left_out in (entry[:5] for entry in entries)
        ]  # fmt: skip
        if limit is not None:
            self._left = limit - len(results)
        self._cursor = cursor
        self.done = not cursor or self._left == 0
        return results


def _parse(cursor: str | bytes | None) -> bytes:
    """What to send for a cursor; b"" begins. Bytes are its text in ASCII, as a file or a header may hold it."""
    if cursor is None or not cursor:
        return b""
    if not isinstance(cursor, str | bytes):
        raise TypeError(f"a cursor is str or bytes, not {type(cursor).__name__}")
    try:
        return urlsafe.decode(cursor if isinstance(cursor, str) else cursor.decode("ascii"))
    except ValueError:
        raise InvalidRequest("the cursor was altered on its way; pass it exactly as a result of a scan gave it") from None
