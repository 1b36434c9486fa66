"""`dynamo version`: what to name in a bug report."""

from __future__ import annotations

import platform

import click

from dynamo import __version__
from dynamo.cli import OK, installation
from dynamo.cli.output import write


@click.command("version")
def version_command() -> int:
    """Print the versions of dynamo, Python and LMDB, and whether the compiled core is in use."""
    print_version()
    return OK


def print_version() -> None:
    """The same for `dynamo --version`."""
    from dynamo._core import CORE

    write(f"version={__version__} python={platform.python_version()} core={CORE} lmdb={_lmdb_version()}\n".encode())
    installation.warn()


def _lmdb_version() -> str:
    try:
        import lmdb
    except ImportError:
        return "none"
    return ".".join(map(str, lmdb.version()))
