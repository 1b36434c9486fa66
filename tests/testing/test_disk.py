"""The simulated disk: what is damaged stays known, or the checkers would take it for good."""

from __future__ import annotations

from random import Random

from dynamo.model.group import Group
from dynamo.testing.disk import Disk


def test_an_old_copy_is_as_damaged_as_the_disk_was_when_it_was_made() -> None:
    random = Random(1)
    disk = Disk(random)
    disk.apply(Group(1, {b"rotten": b"row", b"good": b"row"}, {}, {}, synced=True))
    while b"rotten" not in disk.damaged:
        disk.rot(random)
        disk.apply(Group(2, {b"good": b"row"}, {}, {}, synced=True))
    copy = disk.copy()
    disk.apply(Group(3, {b"rotten": b"mended"}, {}, {}, synced=True))
    disk.restore(copy)
    assert disk.damaged == {b"rotten"} and disk.objects[b"rotten"] != b"row"
    disk.apply(Group(4, {b"rotten": b"mended"}, {}, {}, synced=True))
    assert not disk.damaged
    disk.restore(copy)
    assert disk.damaged == {b"rotten"}, "a copy can be restored twice"
