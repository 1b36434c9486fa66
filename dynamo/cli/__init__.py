"""The command line `dynamo`. Thin: a command reads its options, calls the client or the node, and prints.

stdout is data and nothing else, stderr is talk, and exit codes mean the same everywhere (`EXIT_CODES`), so that scripts can rely on all
three. Commands are imported when they are used: `dynamo get` is felt at a prompt, and must not wait for the imports of `dynamo serve`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from dynamo.errors import ConfigError, ConflictError, ConnectionFailed, DynamoError, Timeout, Unavailable

OK, FAILED, USAGE, NOT_FOUND, CONFLICT, UNAVAILABLE, TIMED_OUT, BAD_CONFIGURATION, INTERRUPTED = 0, 1, 2, 3, 4, 5, 6, 7, 130
EXIT_CODES: tuple[tuple[type[DynamoError], int], ...] = (
    (ConflictError, CONFLICT),
    (Unavailable, UNAVAILABLE),
    (ConnectionFailed, UNAVAILABLE),
    (Timeout, TIMED_OUT),
    (ConfigError, BAD_CONFIGURATION),
    (DynamoError, FAILED),
)

_COMMANDS = {
    "serve": "dynamo.cli.serve",
    "demo": "dynamo.cli.demo",
    "version": "dynamo.cli.version",
    "get": "dynamo.cli.keys",
    "put": "dynamo.cli.keys",
    "set": "dynamo.cli.keys",
    "delete": "dynamo.cli.keys",
    "update": "dynamo.cli.update",
    "scan": "dynamo.cli.scan",
    "stats": "dynamo.cli.cluster",
    "cluster": "dynamo.cli.cluster",
    "ring": "dynamo.cli.cluster",
    "simulate": "dynamo.cli.simulate",
    "bench": "dynamo.cli.bench",
}


class _LazyGroup(click.Group):
    """A group whose commands are imported when named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = getattr(import_module(module), f"{cmd_name}_command")
        return command


def _version(ctx: click.Context, param: click.Parameter, asked: bool) -> None:
    if asked:
        from dynamo.cli.version import print_version

        print_version()
        ctx.exit()


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print versions, as `dynamo version` does, and exit.")
def cli() -> None:
    """A highly available, always-writeable key-value store.

    \b
    Exit codes: 0 ok, 1 failure, 2 usage, 3 not found, 4 conflict, 5 unavailable,
    6 timeout, 7 bad configuration, 130 interrupted. stdout is data, stderr is talk.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    if sys.stdout is None:  # closed by whoever started us; found out before anything is done
        print("dynamo: standard output is closed", file=sys.stderr)
        return FAILED
    try:
        code = cli.main(arguments, prog_name="dynamo", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except DynamoError as error:
        applied = "; the write may have been applied, or may be yet" if error.maybe_applied else ""
        print(f"dynamo: {error}{applied}", file=sys.stderr)
        return exit_code(error)
    except OSError as error:
        if not isinstance(error, BrokenPipeError):  # the reader of stdout, such as `head`, has seen enough
            print(f"dynamo: {error.strerror or error}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
        _drop_output()
        return FAILED
    return code if isinstance(code, int) else OK


def _drop_output() -> None:
    """What stdout does not take is dropped; the interpreter would try again at its end, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def exit_code(error: DynamoError) -> int:
    """The exit code that tells of this error."""
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))
