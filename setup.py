"""The compiled kernels; everything else about the package is in pyproject.toml.

DYNAMO_EXTENSIONS at build time:
    auto     (default) compile where there is a C compiler; where there is none, build the pure-Python wheel and say so
    require  fail when a kernel does not compile: for releases and CI, where a silent pure build would go unnoticed
    off      compile nothing: the pure-Python wheel, py3-none-any
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from setuptools import Distribution, Extension, setup
from setuptools.errors import BaseError, CCompilerError

# dynamo/_core/_NAME_c.pyx. dynamo/_core/__init__.py has the same list; a test compares both with the files.
COMPILED = ("record", "row", "ring", "frame", "merkle", "histogram", "shape")

# What pip asks for before it builds, each time in a process of its own; what is said there would be said twice.
METADATA_COMMANDS = frozenset(("egg_info", "dist_info"))


def extensions(choice: str) -> list[Extension]:
    """The extensions to build. Raises SystemExit for a choice that is none."""
    if choice not in ("auto", "require", "off"):
        raise SystemExit(f"DYNAMO_EXTENSIONS={choice!r}: choose auto, require or off")
    if choice == "off" or (choice == "auto" and not can_compile()):
        return []
    from Cython.Build import cythonize

    # Python's own flags are -g -O3: twice the time to compile, for code that runs no faster.
    flags = [] if os.name == "nt" or "CFLAGS" in os.environ else ["-O2", "-g0"]
    sources = [Extension(f"dynamo._core._{name}_c", [f"dynamo/_core/_{name}_c.pyx"], extra_compile_args=flags) for name in COMPILED]
    built: list[Extension] = cythonize(sources, build_dir="build/cython")
    for extension in built:
        extension.optional = choice == "auto"  # on the result: cythonize() drops it from what it is given
    return built


def can_compile() -> bool:
    """Whether compiler, linker and the headers of this Python are here, tried on an empty module.

    `optional` alone would do for the installation, but a wheel that was to have extensions is tagged for one Python on one platform even
    when none of them compiled. So what cannot be compiled must not be asked for.
    """
    with TemporaryDirectory() as scratch:
        source = Path(scratch, "probe.c")
        source.write_text("#include <Python.h>\nPyMODINIT_FUNC PyInit_probe(void) { return NULL; }\n")
        build = Distribution({"ext_modules": [Extension("probe", [str(source)])]}).get_command_obj("build_ext")
        build.build_lib = build.build_temp = scratch
        build.ensure_finalized()
        try:
            build.run()
        except (BaseError, CCompilerError):
            if not METADATA_COMMANDS.intersection(sys.argv):
                print("dynamo: no kernel can be compiled here, so the pure-Python core is built; DYNAMO_EXTENSIONS=require shows why", file=sys.stderr)
            return False
    return True


# Each kernel is a C file of its own: as many at a time as there are processors.
setup(ext_modules=extensions(os.environ.get("DYNAMO_EXTENSIONS", "auto")), options={"build_ext": {"parallel": os.cpu_count() or 1}})
