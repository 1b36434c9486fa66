"""Trio as `loops.Loop` wants it."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import trio

from dynamo.client.loops import ENDED, RUNS
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


def standing(identity: trio.lowlevel.TrioToken) -> int:
    try:
        identity.run_sync_soon(_nothing, idempotent=True)
    except trio.RunFinishedError:
        return ENDED
    return RUNS


def tell(identity: trio.lowlevel.TrioToken, what: Callable[[], object]) -> None:
    with suppress(trio.RunFinishedError):  # in this moment
        identity.run_sync_soon(what)


def bury(task: object) -> None:
    """Nothing to do: a run cancels its tasks before it ends, and those of another process are never run."""


def unwatch(identity: trio.lowlevel.TrioToken, sock: socket.socket) -> None:
    """Nothing to do: a run of Trio goes on or has ended."""


def _nothing() -> None:
    """Called to see whether it would be."""


async def until(deadline: float, work: Callable[[], Awaitable[T]], hurry: set[Callable[[], object]]) -> T:
    with trio.move_on_at(deadline) as scope:
        hurry.add(scope.cancel)
        try:
            return await work()
        finally:
            hurry.discard(scope.cancel)
    raise TimeoutError


async def readable(sock: socket.socket) -> None:
    await trio.lowlevel.wait_readable(sock)


async def writable(sock: socket.socket) -> None:
    await trio.lowlevel.wait_writable(sock)
