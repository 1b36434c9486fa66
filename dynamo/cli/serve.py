"""`dynamo serve`: one node in this process, from its configuration to its orderly end."""

from __future__ import annotations

import gc
import os
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from dynamo.cli import OK, installation, open_files
from dynamo.cli.output import talk, write
from dynamo.config import DURABILITIES, NodeConfig, load
from dynamo.errors import DynamoError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import trio


@click.command("serve", short_help="Run a node.")
@click.option("--data", metavar="DIR", help="Directory of the node's data; made when absent.")
@click.option("--listen", metavar="HOST:PORT", help="Address to listen on; port 0 takes a free one.  [default: 127.0.0.1:7379]")
@click.option("--advertise", metavar="HOST:PORT", help="Address that other nodes are told, where it is not the one listened on.")
@click.option("--join", metavar="HOST:PORT", multiple=True, help="A node of the cluster to join; may be repeated.")
@click.option("--name", help="Name for logs and status.")
@click.option("--zone", help="Failure domain, such as a rack.")
@click.option("--capacity", type=float, help="Share of the data relative to other nodes.  [default: 1.0]")
@click.option("--durability", type=click.Choice(DURABILITIES), help="What an acknowledgement means.  [default: synced]")
@click.option("--join-timeout-s", type=float, help="Seconds to keep trying to join.  [default: 60]")
@click.option("--n", type=int, help="Replicas of each key; fixed by the first node.  [default: 3]")
@click.option("--r", help="Nodes that answer a read.  [default: quorum]")
@click.option("--w", help="Nodes that confirm a write.  [default: quorum]")
@click.option("--pr", type=int, help="Of those that answer a read, how many must be owners.  [default: 0]")
@click.option("--pw", type=int, help="Of those that confirm a write, how many must be owners.  [default: 0]")
@click.option("--partitions", type=int, help="Equal parts of the hash space; fixed by the first node.  [default: 256]")
@click.option("-c", "--config", "file", metavar="FILE", help="TOML file with [node], [cluster] and [buckets.NAME].")
@click.option("--stop-on-eof", is_flag=True, help="Stop when standard input, a pipe, ends: the node then never outlives its parent.")
def serve_command(file: str | None, stop_on_eof: bool, **flags: Any) -> int:
    """Run a node until SIGTERM or SIGINT, then finish what is under way and exit with 0.

    Prints one line when it is ready: ready node=NAME address=HOST:PORT cluster=UUID. A setting comes from its flag, else from the
    environment (DYNAMO_LISTEN for --listen), else from the file, else it has its default.
    """
    config = load(file, os.environ, flags)
    installation.warn()
    import trio

    try:
        trio.run(_serve, config, stop_on_eof)
    except BaseExceptionGroup as group:
        raise _reason(group) from group
    return OK


@dataclass(slots=True)
class _Stop:
    """How the node is asked to end: before it is ready by cancelling, afterwards by leaving its block, which drains it; twice is in a
    hurry."""

    asked: trio.Event
    scope: trio.CancelScope
    ready: bool = False

    def ask(self) -> None:
        if not self.ready or self.asked.is_set():
            self.scope.cancel()
        self.asked.set()


async def _serve(config: NodeConfig, stop_on_eof: bool) -> None:
    import trio

    from dynamo.net.limits import Limits
    from dynamo.node import Node

    too_few_files = open_files.provide_for(Limits().connections_max)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # what the receiver leaves behind: a second request to stop must not kill what is stopping
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            stop = _Stop(trio.Event(), trio.CancelScope())
            nursery.start_soon(_watch_signals, signals, stop)
            if stop_on_eof:
                nursery.start_soon(_watch_stdin, stop)
            with stop.scope:
                async with Node(config) as node:
                    await node.ready()
                    stop.ready = True
                    # A request leaves no cycles behind, and what the node was started with stays: looking for cycles after every 700 objects
                    # takes some hundredth parts of its time. In a program that embeds a node this is for the program to decide.
                    gc.collect()
                    gc.freeze()
                    gc.set_threshold(50_000, 20, 100)
                    if too_few_files is not None:
                        talk(f"dynamo: {too_few_files}")
                    write(f"ready node={node.name} address={node.address} cluster={UUID(bytes=node.cluster_id)}\n".encode())
                    await stop.asked.wait()
            nursery.cancel_scope.cancel()


async def _watch_signals(signals: AsyncIterator[int], stop: _Stop) -> None:
    async for _ in signals:
        stop.ask()


async def _watch_stdin(stop: _Stop) -> None:
    import trio

    stdin = sys.stdin.fileno()
    await trio.lowlevel.wait_readable(stdin)
    while os.read(stdin, 4096):
        await trio.lowlevel.wait_readable(stdin)
    stop.ask()


def _reason(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to report of those that ended the node together: one of ours, where there is one."""
    own, _ = group.split(DynamoError)
    found: BaseException = own or group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
