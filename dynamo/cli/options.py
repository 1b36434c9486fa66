"""Options and arguments that several commands share, and the client they lead to."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from time import monotonic
from typing import IO, Any, TypeVar

import click

from dynamo.api.context import Context
from dynamo.client.addresses import parse_addresses, seconds
from dynamo.client.blocking import Client
from dynamo.client.meeting import one_cluster
from dynamo.config import DEFAULT_PORT
from dynamo.errors import ConfigError, InvalidContext, ValueTooLarge
from dynamo.model.cluster import VALUE_BYTES_MAX

Command = TypeVar("Command", bound=Callable[..., Any])
_TOKEN = re.compile("[A-Za-z0-9_-]+")


class WithValue(click.Command):
    """A command with a VALUE, which a person may begin with a dash."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            hint = f"{error.format_message()} A VALUE that begins with a dash goes behind --, as in `dynamo {ctx.info_name} KEY -- {error.option_name}`."
            raise click.UsageError(hint, ctx) from None


def as_bytes(ctx: click.Context, param: click.Parameter, value: str) -> bytes:
    """An argument as the bytes the shell passed: keys and values need not be text."""
    return os.fsencode(value)


def _bytes_or_stdin(ctx: click.Context, param: click.Parameter, value: str) -> bytes:
    """The same, with `-` for all of standard input."""
    if value != "-":
        return os.fsencode(value)
    if sys.stdin is None:
        raise OSError("standard input is closed")
    return limited(sys.stdin.buffer, "standard input")


def limited(stream: IO[bytes], what: str) -> bytes:
    """All of a stream, which may have no end. Raises ValueTooLarge for more than any bucket takes, of which no more is read."""
    data = stream.read(VALUE_BYTES_MAX + 1)
    if len(data) > VALUE_BYTES_MAX:
        raise ValueTooLarge(f"{what} has more than the {VALUE_BYTES_MAX} bytes that a value may have; nothing was written")
    return data


def _token(ctx: click.Context, param: click.Parameter, value: str | None) -> Context | None:
    """A context token, as `put` and `get -o json` print it.

    What is not even written like one is bad usage. One that was cut on its way is InvalidContext, whether that shows here or at the node.
    """
    try:
        return None if value is None else Context.parse(value)
    except InvalidContext as error:
        if _TOKEN.fullmatch(value or ""):
            raise
        raise click.BadParameter(str(error)) from None


def _addresses(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, ...]:
    """Addresses of nodes, separated by commas."""
    try:
        return parse_addresses(value)
    except ConfigError as error:
        raise click.BadParameter(str(error)) from None


def _timeout(ctx: click.Context, param: click.Parameter, value: float) -> float:
    """A number of seconds above 0."""
    try:
        return seconds(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def at(command: Command) -> Command:
    """--at and --timeout, which `client` takes."""
    command = click.option(
        "--at",
        callback=_addresses,
        metavar="HOST:PORT,...",
        envvar="DYNAMO_AT",
        default=f"127.0.0.1:{DEFAULT_PORT}",
        show_default=True,
        help="Nodes to ask; any one is enough.  [env: DYNAMO_AT]",
    )(command)
    return click.option("--timeout", type=float, callback=_timeout, default=5.0, show_default=True, help="Seconds for all attempts together.")(command)


def output(*formats: str) -> Callable[[Command], Command]:
    """-o, with the formats a command knows; the first is the default."""
    return click.option("-o", "--output", "form", type=click.Choice(formats), default=formats[0], show_default=True, help="Format of the output.")


bucket = click.option("-b", "--bucket", default="default", show_default=True, help="Bucket the key is in.")
context = click.option("--context", metavar="TOKEN", callback=_token, help="Replace what this token covers: the one a get or put of the key printed.")
key = click.argument("key", callback=as_bytes)
value = click.argument("value", callback=_bytes_or_stdin)


def client(addresses: tuple[str, ...], timeout: float) -> Client:
    """The client that --at and --timeout ask for. Raises ConfigError where the addresses are those of several clusters."""
    if len(addresses) == 1:
        return Client(addresses, timeout=timeout)
    began = monotonic()
    cluster_id = one_cluster(addresses, timeout)
    client = Client(addresses, timeout=max(timeout / 2, timeout - (monotonic() - began)))
    client._pool.belongs_to(cluster_id)
    return client
