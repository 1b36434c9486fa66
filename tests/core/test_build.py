"""What is compiled, which core runs, and what the distributions contain. Builds happen in a copy of the tree."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

import dynamo
import dynamo._core
from dynamo import errors

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "dynamo" / "_core"

checkout = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="not run from a checkout")
can_build = pytest.mark.skipif(find_spec("setuptools") is None or find_spec("Cython") is None, reason="setuptools and Cython are not installed")


def names_in_setup() -> tuple[str, ...]:
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "COMPILED":
            return tuple(ast.literal_eval(node.value))
    raise AssertionError("setup.py has no list COMPILED")


@checkout
def test_one_list_of_compiled_kernels() -> None:
    on_disk = sorted(path.name.removeprefix("_").removesuffix("_c.pyx") for path in KERNELS.glob("*.pyx"))
    assert sorted(names_in_setup()) == on_disk
    assert names_in_setup() == dynamo._core.COMPILED


@checkout
def test_every_compiled_kernel_has_a_pure_twin() -> None:
    for path in (ROOT / "dynamo").rglob("*.pyx"):
        assert path.with_name(path.name.replace("_c.pyx", "_py.py")).exists(), path


def run(code: str, **environment: str) -> str:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_core_that_runs() -> None:
    show = "from dynamo._core import CORE, record; print(CORE, record.__name__)"
    assert run(show, DYNAMO_PURE="1") == "pure dynamo._core._record_py"
    chosen = run(show, DYNAMO_PURE="")
    if "compiled" in os.environ.get("DYNAMO_REQUIRE", ""):
        assert chosen == "compiled dynamo._core._record_c"
    assert chosen in ("compiled dynamo._core._record_c", "pure dynamo._core._record_py")


def test_a_compiled_kernel_that_does_not_load_is_an_error(tmp_path: Path) -> None:
    copy_package(tmp_path)
    (tmp_path / "dynamo" / "_core" / "_record_c.py").write_text("import a_library_that_is_missing\n")
    show = "import dynamo._core"
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run(f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {show}", DYNAMO_PURE="")
    assert "a_library_that_is_missing" in caught.value.stderr


def test_every_error_is_a_public_name() -> None:
    made = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, errors.DynamoError)}
    public = {name for name, module in dynamo._MODULES.items() if module == "dynamo.errors"}
    assert made == public
    for name in public:
        assert getattr(dynamo, name) is getattr(errors, name)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = dynamo.no_such_name


def test_type_checkers_see_the_public_names() -> None:
    """What is imported for them alone is the table that Python looks names up in, and each name exists."""
    (block,) = [node for node in ast.parse(inspect.getsource(dynamo)).body if isinstance(node, ast.If)]
    assert isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
    seen = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for name in node.names:
            assert name.asname == name.name, f"only `{name.name} as {name.name}` is public to checkers"
            seen[name.name] = node.module
    assert seen == dynamo._MODULES
    assert {*dynamo.__all__, "open"} == {"__version__", *dynamo._MODULES} <= set(dir(dynamo))
    for name in dynamo._MODULES:
        getattr(dynamo, name)


def test_importing_all_names_leaves_those_of_python_alone() -> None:
    hidden = run("import builtins\nfrom dynamo import *\nprint(sorted(set(globals()) & set(vars(builtins))), open is builtins.open, Store.__name__)")
    assert hidden.endswith("True Store") and "'open'" not in hidden
    assert run("import dynamo\nprint(dynamo.open.__module__)") == "dynamo.store"


# --- distributions ----------------------------------------------------------------------------------------------------


def copy_package(target: Path) -> None:
    """The package without compiled kernels: of the checkout where there is one, since an installed one lacks the sources of kernels."""
    source = ROOT / "dynamo" if (ROOT / "setup.py").exists() else Path(inspect.getfile(dynamo)).parent
    shutil.copytree(source, target / "dynamo", ignore=shutil.ignore_patterns("*.so", "*.c", "__pycache__"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the distributions are built from."""
    copy_package(tmp_path)
    for name in ("dynamo_kv.py", "setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def small_tree(tree: Path) -> Path:
    """The same with one kernel: what becomes of one becomes of all, and translating each takes a second."""
    setup = tree / "setup.py"
    kept = names_in_setup()[-1]
    setup.write_text(re.sub(r"^COMPILED = .*$", f"COMPILED = ({kept!r},)", setup.read_text(), flags=re.MULTILINE))
    for path in (tree / "dynamo" / "_core").glob("*.pyx"):
        if path.stem != f"_{kept}_c":
            path.unlink()
    return tree


def build(tree: Path, extensions: str, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DYNAMO_EXTENSIONS": extensions, **environment}
    command = (sys.executable, "setup.py", "-q", *command, "--dist-dir", "out")
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)


def wheel_names(tree: Path) -> list[str]:
    (wheel,) = (tree / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


BROKEN_COMPILER = {"CC": "false", "CXX": "false", "LDSHARED": "false"}
NO_COMPILER = {"PATH": os.devnull, "CC": "cc", "CXX": "c++"}
NO_LINKER = {"LDSHARED": "false"}
PURE_WHEEL = f"dynamo_kv-{dynamo.__version__}-py3-none-any.whl"


@checkout
@can_build
def test_a_wheel_without_extensions(tree: Path) -> None:
    done = build(tree, "off", "bdist_wheel")
    assert done.returncode == 0, done.stderr
    names = wheel_names(tree)
    packages = {path.parent.relative_to(tree).as_posix() for path in (tree / "dynamo").rglob("__init__.py")}
    assert {f"{package}/__init__.py" for package in packages} <= set(names)
    assert {"dynamo/py.typed", "dynamo_kv.py"} <= set(names)
    assert not [name for name in names if name.endswith((".so", ".pyd", ".c", ".pyx", ".pxd"))]
    (wheel,) = (tree / "out").glob("*.whl")
    assert wheel.name == PURE_WHEEL


@checkout
@can_build
@pytest.mark.parametrize("lack", [NO_COMPILER, BROKEN_COMPILER, NO_LINKER], ids=["no compiler", "broken compiler", "no linker"])
def test_without_a_compiler_auto_builds_the_pure_wheel_and_says_so(small_tree: Path, lack: dict[str, str]) -> None:
    done = build(small_tree, "auto", "bdist_wheel", **lack)
    said = [line for line in done.stderr.splitlines() if line.startswith("dynamo: ")]
    assert done.returncode == 0 and len(said) == 1 and "no kernel can be compiled here" in said[0] and len(said[0]) < 140, done.stderr
    for asked_before in ("egg_info", "dist_info") if lack is NO_COMPILER else ():  # by pip, each in a process of its own
        command = (sys.executable, "setup.py", "-q", asked_before)
        done = subprocess.run(command, cwd=small_tree, env={**os.environ, "DYNAMO_EXTENSIONS": "auto", **lack}, capture_output=True, text=True)
        assert done.returncode == 0 and "dynamo: " not in done.stderr, done.stderr
    names = wheel_names(small_tree)
    assert "dynamo/_core/_record_py.py" in names
    assert not [name for name in names if name.endswith((".so", ".pyd", ".c"))]
    (wheel,) = (small_tree / "out").glob("*.whl")
    assert wheel.name == PURE_WHEEL


@checkout
@can_build
@pytest.mark.parametrize(("lack", "said"), [(NO_COMPILER, "'cc'"), (BROKEN_COMPILER, "'false'")], ids=["no compiler", "broken compiler"])
def test_without_a_compiler_require_fails(small_tree: Path, lack: dict[str, str], said: str) -> None:
    done = build(small_tree, "require", "bdist_wheel", **lack)
    assert done.returncode != 0 and "error: " in done.stderr and said in done.stderr
    assert not list((small_tree / "out").glob("*"))


@checkout
@can_build
def test_the_source_distribution_has_the_sources_and_no_generated_c(small_tree: Path) -> None:
    done = build(small_tree, "auto", "sdist")
    assert done.returncode == 0, done.stderr
    (archive,) = (small_tree / "out").glob("*.tar.gz")
    with tarfile.open(archive) as content:
        names = {name.partition("/")[2] for name in content.getnames()}
    wanted = {path.relative_to(small_tree).as_posix() for suffix in ("py", "pyx", "pxd") for path in (small_tree / "dynamo").rglob(f"*.{suffix}")}
    assert wanted | {"dynamo_kv.py", "setup.py", "pyproject.toml", "LICENSE", "dynamo/py.typed"} <= names
    assert not [name for name in names if name.endswith((".c", ".so", ".pyd"))]


@checkout
@can_build
def test_an_unknown_choice_is_refused(tree: Path) -> None:
    done = build(tree, "maybe", "bdist_wheel")
    assert done.returncode != 0 and "choose auto, require or off" in done.stderr


# --- continuous integration -------------------------------------------------------------------------------------------


@checkout
def test_the_pythons_that_are_promised_are_those_that_get_wheels() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    promised = re.findall(r"Python :: (3\.\d+)", "\n".join(project["project"]["classifiers"]))
    built = [re.sub(r"cp3(\d+)-.*", r"3.\1", name) for name in project["tool"]["cibuildwheel"]["build"]]
    assert promised == built and project["project"]["requires-python"] == f">={promised[0]}"


@checkout
@pytest.mark.parametrize("workflow", sorted(path.name for path in (ROOT / ".github" / "workflows").glob("*.yml")))
def test_workflows_only_call_scripts_that_run_here_too(workflow: str) -> None:
    text = (ROOT / ".github" / "workflows" / workflow).read_text()
    commands = re.findall(r"run: *(.*)", text)
    assert commands
    for command in commands:
        script = re.fullmatch(r"(?:python|bash) (ci/\w+\.(?:py|sh))(?: [\w./-]+)*", command)
        assert script is not None and (ROOT / script[1]).exists(), command
