"""The compiled kernels; everything else about the package is in pyproject.toml.

DYNAMO_EXTENSIONS at build time:
    auto     (default) compile what can be compiled; where there is no compiler, the pure-Python twins do the work
    require  fail when a kernel does not compile: for releases and CI, where a silent pure build would go unnoticed
    off      compile nothing
"""

from __future__ import annotations

import os

from setuptools import Extension, setup

# dynamo/_core/_NAME_c.pyx. dynamo/_core/__init__.py has the same list; a test compares both with the files.
COMPILED = ("record",)


def extensions(choice: str) -> list[Extension]:
    """The extensions to build. Raises SystemExit for a choice that is none."""
    if choice not in ("auto", "require", "off"):
        raise SystemExit(f"DYNAMO_EXTENSIONS={choice!r}: choose auto, require or off")
    if choice == "off":
        return []
    from Cython.Build import cythonize

    sources = [Extension(f"dynamo._core._{name}_c", [f"dynamo/_core/_{name}_c.pyx"]) for name in COMPILED]
    built: list[Extension] = cythonize(sources, build_dir="build/cython")
    for extension in built:
        extension.optional = choice == "auto"  # on the result: cythonize() drops it from what it is given
    return built


setup(ext_modules=extensions(os.environ.get("DYNAMO_EXTENSIONS", "auto")))
