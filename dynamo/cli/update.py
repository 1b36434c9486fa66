"""update: read, let a command make the new value, write it under the context of the read."""

from __future__ import annotations

import os
import subprocess

import click

from dynamo.cli import FAILED, options
from dynamo.cli.keys import written
from dynamo.cli.output import json_line, result_fields, talk


@click.command("update", short_help="Replace the values of a key by what a command makes of them.", context_settings={"allow_interspersed_args": False})
@options.bucket
@options.output("table", "json", "raw")
@options.at
@options.key
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND [ARG]...")
def update_command(key: bytes, command: tuple[str, ...], bucket: str, form: str, at: tuple[str, ...], timeout: float) -> int:
    """Read KEY, run COMMAND with what `get -o json` prints of it on standard input, write what it prints, and print the new context. Options
    stand before KEY; all behind COMMAND is COMMAND's.

    What COMMAND prints becomes the value, byte for byte, and replaces what was read: all siblings, and nothing that was written meanwhile, which
    stays beside it. An absent KEY is read as "found":false. COMMAND runs once; where it exits with another code than 0 nothing is written, and the
    exit code is 1. --timeout is for the read and for the write, each.

    \b
      dynamo update cart jq -j '[.siblings[].value | tonumber] | add + 1'
    """
    with options.client(at, timeout) as client:
        place = client.bucket(bucket)
        result = place.get(key)
        done = subprocess.run([os.fsencode(word) for word in command], input=json_line(result_fields(result, bucket)), stdout=subprocess.PIPE, check=False)
        if done.returncode != 0:
            ended = f"was ended by signal {-done.returncode}" if done.returncode < 0 else f"exited with {done.returncode}"
            talk(f"dynamo: {command[0]} {ended}; nothing was written")
            return FAILED
        return written(key, bucket, place.put(key, done.stdout, context=result.context), form)
