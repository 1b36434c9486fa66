"""asyncio as `loops.Loop` wants it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from dynamo.client.loops import ENDED, RESTS, RUNS
from dynamo.dialling.names import Waiting

T = TypeVar("T")

event = asyncio.Event
lock = asyncio.Lock
identity = asyncio.get_running_loop
_tasks: set[asyncio.Task[None]] = set()  # a loop keeps no reference to its tasks


def now() -> float:
    return asyncio.get_running_loop().time()


def spawn(work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
    async def run() -> None:
        await work()

    task = asyncio.get_running_loop().create_task(run())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return task


def standing(identity: asyncio.AbstractEventLoop) -> int:
    return ENDED if identity.is_closed() else RUNS if identity.is_running() else RESTS


def tell(identity: asyncio.AbstractEventLoop, what: Callable[[], object]) -> None:
    with suppress(RuntimeError):  # closed in this moment
        identity.call_soon_threadsafe(what)


def bury(task: asyncio.Task[None]) -> None:
    _tasks.discard(task)
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's own way to say that this is no mistake
    coroutine = task.get_coro()
    if coroutine is not None:
        coroutine.close()  # what it waits for does not touch the loop then


def unwatch(identity: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    identity.remove_reader(sock)
    identity.remove_writer(sock)


async def until(deadline: float, work: Callable[[], Awaitable[T]], hurry: set[Callable[[], object]]) -> T:
    async with asyncio.timeout_at(deadline) as limit:

        def expire() -> None:
            with suppress(RuntimeError):  # it is late already, or over
                limit.reschedule(now())

        hurry.add(expire)
        try:
            return await work()
        finally:
            hurry.discard(expire)


async def first_ready(waiting: Waiting, until: float) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    try:
        for sock, writes in waiting:
            (loop.add_writer if writes else loop.add_reader)(sock, _wake, ready)
        await asyncio.wait([ready], timeout=max(0.0, until - loop.time()))
    finally:
        ready.cancel()
        for sock, writes in waiting:
            (loop.remove_writer if writes else loop.remove_reader)(sock)


async def readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready, abandoned = loop.create_future(), False
    try:
        loop.add_reader(sock, _wake, ready)
        await ready
    except GeneratorExit:
        abandoned = True  # see `bury`
        raise
    finally:
        if not abandoned:
            loop.remove_reader(sock)


async def writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready, abandoned = loop.create_future(), False
    try:
        loop.add_writer(sock, _wake, ready)
        await ready
    except GeneratorExit:
        abandoned = True
        raise
    finally:
        if not abandoned:
            loop.remove_writer(sock)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
