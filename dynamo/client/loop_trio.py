"""Trio as `loops.Loop` wants it."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from dynamo.dialling import trio_waits

T = TypeVar("T")

now = trio.current_time
event = trio.Event
lock = trio.Lock
identity = trio.lowlevel.current_trio_token
first_ready = trio_waits.first_ready


def spawn(work: Callable[[], Awaitable[None]]) -> None:
    """A system task: it belongs to no block of the program, as a connection that many of its tasks share does."""
    trio.lowlevel.spawn_system_task(work)


async def until(deadline: float, work: Callable[[], Awaitable[T]]) -> T:
    with trio.move_on_at(deadline):
        return await work()
    raise TimeoutError


async def readable(sock: socket.socket) -> None:
    await trio.lowlevel.wait_readable(sock)


async def writable(sock: socket.socket) -> None:
    await trio.lowlevel.wait_writable(sock)
