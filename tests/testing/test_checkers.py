"""Each checker finds what is planted into a history, and is silent about histories in which nothing is wrong."""

from __future__ import annotations

import pytest

from dynamo.testing.checkers import check, last_writes_lost
from dynamo.testing.history import ACKNOWLEDGED, LAST_WRITE_WINS, REFUSED, UNKNOWN, Final, History, LostCopies, Read, Seen, Version, Write


class Book:
    """Writes a history down: the n-th write has the dot (1, n)."""

    def __init__(self, kind: str = "siblings") -> None:
        self.history = History(kinds={"b": kind})
        self.clock = 0.0
        self.dots: dict[str, tuple[int, int]] = {}

    def write(
        self, name: str, context: int = 0, outcome: str = ACKNOWLEDGED, *, tombstone: bool = False, overwrites: bool = False, key: str = "k",
        required: int = 1, attempts: int = 1, time: int = 0,
    ) -> int:  # fmt: skip
        """The number of the context the write gave."""
        self.clock += 1
        dot = self.dots[name] = (1, len(self.dots) + 1)
        write = self.history.begin(Write(name, "c", "b", key, context, tombstone, overwrites, required, self.clock))
        self.clock += 1
        write.outcome, write.ended, write.attempts = outcome, self.clock, attempts
        if outcome == ACKNOWLEDGED:
            write.dot, write.gives = dot, self.history.new_context()
        self.history.add(Seen("b", key, self.version(name, time), self.clock))
        return write.gives

    def version(self, name: str, time: int = 0, *, shown: bool = True) -> Version:
        write = self.history.writes.get(name)
        tombstone = write is not None and write.tombstone
        return Version(self.dots[name], None if tombstone and shown else name, time, tombstone)

    def read(self, *names: str) -> int:
        self.clock += 1
        gives = self.history.new_context()
        self.history.add(Read("c", "b", "k", gives, [self.version(name) for name in names], self.clock))
        return gives

    def final(self, *names: str, times: dict[str, int] | None = None) -> list[str]:
        """The checkers that object."""
        self.history.add(Final("b", "k", [self.version(name, (times or {}).get(name, 0), shown=False) for name in names]))
        found = [violation.checker for violation in check(self.history)]
        again = [violation.checker for violation in check(History.from_lines(self.history.to_lines()))]
        assert found == again, "the written form says the same"
        return found


def concurrent() -> Book:
    """x; then y by a client that was shown x; z concurrent with both."""
    book = Book()
    book.write("x")
    book.write("y", book.read("x"))
    book.write("z")
    return book


def test_the_maximal_writes_are_right() -> None:
    assert concurrent().final("y", "z") == []


@pytest.mark.parametrize("final", [("y",), ("z",), (), ("x", "z")])
def test_a_lost_write_is_found(final: tuple[str, ...]) -> None:
    assert "lost" in concurrent().final(*final)


def test_a_false_conflict_is_found() -> None:
    assert concurrent().final("x", "y", "z") == ["kept"]


def test_a_false_conflict_in_a_read_is_found() -> None:
    book = concurrent()
    book.read("x", "y")
    assert book.final("y", "z") == ["kept"]


def test_a_resurrected_value_is_found() -> None:
    book = Book()
    book.write("x")
    book.write("d", book.read("x"), tombstone=True)
    assert book.final("d", "x") == ["resurrected"]


def test_a_deletion_shown_is_an_ancestor_although_only_its_dot_was_shown() -> None:
    book = Book()
    book.write("d", tombstone=True)
    book.write("x", book.read("d"))
    assert book.final("x") == []


def test_an_own_earlier_write_is_an_ancestor_of_a_chained_one() -> None:
    book = Book()
    book.write("y", book.write("x"))
    assert book.final("y") == []
    book = Book()
    book.write("y", book.write("x"))
    assert book.final("x", "y") == ["kept"]


def test_what_a_chained_writer_had_not_seen_is_no_ancestor() -> None:
    book = Book()
    own = book.write("x")
    book.write("unseen")
    book.write("y", own)
    assert book.final("y") == ["lost"]


def test_a_version_of_a_second_coordinator_may_stay() -> None:
    """Two versions of one operation: the reader was shown one of them, so only that one must go."""
    book = Book()
    book.write("x", attempts=2)
    book.write("y", book.read("x"))
    second = Version((9, 9), "x")
    book.history.add(Final("b", "k", [second, book.version("y")]))
    assert check(book.history) == []


def test_a_write_in_doubt_may_be_there_or_not() -> None:
    for final in ((), ("x",)):
        book = Book()
        book.write("x", outcome=UNKNOWN)
        assert book.final(*final) == []


def test_a_refused_write_that_is_seen_is_found() -> None:
    book = Book()
    book.write("x", outcome=REFUSED)
    assert book.final() == ["truthful"]


def test_a_phantom_is_found() -> None:
    book = Book()
    book.dots["ghost"] = (7, 7)
    assert book.final("ghost") == ["phantom"]


def test_a_value_of_another_key_is_a_phantom() -> None:
    book = Book()
    book.write("x", key="other")
    assert "phantom" in book.final("x")


def test_a_dot_bound_twice_is_found() -> None:
    book = Book()
    book.write("x")
    book.write("y")
    book.history.add(Seen("b", "k", Version(book.dots["x"], "y")))
    assert "dots" in book.final("x", "y")


def test_a_counter_issued_for_two_keys_is_found() -> None:
    book = Book()
    book.write("x")
    book.write("y", key="other")
    book.history.add(Seen("b", "other", Version(book.dots["x"], "y")))
    assert "dots" in book.final("x")


def test_a_write_may_go_with_as_many_disks_as_it_needed_nodes() -> None:
    for disks, found in ((1, ["lost"]), (2, [])):
        book = Book()
        book.write("x", required=2)
        for number in range(disks):
            book.history.add(LostCopies(f"n{number}", frozenset({"x"}), 5.0))
        book.history.add(LostCopies("n0", frozenset({"x"}), 6.0))  # the same disk twice is one disk
        assert book.final() == found


def test_a_disk_lost_as_a_whole_counts_for_what_was_acknowledged_before() -> None:
    book = Book()
    book.write("x")
    book.history.add(LostCopies("n0", None, book.clock + 1))
    book.clock += 2
    book.write("y")
    assert book.final() == ["lost"]


def test_a_set_may_replace_what_nobody_was_shown() -> None:
    book = Book()
    book.write("x")
    book.write("s", overwrites=True)
    assert book.final("s") == []


def test_a_set_does_not_replace_what_came_after_it() -> None:
    book = Book()
    book.write("s", overwrites=True)
    book.write("x")
    assert book.final("s") == ["lost"]


class TestLastWriteWins:
    def test_the_highest_is_right_and_concurrent_writes_are_lost(self) -> None:
        book = Book(LAST_WRITE_WINS)
        book.write("x", time=5)
        book.write("y", time=7)
        assert book.final("y", times={"y": 7}) == []
        assert last_writes_lost(book.history) == 1

    def test_a_lower_one_is_found(self) -> None:
        book = Book(LAST_WRITE_WINS)
        book.write("x", time=5)
        book.write("y", time=7)
        assert book.final("x", times={"x": 5}) == ["last-write"]

    def test_two_versions_are_found(self) -> None:
        book = Book(LAST_WRITE_WINS)
        book.write("x", time=5)
        book.write("y", time=7)
        assert book.final("x", "y", times={"x": 5, "y": 7}) == ["last-write"]

    def test_a_write_not_later_than_what_its_client_was_shown_is_found(self) -> None:
        book = Book(LAST_WRITE_WINS)
        book.write("x", time=5)
        book.write("y", book.read("x"), time=4)
        assert "last-write" in book.final("x", times={"x": 5})

    def test_what_was_replaced_is_lost_with_what_replaced_it(self) -> None:
        """`y` replaced `x` in the very group that was to store it, so the disk that rotted never held `x` by itself."""
        book = Book(LAST_WRITE_WINS)
        book.write("x", time=5)
        book.write("y", time=7)
        book.history.add(LostCopies("n0", frozenset({"y"}), book.clock))
        assert book.final() == []

    def test_what_came_later_is_not_lost_with_what_came_before(self) -> None:
        book = Book(LAST_WRITE_WINS)
        book.write("x", time=5)
        book.write("y", time=7)
        book.history.add(LostCopies("n0", frozenset({"x"}), book.clock))
        assert book.final() == ["last-write"]

    def test_a_loss_of_too_few_copies_of_what_replaced_it_excuses_nothing(self) -> None:
        book = Book(LAST_WRITE_WINS)
        book.write("x", time=5, required=2)
        book.write("y", time=7)
        book.history.add(LostCopies("n0", frozenset({"y"}), book.clock))
        assert book.final() == ["last-write"]

    def test_another_key_is_not_lost_with_it(self) -> None:
        book = Book(LAST_WRITE_WINS)
        book.write("x", time=5)
        book.write("y", time=7, key="other")
        book.history.add(LostCopies("n0", frozenset({"y"}), book.clock))
        assert book.final() == ["last-write"]


def test_lines_that_are_no_history_name_the_line() -> None:
    with pytest.raises(ValueError, match="line 2"):
        History.from_lines(['{"event": "bucket", "bucket": "b", "kind": "siblings"}', '{"event": "nonsense"}'])
