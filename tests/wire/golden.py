"""The golden frames as messages. In the file, bytes are {"hex": ...} and everything else is itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent.parent / "golden" / "frames_v1.json"
DOCUMENT = json.loads(FILE.read_text())


def _value(encoded: Any) -> Any:
    if isinstance(encoded, list):
        return tuple(map(_value, encoded))
    return bytes.fromhex(encoded["hex"]) if isinstance(encoded, dict) else encoded


FRAMES = {name: (_value(case["message"]), bytes.fromhex(case["frame"])) for name, case in DOCUMENT["frames"].items()}
BY_TYPE = {message[0]: message for message, _ in FRAMES.values()}
SECRET = bytes.fromhex(DOCUMENT["secret"])
