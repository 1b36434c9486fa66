"""Child processes that open a store of their own, are talked to by lines, and never outlive their test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import dynamo

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start_child() -> Iterator[Start]:
    """start(script, *arguments): run Python source with this very `dynamo`; stdin and stdout are pipes of lines."""
    children: list[subprocess.Popen[str]] = []
    environment = {**os.environ, "PYTHONPATH": str(Path(dynamo.__file__).parents[1])}

    def start(script: str, *arguments: object) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", script, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()
