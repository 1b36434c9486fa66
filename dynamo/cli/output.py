"""Printing: bytes as they are, or one line of JSON with exactly the documented fields."""

from __future__ import annotations

import json
import sys
from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from dynamo.api.result import Result, Sibling


def write(data: bytes) -> None:
    """Write bytes to stdout as they are."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def write_json(document: dict[str, Any]) -> None:
    """Write one line of JSON, in UTF-8 whatever the locale."""
    write(json_line(document))


def json_line(document: dict[str, Any]) -> bytes:
    """That line."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def write_table(rows: Sequence[Sequence[str]]) -> None:
    """Write rows of cells in aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        write(line.rstrip().encode() + b"\n")


def line(*cells: bytes) -> bytes:
    """Cells on one line, with tabs between them; what would break the line, or is no text, is escaped as in Python."""
    return "\t".join(cell.decode("utf-8", "backslashreplace").translate(_ESCAPED) for cell in cells).encode() + b"\n"


_ESCAPED = {code: repr(chr(code))[1:-1] for code in (*range(32), 127)}


def talk(text: str) -> None:
    """Say something to the person at the prompt."""
    print(text, file=sys.stderr)


def key_fields(key: bytes, bucket: str) -> dict[str, Any]:
    """`key` and `bucket`, with `key_encoding` for a key that is not UTF-8."""
    text, encoding = _as_text(key)
    return {"key": text, "bucket": bucket} | ({"key_encoding": encoding} if encoding != "utf-8" else {})


def result_fields(result: Result, bucket: str) -> dict[str, Any]:
    """The documented JSON of a read."""
    return key_fields(result.key, bucket) | {
        "found": result.found,
        "context": str(result.context),
        "siblings": [_sibling_fields(sibling) for sibling in result.siblings],
    }


def _sibling_fields(sibling: Sibling) -> dict[str, Any]:
    text, encoding = _as_text(sibling.value)
    time = datetime.fromtimestamp(sibling.time, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    return {"value": text, "encoding": encoding, "dot": str(sibling.dot), "time": time}


def _as_text(data: bytes) -> tuple[str, str]:
    """(text, encoding): UTF-8 where the bytes are that, else base64."""
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        return b64encode(data).decode("ascii"), "base64"
