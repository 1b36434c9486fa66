"""The verbs as blocking methods: what `Client`, its buckets and the embedded store have in common. `verbs_async` has the same as coroutines."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from dynamo.api.context import Context
from dynamo.api.result import Resolver, Result
from dynamo.api.update import MISSING, Change
from dynamo.client import many, verbs
from dynamo.client.lifetime import OfOneProcess
from dynamo.client.many import Tokens, Values
from dynamo.client.scan import Scan
from dynamo.client.verbs import Key, Place, Token, Verb
from dynamo.errors import DynamoError
from dynamo.model.messages import MODE_PUT, MODE_SET

T = TypeVar("T")


def new_operation() -> bytes:
    """The id of a write."""
    return os.urandom(16)


class Verbs:
    """The verbs on one bucket: for a client or a store `default`, or the one a bucket was made for. Every verb takes `timeout`, in seconds."""

    _place: Place

    def _run(self, verb: Verb[T], timeout: float | None) -> T:
        raise NotImplementedError

    def get(self, key: Key, *, r: int | None = None, pr: int | None = None, resolver: Resolver | None = None, timeout: float | None = None) -> Result:
        """Read the key: its siblings and the context that covers them. Absent keys are no error; the result says `found`."""
        return self._run(verbs.get(self._place, key, r, pr, resolver), timeout)

    def put(self, key: Key, value: Any, *, context: Token = None, w: int | None = None, pw: int | None = None, timeout: float | None = None) -> Context:
        """Replace what the context covers; without a context, add a sibling to whatever is there. Returns the context for a next write.

        Unavailable, Timeout and ConnectionFailed tell with `maybe_applied` whether the write may yet become visible.
        """
        return self._run(verbs.write(self._place, key, value, context, MODE_PUT, w, pw, new_operation()), timeout)

    def set(self, key: Key, value: Any, *, w: int | None = None, pw: int | None = None, timeout: float | None = None) -> Context:
        """Replace what the coordinating node holds, unread, in one round trip. It loses a concurrent write that arrived there before
        it: where that matters, use `update`, or `put` with the context of a read."""
        return self._run(verbs.write(self._place, key, value, None, MODE_SET, w, pw, new_operation()), timeout)

    def delete(self, key: Key, *, context: Token = None, blind: bool = False, w: int | None = None, timeout: float | None = None) -> Context:
        """Delete what the context covers, or, with `blind=True`, what a read shows now. A concurrent write survives. Neither: TypeError.

        A blind delete of a key that was never there writes nothing, and returns the context of the read.
        """
        return self._run(verbs.delete(self._place, key, context, blind, w, new_operation), timeout)

    def update(self, key: Key, fn: Change, *, default: Any = MISSING, timeout: float | None = None) -> Context:
        """Read, apply `fn` to the list of live values, and write what it returns (`dynamo.DELETE` deletes) under the context of the read.

        An absent key gives an empty list, or [default]. Updates that race leave siblings, which the next `fn` gets to merge: it must
        expect several values and may run more than once. So do those that an answer did not hold: see `unseen_siblings` of the context returned.
        """
        return self._run(verbs.update(self._place, key, fn, default, new_operation()), timeout)

    def get_many(self, keys: Iterable[Key], *, timeout: float | None = None) -> dict[bytes, Result | DynamoError]:
        """Read many keys; what went wrong with one stands in its place."""
        return self._run(many.get_many(self._place, keys), timeout)

    def put_many(self, mapping: Values, *, contexts: Tokens | None = None, timeout: float | None = None) -> dict[bytes, Context | DynamoError]:
        """Put many keys, each under its context where one is given; what went wrong with one stands in its place. Nothing holds across keys.

        Raises ValueError for a key given as text and as bytes, and for contexts without a value.
        """
        return self._run(many.put_many(self._place, mapping, contexts, MODE_PUT, new_operation), timeout)

    def set_many(self, mapping: Values, *, timeout: float | None = None) -> dict[bytes, Context | DynamoError]:
        """Set many keys; what went wrong with one stands in its place. Nothing holds across keys."""
        return self._run(many.put_many(self._place, mapping, None, MODE_SET, new_operation), timeout)

    def scan(
        self,
        prefix: Key = b"",
        *,
        limit: int | None = None,
        cursor: str | bytes | None = None,
        r: int | None = None,
        pr: int | None = None,
        timeout: float | None = None,
    ) -> Iterator[Result]:
        """The keys that begin with `prefix` and have live values, each once, `limit` of them at most. They come in pages: `r` nodes
        must give their part of each, `pr` of them owners, as in `get`; `timeout` is for one page. In the order of keys within a partition only.

        A key whose stored row is damaged at too many owners is among them: `error` of its result says so, and a look at its value raises it.
        A result's `cursor` given to another scan of the bucket goes on behind that key. Keys written meanwhile may or may not be seen.
        """
        return Results(self, Scan(self._place, prefix, limit, cursor, r, pr), timeout)

    # --- dict sugar -----------------------------------------------------------------------------------------------------------------

    def __getitem__(self, key: Key) -> Any:
        """`get(key).value`. Raises KeyError when there is none, ConflictError for siblings without a resolver."""
        result = self.get(key)
        if not result.found:
            raise KeyError(key)
        return result.value

    def __setitem__(self, key: Key, value: Any) -> None:
        """`set`: blind, so it may lose a concurrent write."""
        self.set(key, value)

    def __delitem__(self, key: Key) -> None:
        """Delete what a read shows now. Raises KeyError when that is nothing."""
        self._run(verbs.discard(self._place, key, new_operation), None)

    def __contains__(self, key: Key) -> bool:
        """Whether the key has a live value."""
        return self.get(key).found

    __iter__ = None  # keys come from `scan`; without this line Python would try self[0], self[1], ...


class Results(OfOneProcess):
    """The results of a scan. There is nothing to close."""

    def __init__(self, verbs: Verbs, scan: Scan, timeout: float | None) -> None:
        self._verbs = verbs
        self._scan = scan
        self._timeout = timeout
        self._page: deque[Result] = deque()

    def __iter__(self) -> Results:
        return self

    def __next__(self) -> Result:
        while not self._page:
            if self._scan.done:
                raise StopIteration
            self._page.extend(self._verbs._run(self._scan.page(), self._timeout))
        return self._page.popleft()
