"""The verbs as coroutines: what `AsyncClient`, its buckets and `Node` have in common. `verbs_blocking` has the same as methods, and says more."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Any, TypeVar

from dynamo.api.codec import Codec
from dynamo.api.context import Context
from dynamo.api.result import Resolver, Result
from dynamo.api.update import MISSING, Change
from dynamo.client import many, verbs
from dynamo.client.lifetime import OfOneProcess
from dynamo.client.many import Tokens, Values
from dynamo.client.scan import Scan
from dynamo.client.verbs import Key, Place, Token, Verb
from dynamo.client.verbs_blocking import new_operation
from dynamo.errors import DynamoError
from dynamo.model.messages import MODE_PUT, MODE_SET

T = TypeVar("T")


class AsyncVerbs:
    """The verbs on one bucket. Every verb takes `timeout`, in seconds, and may be cancelled: a write that was may have been applied."""

    _place: Place

    async def _run(self, verb: Verb[T], timeout: float | None) -> T:
        raise NotImplementedError

    async def get(self, key: Key, *, r: int | None = None, pr: int | None = None, resolver: Resolver | None = None, timeout: float | None = None) -> Result:
        """Read the key. Absent keys are no error; the result says `found`."""
        return await self._run(verbs.get(self._place, key, r, pr, resolver), timeout)

    async def put(self, key: Key, value: Any, *, context: Token = None, w: int | None = None, pw: int | None = None, timeout: float | None = None) -> Context:
        """Replace what the context covers; without a context, add a sibling. Returns the context for a next write."""
        return await self._run(verbs.write(self._place, key, value, context, MODE_PUT, w, pw, new_operation()), timeout)

    async def set(self, key: Key, value: Any, *, w: int | None = None, pw: int | None = None, timeout: float | None = None) -> Context:
        """Replace what the coordinating node holds, unread, in one round trip."""
        return await self._run(verbs.write(self._place, key, value, None, MODE_SET, w, pw, new_operation()), timeout)

    async def delete(self, key: Key, *, context: Token = None, blind: bool = False, w: int | None = None, timeout: float | None = None) -> Context:
        """Delete what the context covers, or, with `blind=True`, what a read shows now. Neither: TypeError."""
        return await self._run(verbs.delete(self._place, key, context, blind, w, new_operation), timeout)

    async def update(self, key: Key, fn: Change, *, default: Any = MISSING, timeout: float | None = None) -> Context:
        """Read, apply `fn`, a plain function, to the list of live values, and write what it returns under the context of the read."""
        return await self._run(verbs.update(self._place, key, fn, default, new_operation()), timeout)

    async def get_many(self, keys: Iterable[Key], *, timeout: float | None = None) -> dict[bytes, Result | DynamoError]:
        """Read many keys; what went wrong with one stands in its place."""
        return await self._run(many.get_many(self._place, keys), timeout)

    async def put_many(self, mapping: Values, *, contexts: Tokens | None = None, timeout: float | None = None) -> dict[bytes, Context | DynamoError]:
        """Put many keys, each under its context where one is given; what went wrong with one stands in its place."""
        return await self._run(many.put_many(self._place, mapping, contexts, MODE_PUT, new_operation), timeout)

    async def set_many(self, mapping: Values, *, timeout: float | None = None) -> dict[bytes, Context | DynamoError]:
        """Set many keys; what went wrong with one stands in its place."""
        return await self._run(many.put_many(self._place, mapping, None, MODE_SET, new_operation), timeout)

    def scan(
        self,
        prefix: Key = b"",
        *,
        limit: int | None = None,
        cursor: str | bytes | None = None,
        r: int | None = None,
        pr: int | None = None,
        timeout: float | None = None,
    ) -> AsyncIterator[Result]:
        """The keys that begin with `prefix` and have live values, each once; `timeout` is for one page, `r` and `pr` (nodes, and owners
        among them, whose answer is needed) are for each. A result's `cursor` resumes behind it.
        One of a damaged row has `error`."""
        return AsyncResults(self, Scan(self._place, prefix, limit, cursor, r, pr), timeout)


class AsyncResults(OfOneProcess):
    """The results of a scan. No generator: one that is left in the middle would have to be closed, and here there is nothing to close."""

    def __init__(self, verbs: AsyncVerbs, scan: Scan, timeout: float | None) -> None:
        self._verbs = verbs
        self._scan = scan
        self._timeout = timeout
        self._page: deque[Result] = deque()
        self._asking = False

    def __aiter__(self) -> AsyncResults:
        return self

    async def __anext__(self) -> Result:
        if self._asking:
            raise RuntimeError("one task at a time takes the results of a scan")
        while not self._page:
            if self._scan.done:
                raise StopAsyncIteration
            self._asking = True
            try:
                self._page.extend(await self._verbs._run(self._scan.page(), self._timeout))
            finally:
                self._asking = False
        return self._page.popleft()


class AsyncVerbsOfDefault(AsyncVerbs):
    """Whoever has the verbs for the bucket `default`, and makes the other buckets."""

    def bucket(self, name: str | bytes, *, resolver: Resolver | None = None, codec: Codec | None = None) -> AsyncBucket:
        """The verbs on another bucket, with a rule that merges siblings and a codec for values, if given."""
        return AsyncBucket(self, Place.named(name, codec, resolver))


class AsyncBucket(OfOneProcess, AsyncVerbs):
    """The verbs on one bucket of an AsyncClient or a Node. Made by their `bucket`. It has nothing of its own to close."""

    def __init__(self, owner: AsyncVerbsOfDefault, place: Place) -> None:
        self._owner = owner
        self._place = place

    @property
    def name(self) -> str:
        """The bucket's name."""
        return self._place.bucket.decode("ascii")

    def bucket(self, name: str | bytes, *, resolver: Resolver | None = None, codec: Codec | None = None) -> AsyncBucket:
        """Another bucket of the same client or node."""
        return self._owner.bucket(name, resolver=resolver, codec=codec)

    def __repr__(self) -> str:
        return f"{self._owner!r}.bucket({self.name!r})"

    async def _run(self, verb: Verb[T], timeout: float | None) -> T:
        return await self._owner._run(verb, timeout)
