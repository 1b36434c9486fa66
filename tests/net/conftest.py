"""Lets the tests of this directory import `rig`, and runs them over both ways to wait for sockets, as [nested] and [portable]."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dynamo.net.polling import VARIABLE, nesting_works

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True, params=["nested", "portable"])
def loop(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which poller every reactor of the test has."""
    if request.param == "nested" and not nesting_works():
        pytest.skip("this system has no nested polling")
    monkeypatch.setenv(VARIABLE, request.param)
    return str(request.param)
