"""Every way of using dynamo behind one blocking face, so that one suite runs over all of them.

Asynchronous ones run in a loop in a thread of its own; the face hands each call to it and waits.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from functools import partial
from typing import Any

import trio

Call = Callable[[Callable[[], Awaitable[Any]]], Any]


@contextmanager
def in_trio(around: AbstractAsyncContextManager[Any] | None = None) -> Iterator[Call]:
    """Run coroutine functions in a Trio run in another thread, within `around`."""
    started, token, stop = threading.Event(), [], trio.Event()

    async def main() -> None:
        try:
            async with around or AsyncExitStack():
                token.append(trio.lowlevel.current_trio_token())
                started.set()
                await stop.wait()
        finally:
            started.set()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    started.wait()
    assert token, "it did not start; the thread says why"
    try:
        yield lambda work: trio.from_thread.run(work, trio_token=token[0])
    finally:
        trio.from_thread.run_sync(stop.set, trio_token=token[0])
        thread.join()


@contextmanager
def in_asyncio() -> Iterator[Call]:
    """Run coroutine functions in an asyncio loop in another thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield lambda work: asyncio.run_coroutine_threadsafe(work(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class Face:
    """The verbs of an asynchronous object as blocking ones."""

    def __init__(self, verbs: Any, call: Call) -> None:
        self._verbs = verbs
        self._call = call

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._verbs, name)
        return lambda *arguments, **named: self._call(partial(method, *arguments, **named))

    def bucket(self, *arguments: Any, **named: Any) -> Face:
        return Face(self._verbs.bucket(*arguments, **named), self._call)

    def scan(self, *arguments: Any, **named: Any) -> Iterator[Any]:
        results = aiter(self._verbs.scan(*arguments, **named))
        end = object()
        while True:
            result = self._call(lambda: _next(results, end))
            if result is end:
                return
            yield result


async def _next(results: Any, end: object) -> Any:
    return await anext(results, end)
