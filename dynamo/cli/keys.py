"""get, put, set, delete: the verbs of the client, one call each."""

from __future__ import annotations

import click

from dynamo.api.context import Context
from dynamo.cli import CONFLICT, NOT_FOUND, OK, options
from dynamo.cli.output import key_fields, result_fields, talk, write, write_json


@click.command("get", short_help="Print the values of a key.")
@options.key
@options.bucket
@click.option("--no-siblings", is_flag=True, help="Exit with 4 when the key has several values.")
@options.output("table", "json", "raw")
@options.at
def get_command(key: bytes, bucket: str, no_siblings: bool, form: str, at: tuple[str, ...], timeout: float) -> int:
    """Print the values of KEY, each and a newline; with -o raw the exact bytes, with -o json the context too.

    Concurrent writes show as several values; put one that merges them with the context that -o json prints. Exits with 3 when there is
    none.
    """
    with options.client(at, timeout) as client:
        result = client.bucket(bucket).get(key)
    if form == "json":
        write_json(result_fields(result, bucket))
    else:
        write(b"".join(value + (b"\n" if form == "table" else b"") for value in result.values))
    if not result.found:
        talk(f"not found; owners that answered: {result.owners_answered}")
        return NOT_FOUND
    if result.context.unseen_siblings:
        talk(f"{result.context.unseen_siblings} more versions do not fit into an answer; put one value with this context, then get again")
    if len(result.siblings) > 1:
        talk(f"{len(result.siblings)} siblings; to merge them, put one value with the context that `get -o json` shows")
        return CONFLICT if no_siblings else OK
    return OK


@click.command("put", short_help="Write a value under a context.", cls=options.WithValue)
@options.key
@options.value
@options.bucket
@options.context
@options.output("table", "json", "raw")
@options.at
def put_command(key: bytes, value: bytes, bucket: str, context: Context | None, form: str, at: tuple[str, ...], timeout: float) -> int:
    """Write VALUE (- reads standard input) to KEY and print the new context.

    It replaces what --context covers, and stands beside what it does not: without --context, beside everything. A token of another key, or one
    that was cut, exits with 1. A VALUE that begins with a dash goes behind `--`: dynamo put KEY -- -5
    """
    with options.client(at, timeout) as client:
        return written(key, bucket, client.bucket(bucket).put(key, value, context=context), form)


@click.command("set", short_help="Replace the value of a key, unread.", cls=options.WithValue)
@options.key
@options.value
@options.bucket
@options.output("table", "json", "raw")
@options.at
def set_command(key: bytes, value: bytes, bucket: str, form: str, at: tuple[str, ...], timeout: float) -> int:
    """Replace whatever the asked node holds of KEY by VALUE (- reads standard input) and print the new context.

    A VALUE that begins with a dash goes behind `--`: dynamo set KEY -- -5
    """
    with options.client(at, timeout) as client:
        return written(key, bucket, client.bucket(bucket).set(key, value), form)


@click.command("delete", short_help="Delete a key.")
@options.key
@options.bucket
@options.context
@click.option("--blind", is_flag=True, help="Delete whatever a read shows now.")
@options.output("table", "json", "raw")
@options.at
def delete_command(key: bytes, bucket: str, context: Context | None, blind: bool, form: str, at: tuple[str, ...], timeout: float) -> int:
    """Delete what --context covers of KEY, or with --blind what is there now, and print the new context. A concurrent write survives."""
    if (context is None) != blind:
        raise click.UsageError("delete takes one of --context TOKEN, to delete what was read, and --blind, to delete what is there now")
    with options.client(at, timeout) as client:
        return written(key, bucket, client.bucket(bucket).delete(key, context=context, blind=blind), form)


def written(key: bytes, bucket: str, context: Context, form: str) -> int:
    """Print what a write returned."""
    if form == "json":
        write_json(key_fields(key, bucket) | {"context": str(context)})
    else:
        write(str(context).encode() + b"\n")
    if context.unseen_siblings:
        count = context.unseen_siblings
        talk(f"{count} sibling{'s' if count > 1 else ''} beside it that this write had not seen; a get shows {'them' if count > 1 else 'it'}")
    return OK
