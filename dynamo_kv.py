"""Where the commands `dynamo` and `dynamo-kv` start: outside the package `dynamo`, to be there when that name leads elsewhere.

The distribution is `dynamo-kv`, its package is `dynamo`, and others install under that import name too: `ai-dynamo` puts parts of a
namespace there (`dynamo/runtime`, `dynamo/_core.abi3.so`, no `__init__.py`). What can happen, and what is done about it:

    another package or module `dynamo` comes first on sys.path, or was written over ours    `main` refuses to run it, and says whose it is
    files within ours were overwritten, or removed with another distribution               an import fails: `main` says likewise
    foreign files lie in our directory and harm none of ours                               ours works, theirs may not: `neighbours`

A namespace elsewhere on sys.path changes nothing: Python prefers a package with an `__init__.py`, wherever it is.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

DISTRIBUTION = "dynamo-kv"
PACKAGE = "dynamo"
_MARK = f'__distribution__ = "{DISTRIBUTION}"'.encode()  # a line of dynamo/__init__.py
_REMEDY = f"Give {DISTRIBUTION} an environment of its own, or remove what is in its way."


def main() -> int:
    """Run the command line and return its exit code: 1, after saying why, where the package `dynamo` is not ours."""
    trouble = _misled()
    if trouble is None:
        try:
            from dynamo.cli import main as run

            return run()
        except ImportError as error:
            if (error.name or "").partition(".")[0] != PACKAGE or not (others := _claimants()):
                raise  # a fault of ours, or a dependency is missing
            trouble = f"the package {PACKAGE} is incomplete: {error}. {_listing(others)} under the same import name."
    print(f"dynamo: {trouble}\n{_REMEDY}", file=sys.stderr)
    return 1


def neighbours() -> str | None:
    """What to tell when other distributions have installed files under our import name, else None. Reads the metadata of every
    installed distribution, which takes tens of milliseconds."""
    others = _claimants()
    if not others:
        return None
    own = set(_claimants(ours=True).get(DISTRIBUTION, ()))
    shared = sorted(own & {path for paths in others.values() for path in paths})
    if shared:
        harm = f"Both install {shared[0]}{f' and {len(shared) - 1} more files' if len(shared) > 1 else ''}, so one of them is broken."
    else:
        harm = f"{DISTRIBUTION} works, but the other may not: modules that both have, such as {PACKAGE}._core, are ours."
    return f"{_listing(others)} under the import name {PACKAGE}, too. {harm} {_REMEDY}"


def _misled() -> str | None:
    """Where the import name leads, if not to our package. It looks without importing: who knows what that would run."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        found = f"{', '.join(spec.submodule_search_locations or ())}, without an __init__.py" if spec else "nothing"
        why = f"Files of {DISTRIBUTION} are missing, perhaps removed with another distribution that had written over them: reinstall it."
    else:
        with open(spec.origin, "rb") as file:
            if _MARK in file.read(4096):
                return None
        found = f"{spec.origin}, which is not of {DISTRIBUTION}"
        why = "No installed distribution says that it is its own; look at PYTHONPATH."
    if others := _claimants():
        why = f"{_listing(others)} under this name."
    return f"the import name {PACKAGE} leads to {found}. {why}"


def _claimants(ours: bool = False) -> dict[str, list[str]]:
    """Distributions that have files under the import name, as "NAME VERSION" -> paths; either ours alone or all others."""
    from importlib.metadata import distributions  # here: it costs more than all the rest, and is needed only when something is wrong

    claimants: dict[str, list[str]] = {}
    for distribution in distributions():
        record = distribution.read_text("RECORD") or ""
        lines = [line for line in record.splitlines() if line.startswith((f"{PACKAGE}/", f"{PACKAGE}.py,")) and "__pycache__" not in line]
        named = PACKAGE in (distribution.read_text("top_level.txt") or "").split()
        if (lines or named) and (distribution.name == DISTRIBUTION) is ours:
            claimants.setdefault(distribution.name if ours else f"{distribution.name} {distribution.version}", [line.split(",")[0] for line in lines])
    return claimants


def _listing(others: dict[str, list[str]]) -> str:
    return f"{' and '.join(sorted(others))} {'have' if len(others) > 1 else 'has'} installed files"


if __name__ == "__main__":
    sys.exit(main())
