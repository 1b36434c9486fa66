"""scan: the keys of a bucket, as they come."""

from __future__ import annotations

import click

from dynamo.api import urlsafe
from dynamo.api.result import Result
from dynamo.cli import FAILED, OK, options
from dynamo.cli.output import line, result_fields, talk, write, write_json
from dynamo.errors import DynamoError


def _cursor(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A cursor as a scan named it; what is inside is for nodes to judge."""
    try:
        urlsafe.decode(value or "")
    except ValueError:
        raise click.BadParameter("this is no cursor; pass it exactly as a scan named it") from None
    return value


@click.command("scan", short_help="List the keys of a bucket.")
@click.argument("prefix", callback=options.as_bytes, default="")
@options.bucket
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Stop after so many keys.")
@click.option("--cursor", callback=_cursor, metavar="CURSOR", help="Go on behind the key at which another scan stopped: the cursor it named.")
@options.output("table", "json", "raw")
@options.at
def scan_command(prefix: bytes, bucket: str, limit: int | None, cursor: str | None, form: str, at: tuple[str, ...], timeout: float) -> int:
    """Print the keys that begin with PREFIX and have a value; all without it. They are in order within a partition only.

    A line has the key, a tab and a value, one line for each sibling, with what is not printable escaped; with -o json it is the object that
    `get -o json` prints for the key; with -o raw only the exact keys are printed, each followed by a zero byte, as `xargs -0` takes them.
    A key whose stored row is damaged at too many owners is named on stderr, and the exit code is 1; all others are printed.
    Where the scan stops early, stderr names the cursor to go on with. --timeout is for each page of it.
    """
    count, last = 0, None
    code = OK
    with options.client(at, timeout) as client:
        try:
            for result in client.bucket(bucket).scan(prefix, limit=limit, cursor=cursor):
                if result.error is None:
                    _print(result, bucket, form)
                else:
                    talk(str(result.error))
                    code = FAILED  # after all others
                count, last = count + 1, result.cursor
        except DynamoError:
            if last is not None:
                talk(f"to go on: --cursor {last}")
            raise
    if count == limit:
        talk(f"stopped after {count} keys; to go on: --cursor {last}")
    return code


def _print(result: Result, bucket: str, form: str) -> None:
    if form == "json":
        write_json(result_fields(result, bucket))
    elif form == "raw":
        write(result.key + b"\0")
    else:
        write(b"".join(line(result.key, value) for value in result.values))
