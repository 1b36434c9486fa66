"""`dynamo demo`: a cluster on this machine to play with, gone when it ends."""

from __future__ import annotations

import shutil
import signal
import socket
import tempfile
from pathlib import Path
from types import FrameType

import click

from dynamo.cli import OK, installation
from dynamo.cli.output import talk, write
from dynamo.config import DEFAULT_PORT
from dynamo.errors import ConfigError
from dynamo.testing.cluster import NodeDied, ServedCluster


@click.command("demo", short_help="Start a small cluster on this machine.")
@click.option("--nodes", type=click.IntRange(1, 16), default=3, show_default=True, help="How many nodes.")
@click.option("--keep", metavar="DIR", help="Keep the data in DIR rather than delete it at the end.")
def demo_command(nodes: int, keep: str | None) -> int:
    """Start a cluster of a few nodes on free ports, until Ctrl-C or SIGTERM. Prints each node's ready line, then commands to try."""
    directory: Path | None = None
    cluster: ServedCluster | None = None
    for number in (signal.SIGTERM, signal.SIGINT):  # both by name: a shell starts its background jobs with SIGINT ignored
        signal.signal(number, _interrupt)
    try:
        directory = _writable(Path(keep)) if keep else Path(tempfile.mkdtemp(prefix="dynamo-demo-"))
        cluster = ServedCluster(directory, nodes)
        if _is_free(DEFAULT_PORT):
            _start_first_at(cluster, DEFAULT_PORT)  # where client commands look without --at
        with cluster:
            for node in cluster.nodes:
                write(f"{node.ready_line}\n".encode())
            _invite(cluster)
            installation.warn()
            signal.pause()
    except KeyboardInterrupt:
        return OK
    finally:
        if cluster is not None:
            cluster.stop()
        if directory is not None and not keep:
            shutil.rmtree(directory, ignore_errors=True)
    return OK


def _writable(directory: Path) -> Path:
    """The directory, made when absent. Raises ConfigError where nothing can be kept in it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        raise ConfigError(f"--keep {directory}: {error.strerror}; give a directory that can be written") from None
    return directory


def _invite(cluster: ServedCluster) -> None:
    """Three commands to try, which show that any node takes a write and any other serves it."""
    first, last = cluster.addresses[0], cluster.addresses[-1]
    talk(
        f"\ntry:\n  dynamo set --at {first} alice hello\n  dynamo get --at {last} alice\n  dynamo cluster status --at {first}\n"
        f"\nkill a node (kill -9 {cluster.nodes[-1].pid}) and try again; Ctrl-C ends the demo"
    )


def _start_first_at(cluster: ServedCluster, port: int) -> None:
    """Start the first node there. Where that fails it is left to start with the others, at any free port: another demo may have been quicker."""
    first = cluster.nodes[0]
    anywhere, first.address = first.address, f"127.0.0.1:{port}"
    try:
        first.start()
    except NodeDied:
        first.address = anywhere


def _is_free(port: int) -> bool:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
