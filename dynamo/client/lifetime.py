"""What clients have in common over their life: where they were made, that they cannot be copied, and the warning about those left open."""

from __future__ import annotations

import sys
import warnings
from typing import NoReturn


class OfOneProcess:
    """Mixed into what stands for connections, which no copy can have."""

    __slots__ = ()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Raises TypeError, to pickle and to copy."""
        raise TypeError(
            f"a {type(self).__name__} cannot be pickled or copied, as its connections cannot: pass on the addresses (or the key, bucket or cursor) "
            "instead, and make a client of them in each process; threads share one"
        )


def made_at() -> str:
    """The file and line, outside of this package, that is calling now."""
    frame = sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).partition(".")[0] == "dynamo":
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def warn_unclosed(client: object, made: str) -> None:
    """Say that a client was dropped and not closed."""
    warnings.warn(f"unclosed {client!r}, made at {made}: close it, or use it as a context manager", ResourceWarning, stacklevel=3, source=client)
