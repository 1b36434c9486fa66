"""A data file with anything in it: opening it ends in an error with a name, or works; never in the end of the process."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import dynamo
from dynamo.errors import ConfigError

ENVIRON = os.environ | {"PYTHONPATH": str(Path(dynamo.__file__).parent.parent)}
PAGE = 4096

# Opens what stands on each line of stdin, uses all of it, and says how that ended.
USE = """if True:
    import sys, dynamo
    def tried(work):
        try:
            work()
        except dynamo.DynamoError:
            pass
    for line in sys.stdin:
        try:
            store = dynamo.open(line.strip(), durability="relaxed", timeout=0.2)
        except dynamo.DynamoError as error:
            print(type(error).__name__, flush=True)
            continue
        tried(lambda: [result.key for result in store.scan()])
        for number in range(0, 120, 5):
            tried(lambda: store.get(str(number)))
            tried(lambda: store.set(str(number), bytes(number * 50)))
            tried(lambda: store.delete(str(number + 1), blind=True))
        tried(store.close)
        print("used", flush=True)
    """


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stopped store of many kinds of pages."""
    path, rng = tmp_path_factory.mktemp("sound") / "data", random.Random(1)
    with dynamo.open(path, durability="relaxed") as store:
        for _ in range(8):
            store.set_many({str(rng.randrange(120)): rng.randbytes(rng.choice([10, 300, 3000, 9000])) for _ in range(40)})
            store.delete(str(rng.randrange(120)), blind=True)
    return path


def used(paths: list[Path]) -> list[str]:
    """What came of each; the process has to live through all of them."""
    lines = "".join(f"{path}\n" for path in paths)
    done = subprocess.run([sys.executable, "-c", USE], input=lines, env=ENVIRON, capture_output=True, text=True, timeout=100, check=False)
    outcomes = done.stdout.split()
    assert done.returncode == 0, (done.returncode, paths[len(outcomes)], done.stderr[-500:])
    assert len(outcomes) == len(paths)
    return outcomes


def copies(sound: Path, to: Path, damages: list[Callable[[bytearray], bytes]]) -> list[Path]:
    whole, paths = (sound / "data.mdb").read_bytes(), []
    for number, damage in enumerate(damages):
        path = to / str(number)
        shutil.copytree(sound, path)
        (path / "data.mdb").write_bytes(damage(bytearray(whole)))
        paths.append(path)
    return paths


def with_page(page: int, content: bytes, at: int = 0) -> Callable[[bytearray], bytes]:
    def damage(data: bytearray) -> bytes:
        start = page % (len(data) // PAGE) * PAGE + at
        data[start : start + len(content)] = content
        return bytes(data)

    return damage


def test_pages_of_zeros_and_of_noise_and_of_elsewhere_wherever_they_are(sound: Path, tmp_path: Path) -> None:
    rng = random.Random(2)
    whole = (sound / "data.mdb").read_bytes()
    pages = [0, 1, *range(2, len(whole) // PAGE, 9)]
    damages = [with_page(page, bytes(PAGE * rng.choice([1, 2]))) for page in pages]
    damages += [with_page(rng.choice(pages), rng.randbytes(PAGE)) for _ in range(10)]
    damages += [with_page(rng.choice(pages), rng.randbytes(PAGE - 16), 16) for _ in range(20)]
    damages += [with_page(rng.choice(pages), whole[(at := rng.choice(pages) * PAGE) : at + PAGE]) for _ in range(20)]
    outcomes = used(copies(sound, tmp_path, damages))
    assert "ConfigError" in outcomes and "used" in outcomes


def test_single_bits_of_the_heads_of_pages(sound: Path, tmp_path: Path) -> None:
    rng = random.Random(3)

    def flip(data: bytearray) -> bytes:
        page = rng.choice([0, 1, rng.randrange(len(data) // PAGE)])
        data[page * PAGE + rng.randrange(rng.choice([24, 160, PAGE]))] ^= 1 << rng.randrange(8)
        return bytes(data)

    used(copies(sound, tmp_path, [flip] * 50))


def test_files_cut_off_anywhere(sound: Path, tmp_path: Path) -> None:
    rng = random.Random(4)
    cuts = [0, 1, 100, PAGE, PAGE + 100, 2 * PAGE, 3 * PAGE] + [rng.randrange(1 << 17) for _ in range(10)]
    outcomes = used(copies(sound, tmp_path, [lambda data, cut=cut: bytes(data[:cut]) for cut in cuts]))  # type: ignore[misc]
    assert set(outcomes) == {"ConfigError"}


def test_a_copy_whose_parts_are_of_different_times(sound: Path, tmp_path: Path) -> None:
    """What a copy of a running store comes to: some pages of before, some of after."""
    later = tmp_path / "later"
    shutil.copytree(sound, later)
    rng = random.Random(5)
    with dynamo.open(later, durability="relaxed") as store:
        store.set_many({str(number): rng.randbytes(1000) for number in range(120)})
    old, new = (sound / "data.mdb").read_bytes(), (later / "data.mdb").read_bytes()

    def torn(data: bytearray, cut: int) -> bytes:
        return new[:cut] + old[cut:] if cut % 2 else old[:cut] + new[cut:]

    cuts = [page * PAGE + page % 2 for page in range(1, len(new) // PAGE, 11)]
    used(copies(sound, tmp_path, [lambda data, cut=cut: torn(data, cut) for cut in cuts]))  # type: ignore[misc]


def test_the_lock_file_of_lmdb_may_hold_anything(sound: Path, tmp_path: Path) -> None:
    paths = copies(sound, tmp_path, [bytes] * 4)
    for path, content in zip(paths, (b"", b"x", bytes(PAGE), os.urandom(3 * PAGE)), strict=True):
        (path / "lock.mdb").write_bytes(content)
    assert used(paths) == ["used"] * 4


def test_the_error_names_the_file_and_what_to_do(sound: Path, tmp_path: Path) -> None:
    def without_tables(data: bytearray) -> bytes:
        """All pages that name a table: some are of older states, and missed by nobody."""
        for at in range(0, len(data), PAGE):
            if b"objects" in data[at : at + PAGE]:
                data[at : at + PAGE] = bytes(PAGE)
        return bytes(data)

    (path,) = copies(sound, tmp_path, [without_tables])
    with pytest.raises(ConfigError, match=r"data\.mdb is damaged.*restore it"):
        dynamo.open(path)


def test_a_store_that_was_killed_is_sound_whatever_it_did(tmp_path: Path) -> None:
    """A false alarm would be worse than none."""
    program = """if True:
        import os, random, sys, dynamo
        rng = random.Random(int(sys.argv[2]))
        store = dynamo.open(sys.argv[1], durability=sys.argv[3])
        for _ in range(60):
            store.set_many({str(rng.randrange(200)): rng.randbytes(rng.choice([0, 10, 300, 3000, 30000])) for _ in range(rng.choice([1, 5, 40]))})
            if rng.random() < 0.3:
                for result in store.scan():
                    store.delete(result.key, blind=True)
        os._exit(9)
    """
    for seed, durability in enumerate(["relaxed", "synced", "buffered", "relaxed", "relaxed"]):
        subprocess.run([sys.executable, "-c", program, str(tmp_path / "data"), str(seed), durability], env=ENVIRON, timeout=60, check=False)
        dynamo.open(tmp_path / "data").close()
