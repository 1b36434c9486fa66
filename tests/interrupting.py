"""Raises an exception once at a chosen place of some code, as a signal handler would: the harness of tests that nothing stays taken.

`places(call, modules)` runs a call and returns the lines of these modules that it went through; `interrupted(call, place)` runs it again and raises
`Interrupted` in front of that line, the first time it comes there. `opcodes=True` does it in front of each instruction instead, which is finer than any
signal can be: those are heard after a call and where a loop turns.

Code that lets go of something has to begin somewhere: what a `__del__` or the handler of an exception does is not interrupted again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType, ModuleType
from typing import Any

Place = tuple[CodeType, int]


class Interrupted(BaseException):
    """As KeyboardInterrupt is: no Exception."""


def places(call: Callable[[], Any], modules: list[ModuleType], *, opcodes: bool = False) -> list[Place]:
    """Where the call comes by in these modules, in this thread, each once and in order."""
    met: dict[Place, None] = {}

    def note(frame: FrameType, at: int) -> None:
        met.setdefault((frame.f_code, at))

    with _traced(modules, note, opcodes):
        call()
    return list(met)


def interrupted(call: Callable[[], Any], place: Place, modules: list[ModuleType], *, opcodes: bool = False) -> bool:
    """Run the call, with Interrupted raised in front of the place. Whether it came there; what the call makes of it reaches the caller."""
    came = []

    def strike(frame: FrameType, at: int) -> None:
        if not came and (frame.f_code, at) == place:
            came.append(frame.f_code.co_name)
            raise Interrupted(f"{place[0].co_qualname} {place[1]}")

    try:
        with _traced(modules, strike, opcodes):
            call()
    except Interrupted:
        pass
    return bool(came)


@contextmanager
def _traced(modules: list[ModuleType], see: Callable[[FrameType, int], None], opcodes: bool) -> Iterator[None]:
    files = {module.__file__ for module in modules}

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        if event == ("opcode" if opcodes else "line"):
            see(frame, frame.f_lasti if opcodes else frame.f_lineno)
        return local

    def begin(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = opcodes, not opcodes
        return local

    before = sys.gettrace()
    sys.settrace(begin)
    try:
        yield
    finally:
        sys.settrace(before)
