"""An exception at every line of some code, one run after another: what Ctrl-C may do."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import CodeType, FrameType
from typing import Any


class Interrupted(BaseException):
    """Stands for KeyboardInterrupt."""


def interrupted_at_each_line(run: Callable[[], object], codes: set[CodeType]) -> Iterator[tuple[str, int]]:
    """Run `run` again and again, each time broken off one line later in the functions with these codes; yields after each run, with the line."""
    at = 0
    while True:
        left, place = at, None

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal left, place
            if frame.f_code not in codes:
                return None
            if event == "line" and place is None:
                if left == 0:
                    place = frame.f_code.co_name, frame.f_lineno
                    raise Interrupted
                left -= 1
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            with suppress(Interrupted):
                run()
        finally:
            sys.settrace(before)
        if place is None:
            return
        yield place
        at += 1


def codes_of(*classes: type) -> set[CodeType]:
    """The codes of all functions of these classes, but for finalizers, in which an exception reaches nobody."""
    found = set()
    for each in classes:
        for name, function in vars(each).items():
            function = getattr(function, "__func__", function)
            if hasattr(function, "__code__") and name != "__del__":
                found.add(function.__code__)
    return found
