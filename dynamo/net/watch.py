"""A look at the data directory now and then, so that an idle node too says in its log that its directory is gone. Writes look for themselves."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from dynamo.errors import StorageFailed

PERIOD_S = 1.0
_log = logging.getLogger("dynamo.node")


async def watch(check: Callable[[], None], period_s: float = PERIOD_S) -> None:
    """Log what `check` raises when it begins to, and when it has ended. Runs until cancelled."""
    said = ""
    while True:
        await trio.sleep(period_s)
        try:
            check()
        except StorageFailed as error:
            if str(error) != said:
                said = str(error)
                _log.error("%s", said)
        else:
            if said:
                said = ""
                _log.warning("the data file is back where it was: writes go on")
