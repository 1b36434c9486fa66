"""update: read, let a command make the new value, write it under the context of the read."""

from __future__ import annotations

import os
import subprocess
import tempfile

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
        output, code = _run(command, json_line(result_fields(result, bucket)))
        if code != 0:
            ended = f"was ended by signal {-code}" if code < 0 else f"exited with {code}"
            talk(f"dynamo: {command[0]} {ended}; nothing was written")
            return FAILED
        return written(key, bucket, place.put(key, output, context=result.context), form)


def _run(command: tuple[str, ...], given: bytes) -> tuple[bytes, int]:
    """(what a command prints, its exit code). It gets `given` from a file: it may print much before it reads. Raises ValueTooLarge, and ends the
    command, when it prints more than a value may have."""
    with tempfile.TemporaryFile() as file:
        file.write(given)
        file.seek(0)
        with subprocess.Popen([os.fsencode(word) for word in command], stdin=file, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            try:
                output = options.limited(process.stdout, f"what {command[0]} prints")
            except BaseException:
                process.kill()
                raise
    return output, process.returncode
