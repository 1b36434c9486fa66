"""What `race.connect_async` needs of Trio."""

from __future__ import annotations

import socket

import trio

from dynamo.dialling.names import Waiting

now = trio.current_time


async def first_ready(waiting: Waiting, until: float) -> None:
    """Wait until one of the sockets is ready, or the time has come."""
    with trio.move_on_at(until):
        async with trio.open_nursery() as nursery:

            async def wait_for(sock: socket.socket, writes: bool) -> None:
                await (trio.lowlevel.wait_writable if writes else trio.lowlevel.wait_readable)(sock)
                nursery.cancel_scope.cancel()

            for sock, writes in waiting:
                nursery.start_soon(wait_for, sock, writes)
