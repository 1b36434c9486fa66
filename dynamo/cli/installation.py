"""What is worth knowing about the installation a command runs from, said once on stderr: by `serve`, `demo` and `version`, whose users can
wait for a look around, and by benchmarks; not by `get` and `put`, which scripts run in thousands."""

from __future__ import annotations

import os

from dynamo.cli.output import talk


def warn() -> None:
    """Say whether the pure core is in use, and whether another distribution lies under our import name."""
    from dynamo._core import CORE

    if CORE == "pure":
        asked = os.environ.get("DYNAMO_PURE") == "1"
        reason = "as DYNAMO_PURE=1 asks" if asked else "as there is no compiled one here for this Python"
        talk(f"dynamo: the pure-Python core is in use, {reason}; it is several times slower")
    import dynamo_kv

    other = dynamo_kv.neighbours()
    if other is not None:
        talk(f"dynamo: {other}")
