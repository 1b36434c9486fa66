"""Every test of a kernel runs as [c] and as [py], over the compiled and the pure twin.

A compiled twin that was not built skips its tests and says so; with "compiled" in DYNAMO_REQUIRE (CI) it fails them.
"""

from __future__ import annotations

import os
from importlib import import_module
from types import ModuleType

import pytest
from hypothesis import settings

from dynamo._core import COMPILED

EXAMPLES = int(os.environ.get("DYNAMO_EXAMPLES", "100"))  # of each property; fewer where only the build is in doubt (ci/try_wheel.py)
settings.register_profile("dev", deadline=None, max_examples=EXAMPLES)
settings.register_profile("ci", deadline=None, max_examples=EXAMPLES, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


class Core:
    """The kernels of one twin as attributes: `core.record`, `core.ring`."""

    def __init__(self, twin: str) -> None:
        self.twin = twin

    def __getattr__(self, kernel: str) -> ModuleType:
        if kernel.startswith("_"):  # Hypothesis asks for `_repr_pretty_` when it shows a failure, which a skip would hide
            raise AttributeError(kernel)
        path = f"dynamo._core._{kernel}_{self.twin}"
        if self.twin == "c" and kernel not in COMPILED:
            pytest.skip(f"the kernel {kernel} has no compiled twin")
        try:
            return import_module(path)
        except ModuleNotFoundError as error:
            if error.name != path or self.twin != "c" or "compiled" in os.environ.get("DYNAMO_REQUIRE", ""):
                raise
            pytest.skip(f"{path} was not built: run `python setup.py build_ext --inplace`")


# Of the session, so that Hypothesis may use it: it is the same in every example.
@pytest.fixture(scope="session", params=["c", "py"])
def core(request: pytest.FixtureRequest) -> Core:
    """Both twins, one after the other."""
    return Core(request.param)


@pytest.fixture(scope="session")
def cores() -> tuple[Core, Core]:
    """Both twins at once, (compiled, pure), for tests that compare them."""
    return Core("c"), Core("py")
