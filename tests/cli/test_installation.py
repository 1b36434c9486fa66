"""The commands beside foreign packages of the name `dynamo`: elsewhere on the path, in the same directory, over our files.

Each test has a directory of installed packages of its own: a copy of ours, the metadata that pip would write, and what the test adds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import dynamo
import dynamo_kv

START = "import sys, dynamo_kv; sys.exit(dynamo_kv.main())"
Start = Callable[..., subprocess.CompletedProcess[str]]


def install(site: Path, name: str, files: dict[str, str]) -> None:
    """Put files into `site` as the distribution `name`, version 1.2."""
    for path, text in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text)
    record(site, name, sorted(files))


def record(site: Path, name: str, paths: list[str]) -> None:
    information = site / f"{name.replace('-', '_')}-1.2.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (information / "RECORD").write_text("".join(f"{path},,\n" for path in paths))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Installed packages, dynamo-kv among them."""
    site = tmp_path / "site"
    package = Path(dynamo.__file__).parent
    shutil.copytree(package, site / "dynamo")
    shutil.copy(dynamo_kv.__file__, site / "dynamo_kv.py")
    record(site, "dynamo-kv", [path.relative_to(site).as_posix() for path in site.rglob("*.py")])
    return site


@pytest.fixture
def start(site: Path, tmp_path: Path) -> Start:
    def start(*arguments: str, before: Path | None = None, others: bool = True, pure: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command with `before` in front of the installed packages, and behind them, with `others`, what is installed here."""
        path = [str(entry) for entry in (before, site, *(sys.path if others else ())) if entry]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "DYNAMO_PURE": pure}
        python = [sys.executable] if others else [sys.executable, "-S"]
        return subprocess.run([*python, "-c", START, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True)

    return start


def works(done: subprocess.CompletedProcess[str]) -> bool:
    return done.returncode == 0 and done.stdout.startswith("version=")


def refuses(done: subprocess.CompletedProcess[str], *said: str) -> bool:
    return done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr and all(text in done.stderr for text in said)


def test_alone_it_works_and_says_nothing(start: Start) -> None:
    done = start("version")
    assert works(done) and "import name" not in done.stderr


@pytest.mark.parametrize("file", ["dynamo/__init__.py", "dynamo.py"])
def test_a_package_before_ours_is_named_and_not_run(start: Start, tmp_path: Path, file: str) -> None:
    install(tmp_path / "before", "dynamo-release", {file: "raise SystemExit('the foreign package ran')\n"})
    done = start("version", before=tmp_path / "before")
    assert refuses(done, str(tmp_path / "before" / file), "dynamo-release 1.2", "an environment of its own")


def test_a_package_before_ours_that_nobody_installed(start: Start, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "dynamo.py").write_text("")
    assert refuses(start("get", "k", before=tmp_path / "work"), str(tmp_path / "work" / "dynamo.py"), "PYTHONPATH")


def test_a_namespace_elsewhere_is_told_of_and_changes_nothing(start: Start, tmp_path: Path) -> None:
    install(tmp_path / "before", "ai-dynamo", {"dynamo/runtime/__init__.py": ""})
    done = start("version", before=tmp_path / "before")
    assert works(done) and "ai-dynamo 1.2 has installed files under the import name dynamo" in done.stderr


def test_a_namespace_in_our_directory_is_told_of_and_changes_nothing(start: Start, site: Path) -> None:
    install(site, "ai-dynamo", {"dynamo/runtime/__init__.py": ""})
    install(site, "ai-dynamo-runtime", {"dynamo/_core.py": "raise SystemExit('the foreign module ran')\n", "dynamo/_core.pyi": ""})
    done = start("version")
    assert works(done) and "ai-dynamo 1.2 and ai-dynamo-runtime 1.2 have installed files" in done.stderr
    assert "the other may not" in done.stderr
    assert start("get", "--help").returncode == 0


def test_a_package_over_ours_is_named_and_not_run(start: Start, site: Path) -> None:
    install(site, "dynamo-release", {"dynamo/__init__.py": "raise SystemExit('the foreign package ran')\n"})
    assert refuses(start("version"), "dynamo-release 1.2", "leads to")


def test_a_module_over_ours_is_named(start: Start, site: Path) -> None:
    install(site, "other", {"dynamo/client/blocking.py": ""})
    assert refuses(start("get", "k"), "the package dynamo is incomplete", "dynamo.client.blocking", "other 1.2")
    done = start("version")
    assert works(done) and "Both install dynamo/client/blocking.py, so one of them is broken" in done.stderr


def test_files_that_went_with_another_distribution_are_missed(start: Start, site: Path) -> None:
    (site / "dynamo" / "__init__.py").unlink()
    assert refuses(start("version", others=False), str(site / "dynamo"), "without an __init__.py", "reinstall it")
    shutil.rmtree(site / "dynamo")
    assert refuses(start("version", others=False), "leads to nothing")


def test_a_missing_dependency_is_not_blamed_on_others(start: Start, site: Path, tmp_path: Path) -> None:
    install(site, "ai-dynamo", {"dynamo/runtime/__init__.py": ""})
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / "click.py").write_text("raise ModuleNotFoundError('No module named click', name='click')\n")
    done = start("version", before=tmp_path / "before")
    assert done.returncode == 1 and "Traceback" in done.stderr and "ai-dynamo" not in done.stderr


def test_a_fault_of_ours_is_not_blamed_on_others(start: Start, site: Path) -> None:
    (site / "dynamo" / "client" / "blocking.py").write_text("")
    done = start("get", "k")
    assert done.returncode == 1 and "Traceback" in done.stderr and "cannot import name" in done.stderr


@pytest.mark.parametrize("command", [["version"], ["serve", "--data", "node", "--listen", "nowhere.invalid:1"]])
@pytest.mark.parametrize("pure", ["1", ""])
def test_the_pure_core_is_told_of_once(start: Start, site: Path, command: list[str], pure: str) -> None:
    for kernel in (site / "dynamo" / "_core").glob("*.so"):
        kernel.unlink()
    done = start(*command, pure=pure)
    assert done.stderr.count("pure-Python core") == 1
    assert ("as DYNAMO_PURE=1 asks" in done.stderr) == bool(pure)
