"""asyncio as `loops.Loop` wants it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import TypeVar

from dynamo.dialling.names import Waiting

T = TypeVar("T")

event = asyncio.Event
lock = asyncio.Lock
identity = asyncio.get_running_loop
_tasks: set[asyncio.Task[None]] = set()  # a loop keeps no reference to its tasks


def now() -> float:
    return asyncio.get_running_loop().time()


def spawn(work: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await work()

    task = asyncio.get_running_loop().create_task(run())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


async def until(deadline: float, work: Callable[[], Awaitable[T]]) -> T:
    async with asyncio.timeout_at(deadline):
        return await work()


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
    ready = loop.create_future()
    loop.add_reader(sock, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_reader(sock)


async def writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_writer(sock, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_writer(sock)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
