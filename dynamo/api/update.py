"""Read, change, write: the step in the middle of `update`, the same for every kind of store.

`update` is no compare-and-set. Two that race both succeed and leave siblings; the next read or update sees both values and merges them.
So the function given to it must expect several values, and must be able to run more than once.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, Final

from dynamo.api.result import Result


class Sentinel(Enum):
    """Values that stand for no value; each equals only itself."""

    MISSING = "MISSING"
    DELETE = "DELETE"

    def __repr__(self) -> str:
        return f"dynamo.{self.name}"


MISSING: Final = Sentinel.MISSING
"""No default: the function of an `update` of an absent key gets an empty list."""
DELETE: Final = Sentinel.DELETE
"""Returned by the function of an `update` to delete the key instead of writing it."""

Change = Callable[[list[Any]], Any]


def changed(result: Result, change: Change, default: Any = MISSING) -> Any:
    """The value that is to replace what the result shows, or DELETE. `change` gets the live values, or [default] where there are none."""
    values = list(result.values)
    if not values and default is not MISSING:
        values = [default]
    return change(values)
